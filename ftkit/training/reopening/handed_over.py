"""The files that a run and the process that opens its model anew hand one another; that process imports little else."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

_REQUEST, _SAMPLE, _FINDINGS, _ANSWERS = "request.json", "sample.safetensors", "findings.json", "answers.safetensors"
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Request:
    """What is asked.

    Attributes:
        run: the folder of the run.
        dtype: what its model was to be saved in, such as `bfloat16`.
        digests: checksums of weights by their names, as they compute.
    """

    run: str
    dtype: str
    digests: dict[str, int]


@dataclass(frozen=True)
class Findings:
    """What a saved model holds that it should not.

    Attributes:
        differing: names of weights that have another checksum, or are not there.
        mistyped: names of saved tensors that are of another type.
    """

    differing: list[str]
    mistyped: list[str]


def write_request(folder: Path, request: Request, sample: Tensors) -> None:
    """Write what is asked.

    Args:
        folder: between the two processes.
        request: what to open and to compare.
        sample: what the model's forward takes, as `0/input_ids` of the first sequence.
    """
    save_file(dict(sample), folder / _SAMPLE)
    (folder / _REQUEST).write_text(json.dumps(asdict(request)), encoding="utf-8")


def read_request(folder: Path) -> Request:
    """Return what is asked."""
    return Request(**json.loads((folder / _REQUEST).read_text(encoding="utf-8")))


def read_sample(folder: Path) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Yield the number of each sequence of the sample, and what the model's forward takes of it."""
    sample = load_file(folder / _SAMPLE)
    for number in sorted({name.partition("/")[0] for name in sample}):
        yield number, {name.partition("/")[2]: one for name, one in sample.items() if name.startswith(f"{number}/")}


def write_answers(folder: Path, findings: Findings, answers: Tensors) -> None:
    """Write what was found.

    Args:
        folder: between the two processes.
        findings: what is wrong with the weights.
        answers: logits of the sample, by the number of the sequence.
    """
    save_file({name: one.contiguous() for name, one in answers.items()}, folder / _ANSWERS)
    (folder / _FINDINGS).write_text(json.dumps(asdict(findings)), encoding="utf-8")


def read_answers(folder: Path) -> tuple[Findings, dict[str, torch.Tensor]]:
    """Return what was found, and the logits of the sample."""
    return Findings(**json.loads((folder / _FINDINGS).read_text(encoding="utf-8"))), load_file(folder / _ANSWERS)
