"""See after the first steps that what should train does, and that nothing else has changed.

A LoRA can look as if it trained while it does not: frozen by a hook, cut off from the graph by checkpointing over
embeddings that need no gradient, or a weight that lives elsewhere. Its loss hardly tells. So some numbers of each
tensor are kept from before, and looked at again after the second step; in the first one the gradient of a LoRA's A is
zero, since its B is.
"""

from collections.abc import Mapping

import torch
from torch import nn

from ftkit.engine.protocol import Engine
from ftkit.errors import ModelError

AFTER_STEPS = 2
_SAMPLE = 512
"""Numbers of a tensor that are looked at, evenly spread."""
_MOST_TRAINABLE = 2**27
"""Trained numbers above which masters are not gathered for this: half a GiB on the host."""

Samples = Mapping[str, torch.Tensor]


class FirstSteps:
    """Compares a model with what it was when training began."""

    def __init__(self, engine: Engine) -> None:
        """Keep some numbers of each tensor; called by every rank, since masters may be partitioned.

        Args:
            engine: before its first step.
        """
        self._engine = engine
        num_trainable = sum(_num_elements(one) for one in engine.model.parameters() if one.requires_grad)
        self._is_looked_at = num_trainable <= _MOST_TRAINABLE
        self._trained, self._frozen = self._samples()

    def check(self) -> list[str]:
        """Compare, after `AFTER_STEPS` steps; called by every rank.

        Returns:
            Names of tensors that were to train and have not moved, where that may be right: experts that no token was
            sent to, positions that no text is long enough for.

        Raises:
            ModelError: an adapter has not moved, nothing has, or a frozen tensor has.
        """
        trained, frozen = self._samples()
        changed = [name for name in self._frozen if not torch.equal(self._frozen[name], frozen[name])]
        if changed:
            raise ModelError(
                f"{_first(changed)} changed in training, though frozen; look for a hook of the model's code that writes "
                "to its weights, or try model.lean=false"
            )
        still = [name for name in self._trained if torch.equal(self._trained[name], trained[name])]
        dead = [name for name in still if ".lora_B." in name and ".experts." not in name]
        if dead or (still and len(still) == len(self._trained)):
            raise ModelError(
                f"{_first(dead or still)} did not change in {AFTER_STEPS} steps, so this run trains nothing there; "
                "try model.gradient_checkpointing=0, other method.targets, or model.lean=false"
            )
        return still

    def _samples(self) -> tuple[Samples, Samples]:
        """Return some numbers of what trains, as masters in fp32, and of what is frozen."""
        parameters = dict(self._engine.model.named_parameters())
        state = self._engine.trainable_state() if self._is_looked_at else {}
        frozen = {name: one for name, one in parameters.items() if not one.requires_grad}
        return ({name: _sample(tensor) for name, tensor in state.items()},
                {name: _sample(getattr(one, "ds_tensor", one)) for name, one in frozen.items()})  # fmt: skip


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    """Return some numbers as bytes: what 4-bit weights are stored in may look like NaN, which equals nothing."""
    flat = tensor.detach().flatten()
    return flat[:: max(1, len(flat) // _SAMPLE)].contiguous().to("cpu", copy=True).view(torch.uint8)


def _num_elements(parameter: nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _first(names: list[str]) -> str:
    """Return one name, and how many there are besides."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
