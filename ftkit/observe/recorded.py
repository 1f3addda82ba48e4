"""Run the real training step under a recorder, whatever tensors it runs on."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ftkit.data.batching import MicroBatch, Shape
from ftkit.models.bnb import hidden_tensors
from ftkit.observe.recorder import Recorder
from ftkit.observe.tape import BACKWARD, FORWARD, OPTIMIZER, Tape
from ftkit.step import step


class WatchedEngine:
    """An engine that tells a Recorder which phase it is in; everything else is the engine's own."""

    def __init__(self, engine: Any, recorder: Recorder) -> None:
        """Wrap `engine`."""
        self._engine = engine
        self._recorder = recorder

    def __getattr__(self, name: str) -> Any:
        """Return what the engine has."""
        return getattr(self._engine, name)

    def forward(self, micro_batch: MicroBatch, *, is_last: bool = True) -> torch.Tensor:
        """Run the engine's forward; the loss that follows counts as forward."""
        self._recorder.phase, self._recorder.layer = FORWARD, None
        logits: torch.Tensor = self._engine.forward(micro_batch, is_last=is_last)
        return logits

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Run the engine's backward."""
        self._recorder.mark(FORWARD)
        self._recorder.phase, self._recorder.layer = BACKWARD, None
        self._engine.backward(loss, is_last=is_last)
        self._recorder.mark(BACKWARD)
        self._recorder.micro_batch += 1

    def apply_gradients(self, learning_rate: float) -> torch.Tensor:
        """Run the engine's update."""
        self._recorder.phase, self._recorder.layer = OPTIMIZER, None
        norm: torch.Tensor = self._engine.apply_gradients(learning_rate)
        self._recorder.mark(OPTIMIZER)
        return norm


def layer_names(model: nn.Module) -> dict[str, int]:
    """Return the modules that follow one another as layers, with their numbers: the longest list of modules."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        return {}
    name, longest = max(lists, key=lambda entry: len(entry[1]))
    return {f"{name}.{number}": number for number in range(len(longest))}


def record_steps(engine: Any, micro_batches: Sequence[MicroBatch], recorder: Recorder, num_steps: int = 2) -> Tape:
    """Run `train_step` under a recorder that is already active.

    Args:
        engine: built.
        micro_batches: of each step.
        recorder: watches.
        num_steps: the first has no optimizer state yet.

    Returns:
        The recorder's tape.
    """
    watched = WatchedEngine(engine, recorder)
    num_targets = sum(micro_batch.labels.numel() for micro_batch in micro_batches)
    for number in range(1, num_steps + 1):
        recorder.step, recorder.micro_batch = number, 0
        result = step.train_step(watched, micro_batches, num_targets, 1e-4)
        del result
    return recorder.tape


def see_model(recorder: Recorder, model: nn.Module, layers: dict[str, int]) -> None:
    """Write a model's tensors on the tape."""
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    recorder.see(trainable, "trainable", layers)
    recorder.see(model.named_parameters(), "parameter", layers)
    recorder.see(hidden_tensors(model).items(), "constant", layers)
    recorder.see(model.named_buffers(), "buffer", layers)


def make_batches(task: str, shape: Shape) -> list[MicroBatch]:
    """Return micro-batches of a shape, all of token 1; with a mask where sequences are padded.

    Args:
        task: decides the shape of the labels.
        shape: sizes.

    Returns:
        The micro-batches of one step.
    """
    made = []
    for _ in range(shape.num_micro_batches):
        ids_BT = torch.ones(shape.batch, shape.length, dtype=torch.int64)
        labels = ids_BT.clone() if task == "causal-lm" else torch.zeros(shape.batch, dtype=torch.int64)
        mask_BT = None
        if shape.is_padded:
            mask_BT = torch.ones_like(ids_BT)
            mask_BT[:, -1] = 0
        made.append(MicroBatch(ids_BT, labels, mask_BT))
    return made


def batch_tensors(micro_batches: Sequence[MicroBatch]) -> list[tuple[str, torch.Tensor]]:
    """Return the tensors of micro-batches, with names."""
    return [
        (f"micro-batch {number} {name}", tensor)
        for number, micro_batch in enumerate(micro_batches)
        for name, tensor in [*micro_batch.inputs().items(), ("labels", micro_batch.labels)]
    ]
