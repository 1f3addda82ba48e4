"""Open what a run has just saved and say what it holds and answers: `python -m ftkit.inference.reopen FOLDER`.

A run starts this as a process of its own; `ftkit.training.reopening.compare` asks and compares.
"""

import sys
from pathlib import Path

import torch

from ftkit.data.batching import MicroBatch
from ftkit.errors import FtkitError
from ftkit.inference.opened import open_config, open_model
from ftkit.models.saving.dtypes import digest, of_other_types
from ftkit.models.sources.adapters import model_folder
from ftkit.models.streaming.stream import value_of
from ftkit.training.reopening.handed_over import Findings, read_request, read_sample, write_answers


def reopen(talk: Path) -> None:
    """Open a model, and write what it holds and answers.

    Args:
        talk: the folder between the two processes.

    Raises:
        FtkitError: the model cannot be opened.
    """
    request = read_request(talk)
    reader = open_model(request.run, open_config(request.run)).reader
    held = reader.model.state_dict(keep_vars=True)
    findings = Findings(
        differing=[
            name
            for name, expected in request.digests.items()
            if name not in held or digest(value_of(held[name]), reader.dtype) != expected
        ],
        mistyped=of_other_types(model_folder(Path(request.run)), getattr(torch, request.dtype)),
    )
    answers = {}
    with torch.no_grad():
        for number, inputs in read_sample(talk):
            on_device = {name: one.to(reader.device) for name, one in inputs.items()}
            answers[number] = reader.logits(MicroBatch(**on_device, labels=torch.zeros(1))).float().cpu()
    write_answers(talk, findings, answers)


if __name__ == "__main__":
    try:
        reopen(Path(sys.argv[1]))
    except FtkitError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(error.exit_code)
