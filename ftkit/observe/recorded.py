"""Run the real training step under a recorder, whatever tensors it runs on."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ftkit.data.batching import MicroBatch, Shape
from ftkit.engine.protocol import Engine
from ftkit.models.bnb import hidden_tensors
from ftkit.models.objective import Objective
from ftkit.models.streaming.stream import stream_of
from ftkit.models.structure.layers import transformer_layers
from ftkit.models.trunk.cut import Cut, arriving
from ftkit.models.trunk.rows import read_dtype
from ftkit.observe.recorder import Recorder
from ftkit.observe.tape import Role, Tape
from ftkit.step import step
from ftkit.step.observer import Phase


def layer_names(model: nn.Module) -> dict[str, int]:
    """Return the names of a model's layers, with their numbers; none where it has no layers."""
    name, layers = transformer_layers(model) or ("", ())
    return {f"{name}.{number}": number for number in range(len(layers))}


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


def record_trunk(model: nn.Module, cut: Cut, micro_batch: MicroBatch, recorder: Recorder) -> Tape:
    """Run a frozen trunk over sequences under a recorder that is already active.

    Args:
        model: not closed, in evaluation mode.
        cut: where the trunk ends.
        micro_batch: the sequences.
        recorder: watches.

    Returns:
        The recorder's tape.
    """
    recorder.see(batch_tensors([micro_batch]), Role.INPUT)
    recorder.begin_step(1)
    with recorder.during(Phase.TRUNK):
        arrived = arriving(model, cut, micro_batch)
        del arrived
    return recorder.tape


def see_model(recorder: Recorder, model: nn.Module, layers: dict[str, int]) -> None:
    """Write a model's tensors on the tape."""
    see_window(recorder, model)
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    recorder.see(trainable, Role.TRAINABLE, layers)
    recorder.see(model.named_parameters(), Role.PARAMETER, layers)
    recorder.see(hidden_tensors(model).items(), Role.CONSTANT, layers)
    recorder.see(model.named_buffers(), Role.BUFFER, layers)


def see_window(recorder: Recorder, model: nn.Module) -> None:
    """Write on the tape that the buffers of streamed layers hold weights; without effect before there are some."""
    stream = stream_of(model)
    if stream is not None and stream.window is not None:
        recorder.see([("window", one) for one in stream.window.memory], Role.PARAMETER)


@dataclass(frozen=True)
class Given:
    """What a model that runs from above its frozen trunk is given of each sequence, beside its tokens.

    Attributes:
        cut: where the trunk ends.
        dtype: that is kept.
    """

    cut: Cut
    dtype: torch.dtype

    def hidden(self, shape: Shape) -> torch.Tensor:
        """Return zeros in the place of what crosses, [B, D] or [B, T, D]."""
        length = () if self.cut.is_pooled else (shape.length,)
        return torch.zeros(shape.batch, *length, self.cut.width, dtype=read_dtype(self.dtype))


def make_batches(objective: Objective, shape: Shape, given: Given | None = None) -> list[MicroBatch]:
    """Return micro-batches of a shape, all of token 1; with a mask where sequences are padded.

    Args:
        objective: decides what the labels are.
        shape: sizes; of a length of 1 where one vector of a sequence is given.
        given: in the place of a frozen trunk; None: the model runs whole.

    Returns:
        The micro-batches of one step.
    """
    made = []
    for _ in range(shape.num_micro_batches):
        ids_BT = torch.ones(shape.batch, shape.length, dtype=torch.int64)
        mask_BT = None
        if shape.is_padded:
            mask_BT = torch.ones_like(ids_BT)
            mask_BT[-1, -1] = 0  # the least padding that a mask is made for
        labels = objective.blank_labels(ids_BT)
        places = _all_targets(shape) if labels.shape == ids_BT.shape else None
        hidden = None if given is None else given.hidden(shape)
        made.append(MicroBatch(ids_BT, labels, mask_BT, target_places=places, hidden=hidden))
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
