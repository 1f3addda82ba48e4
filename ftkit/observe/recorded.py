"""Run the real training step under a recorder, whatever tensors it runs on."""

from collections.abc import Sequence

import torch
from torch import nn

from ftkit.data.batching import MicroBatch, Shape
from ftkit.engine.protocol import Engine
from ftkit.models.bnb import hidden_tensors
from ftkit.models.objective import Objective
from ftkit.observe.recorder import Recorder
from ftkit.observe.tape import Role, Tape
from ftkit.step import step


def layer_names(model: nn.Module) -> dict[str, int]:
    """Return the modules that follow one another as layers, with their numbers: the longest list of modules."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        return {}
    name, longest = max(lists, key=lambda entry: len(entry[1]))
    return {f"{name}.{number}": number for number in range(len(longest))}


def record_steps(engine: Engine, micro_batches: Sequence[MicroBatch], recorder: Recorder, num_steps: int = 2) -> Tape:
    """Run `train_step` under a recorder that is already active.

    Args:
        engine: built.
        micro_batches: of each step.
        recorder: watches.
        num_steps: the first has no optimizer state yet.

    Returns:
        The recorder's tape.
    """
    num_targets = sum(micro_batch.labels.numel() for micro_batch in micro_batches)
    for number in range(1, num_steps + 1):
        recorder.begin_step(number)
        result = step.train_step(engine, micro_batches, num_targets, 1e-4, recorder)
        del result
    return recorder.tape


def see_model(recorder: Recorder, model: nn.Module, layers: dict[str, int]) -> None:
    """Write a model's tensors on the tape."""
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    recorder.see(trainable, Role.TRAINABLE, layers)
    recorder.see(model.named_parameters(), Role.PARAMETER, layers)
    recorder.see(hidden_tensors(model).items(), Role.CONSTANT, layers)
    recorder.see(model.named_buffers(), Role.BUFFER, layers)


def make_batches(objective: Objective, shape: Shape) -> list[MicroBatch]:
    """Return micro-batches of a shape, all of token 1; with a mask where sequences are padded.

    Args:
        objective: decides what the labels are.
        shape: sizes.

    Returns:
        The micro-batches of one step.
    """
    made = []
    for _ in range(shape.num_micro_batches):
        ids_BT = torch.ones(shape.batch, shape.length, dtype=torch.int64)
        mask_BT = None
        if shape.is_padded:
            mask_BT = torch.ones_like(ids_BT)
            mask_BT[:, -1] = 0
        labels = objective.blank_labels(ids_BT)
        places = _all_targets(shape) if labels.shape == ids_BT.shape else None
        made.append(MicroBatch(ids_BT, labels, mask_BT, target_places=places))
    return made


def _all_targets(shape: Shape) -> torch.Tensor:
    """Return the places of `MicroBatch.target_places` where every token carries loss; it reads no values."""
    return torch.arange(shape.batch * shape.length).view(shape.batch, shape.length)[:, :-1].flatten()


def batch_tensors(micro_batches: Sequence[MicroBatch]) -> list[tuple[str, torch.Tensor]]:
    """Return the tensors of micro-batches, with names."""
    return [
        (f"micro-batch {number} {name}", tensor)
        for number, micro_batch in enumerate(micro_batches)
        for name, tensor in vars(micro_batch).items()
        if tensor is not None
    ]
