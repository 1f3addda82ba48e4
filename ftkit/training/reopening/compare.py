"""Open what a run has saved in a new process, and compare it with the model in memory.

The new process is `ftkit.inference.reopen`, which opens a model as `ftkit predict` does. It is asked for two things:
whether the weights that trained are those that were to be saved, by their checksums, and what the model answers to a
sample. The checksums find a number that changed on its way; the answers find what else a model needs and a checksum
does not see, such as its base, its settings and the scale of its adapters.
"""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ftkit.data.arrays import TokenSplit
from ftkit.data.batching import collate
from ftkit.data.beginnings import beginnings
from ftkit.engine.protocol import Tensors
from ftkit.errors import DoesNotFitError, ModelError
from ftkit.machine.memory import free_device_bytes, free_host_bytes, says_no_memory
from ftkit.models.build import set_training
from ftkit.models.partitions import whole_numel
from ftkit.models.streaming.stream import resident_bytes
from ftkit.training.reopening.handed_over import Findings, Request, read_answers, write_request
from ftkit.training.results.model import Saved
from ftkit.training.setup import Job
from ftkit.training.standby import Standby, open_freshly
from ftkit.units import counted, format_bytes, format_seconds

TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""The largest difference of two logits, as a share of the largest one (or of 1, if all are smaller).

