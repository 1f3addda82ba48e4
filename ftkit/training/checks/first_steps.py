"""See after the first steps that what should train does, and that nothing else has changed.

A LoRA can look as if it trained while it does not: frozen by a hook, cut off from the graph by checkpointing over
embeddings that need no gradient, or a weight that lives elsewhere. Its loss hardly tells. So some numbers of each
tensor are kept from before, and looked at again after the second step; in the first one the gradient of a LoRA's A is
zero, since its B is.
"""

from collections.abc import Callable, Mapping

import torch

from ftkit.engine.protocol import Engine
from ftkit.errors import ModelError
from ftkit.models.partitions import whole_numel
from ftkit.models.streaming.stream import is_streamed

AFTER_STEPS = 2
_SKIPPED_AT_MOST = 20
"""Steps of fp16 that may all be skipped while the loss scale falls."""
_SAMPLE = 512
"""Numbers of a tensor that are looked at, evenly spread."""
_MOST_TRAINABLE = 2**27
"""Trained numbers above which masters are not gathered for this: half a GiB on the host."""

Samples = Mapping[str, torch.Tensor]


class FirstSteps:
    """Compares a model with what it was when training began."""

    def __init__(self, engine: Engine, step: int, *, may_skip: bool) -> None:
        """Keep some numbers of each tensor; called by every rank, since masters may be partitioned.

        Args:
            engine: before the first step that it takes here.
            step: the last step that was taken before.
            may_skip: whether a step whose gradients overflow is skipped, as in fp16.
        """
        self._engine, self._may_skip = engine, may_skip
        self._at, self._last = step + AFTER_STEPS, step + _SKIPPED_AT_MOST
        num_trainable = sum(whole_numel(one) for one in engine.model.parameters() if one.requires_grad)
        self._is_looked_at = num_trainable <= _MOST_TRAINABLE
        self._trained, self._frozen = self._samples()

    def look(self, step: int, note: Callable[[str], None]) -> None:
        """Compare, if this is the step for it; called by every rank after each step.

        Args:
            step: that was taken.
            note: told of tensors that have not moved where that may be right, such as experts that no token was sent
                to, or positions that no text is long enough for.

        Raises:
            ModelError: an adapter has not moved, nothing has, or a frozen tensor has.
        """
        if step != self._at:
            return
        trained, frozen = self._samples()
        still = [name for name in self._trained if torch.equal(self._trained[name], trained[name])]
        if self._may_skip and len(still) == len(self._trained) and step < self._last:
            self._at += 1  # every step so far was skipped
            return
        _check_frozen([name for name in self._frozen if not torch.equal(self._frozen[name], frozen[name])])
        _check_trained(still, len(self._trained))
        if still:
            note(f"after {AFTER_STEPS} steps {_first(still)} of {len(self._trained)} trained tensors had not changed")
        self._trained, self._frozen = {}, {}

    def _samples(self) -> tuple[Samples, Samples]:
        """Return some numbers of what trains, as masters in fp32, and of what is frozen."""
        parameters = dict(self._engine.model.named_parameters())
        state = self._engine.trainable_state(copy=False) if self._is_looked_at else {}
        # What is streamed is read anew each time, so that nothing can change it.
        frozen = {name: one for name, one in parameters.items() if not (one.requires_grad or is_streamed(one))}
        return ({name: _sample(tensor) for name, tensor in state.items()},
                {name: _sample(getattr(one, "ds_tensor", one)) for name, one in frozen.items()})  # fmt: skip


def _check_frozen(changed: list[str]) -> None:
    if changed:
        raise ModelError(
            f"{_first(changed)} changed in training, though frozen; look for a hook of the model's code that writes "
            "to its weights, or try --recompute none"
        )


def _check_trained(still: list[str], num_trained: int) -> None:
    dead = [name for name in still if ".lora_B." in name and ".experts." not in name]
    if dead or (still and len(still) == num_trained):
        raise ModelError(
            f"{_first(dead or still)} did not change in {AFTER_STEPS} steps, so nothing is learned there; try "
            "model.recompute=none or other method.targets"
        )


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    """Return some numbers as bytes: what 4-bit weights are stored in may look like NaN, which equals nothing."""
    flat = tensor.detach().flatten()
    return flat[:: max(1, len(flat) // _SAMPLE)].contiguous().to("cpu", copy=True).view(torch.uint8)


def _first(names: list[str]) -> str:
    """Return one name, and how many there are besides."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