The same operators on the same numbers give the same bits, and so they do where nothing is partitioned or cached. Under
ZeRO-3, above a cached trunk and with other threads a sum of thousands of products is made in another order, which costs
some tens of roundings: 2**-24 each in fp32, 2**-11 in fp16, 2**-8 in bf16. A model that lacks its adapters, or has them
at another scale, is off by more than a tenth.
"""
_SEQUENCES, _TOKENS = 4, 32
"""Of the sample; of a language model the first tokens of a sequence, since each token has logits as wide as its
vocabulary."""
_PROCESS_BYTES = 2**30
"""Of a process that has imported torch and transformers, with the activations of a sequence."""
_SHARE_OF_TIMEOUT = 0.8
"""Of the time after which the ranks that wait would count the first one as lost."""


@dataclass(frozen=True)
class Remembered:
    """What the model in memory is and answers.

    Attributes:
        dtype: what was saved is stored in.
        digests: checksums of the weights that were saved, as they compute; empty on all ranks but the first.
        sample: the sample, as `0/input_ids`.
        answers: its logits in fp32, each [1, C] or [1, T, V], by the number of the sequence.
    """

    dtype: torch.dtype
    digests: Mapping[str, int]
    sample: Tensors
    answers: Tensors


def remember(job: Job, saved: Saved | None) -> Remembered:
    """Take what the model in memory holds and answers; every rank calls this.

    Args:
        job: the run.
        saved: what was written; None on the ranks that have written nothing.
    """
    split = _sample(job.data.train)
    sample: Tensors = {}
    answers: Tensors = {}
    set_training(job.engine.model, False)
    for number in range(len(split)):
        rows = np.array([number])
        plain = collate(replace(split, hidden=None), rows, job.padding, torch.device("cpu")).inputs()
        sample |= {f"{number}/{name}": tensor for name, tensor in plain.items()}
        job.engine.begin_step(0)
        with torch.no_grad():
            logits = job.engine.logits(collate(split, rows, job.padding, job.engine.device))
        answers[str(number)] = logits.float().cpu()
    if saved is None:
        return Remembered(job.engine.dtype, {}, sample, answers)
    return Remembered(saved.dtype, saved.digests, sample, answers)


def reopen(job: Job, expected: Remembered, note: Callable[[str], None]) -> float | None:
    """Open what was saved in a new process, and compare it.

    Args:
        job: the run, whose folder has its configuration, its record and its model.
        expected: what the model in memory is and answers.
        note: told the outcome.

    Returns:
        The largest difference of two logits; None where a second copy has no room, or takes too long to open.

    Raises:
        ModelError: what was saved is not what is in memory; the run is not finished, and its checkpoint stays.
    """
    if reason := _no_room(job):
        note(f"warning: the saved model was not opened again, since {reason}")
        return None
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="ftkit-reopen-") as name:
        talk = Path(name)
        dtype = str(expected.dtype).removeprefix("torch.")
        write_request(talk, Request(str(job.folder.absolute()), dtype, dict(expected.digests)), expected.sample)
        fault, reason = _run(job.standby, talk, _SHARE_OF_TIMEOUT * job.config.engine.peer_timeout)
        if reason:
            note(f"warning: the saved model was not compared with the one in memory, since {reason}")
            return None
        difference = scale = 0.0
        if not fault:
            findings, answers = read_answers(talk)
            difference, scale = _difference(expected.answers, answers)
            fault = _fault(findings, difference, scale, _tolerance(job))
    if fault:
        raise ModelError(
            f"the model saved in {job.folder} is not the one in memory: {fault}; the checkpoint is whole: --resume "
            f"{job.folder} saves the model anew (with --set output.reopen=false nothing is compared)"
        )
    note(
        f"opened again in a new process: the logits of {counted(len(expected.answers), 'sequence')} differ by "
        f"at most {difference:.2g} (the largest is {scale:.3g}), in {format_seconds(time.perf_counter() - started)}"
    )
    return difference


def _run(standby: Standby | None, talk: Path, timeout_seconds: float) -> tuple[str, str]:
    """Run the process; return what is wrong with the model, and why nothing could be said, if there is either."""
    try:
        ended = (open_freshly if standby is None else standby.open)(talk, timeout_seconds)
    except TimeoutError:
        return "", f"that had not ended after {format_seconds(timeout_seconds)}, and other ranks wait no longer"
    printed = ended.printed.strip()
    last = printed.splitlines()[-1].removeprefix("error: ") if printed else f"exit code {ended.code}"
    if ended.code == DoesNotFitError.exit_code or (ended.code and says_no_memory(printed)):
        return "", f"memory ran out there: {last}"
    if ended.code < 0:
        return "", f"the system ended that process by signal {-ended.code}, as where memory runs out"
    return (f"it cannot be opened ({last})" if ended.code else ""), ""


def _difference(ours: Tensors, theirs: Tensors) -> tuple[float, float]:
    """Return the largest difference of two logits, infinite where shapes differ, and the largest logit."""
    scale = max(float(one.abs().max()) for one in ours.values())
    if any(name not in theirs or theirs[name].shape != one.shape for name, one in ours.items()):
        return float("inf"), scale
    return max(float((theirs[name] - one).abs().max()) for name, one in ours.items()), scale


def _fault(findings: Findings, difference: float, scale: float, tolerance: float) -> str:
    """Return what is wrong, the most telling thing; empty where nothing is."""
    for words, names in (("other numbers", findings.differing), ("numbers of another type", findings.mistyped)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            return f"{names[0]}{more} came back with {words}"
    allowed = tolerance * max(scale, 1.0)
    if not difference <= allowed:  # NaN too
        return f"logits differ by {difference:.3g} (the largest is {scale:.3g}), of which {allowed:.2g} may be rounding"
    return ""


def _tolerance(job: Job) -> float:
    """Return what rounding may change; the model in memory may have seen hidden states that the cache has rounded."""
    hidden = job.data.train.hidden
    kept = job.engine.dtype if hidden is None else hidden.states(np.zeros(1, dtype=np.int64))[0].dtype
    return max(TOLERANCES[job.engine.dtype], TOLERANCES[kept])


def _no_room(job: Job) -> str:
    """Return why a second copy of the model has no room; empty where it has, or where nobody knows."""
    whole = job.counts.total * job.engine.dtype.itemsize
    held = sum(whole_numel(one) * one.element_size() for one in job.engine.model.parameters())
    streamed = resident_bytes(job.engine.model)
    if streamed is not None:
        whole = held = streamed
    device = job.engine.device
    # It is loaded on the host, in 4 bits too, and then lies on the device as it does here.
    for place, needed, free in (
        ("the host", whole, free_host_bytes()),
        (str(device), whole if job.load_whole else held, free_device_bytes(device)),
    ):
        if free is not None and free < needed + _PROCESS_BYTES:
            return (
                f"a second copy of it takes {format_bytes(needed + _PROCESS_BYTES)} of {place}, where "
                f"{format_bytes(free)} are free"
            )
    return ""


def _sample(train: TokenSplit) -> TokenSplit:
    """Return the shortest sequences of a split; of a language model their first tokens."""
    rows = np.argsort(train.lengths, kind="stable")[:_SEQUENCES]
    is_per_token = train.labels.dtype == np.bool_
    return beginnings(train, rows, np.minimum(train.lengths[rows], _TOKENS) if is_per_token else train.lengths[rows])
