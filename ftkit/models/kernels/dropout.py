"""Dropout whose mask is drawn again from a seed, and never kept.

torch keeps a mask for each dropout from the forward to the backward, and on a CPU draws it number by number. Here a
seed is kept. On a CPU the bits come from SFC64 (numpy), 16 for each element, so that a rate is met within 2**-17; on an
accelerator torch's own generator draws them from the seed. Seeds come from torch's generator of the CPU, which
activation checkpointing stores and restores, so a recomputed layer draws the same mask.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from ftkit.models.foreign import has_values

_LEVELS = 2**16


def draw_seed(tensor: torch.Tensor) -> int:
    """Return a new seed from torch's generator of the CPU; 0 for tensors without values, whose mask has none either.

    Args:
        tensor: what will be dropped from.
    """
    if not has_values(tensor):
        return 0
    return int(torch.randint(2**62, (), device="cpu"))


def dropped(tensor: torch.Tensor, rate: float, seed: int) -> torch.Tensor:
    """Return a copy of a tensor with elements set to zero; what is left is not scaled by 1 / (1 - rate).

    Args:
        tensor: of any shape.
        rate: the share of elements to drop, 0 or more and less than 1.
        seed: decides which; the same seed drops the same places.
    """
    kept: torch.Tensor = keep_mask(tensor.detach(), rate, seed)
    return kept.mul_(tensor)


@torch.library.custom_op("ftkit::keep_mask", mutates_args=())
def keep_mask(tensor: torch.Tensor, rate: float, seed: int) -> torch.Tensor:
    """Return which elements of a tensor a seed keeps.

    An operator of its own, so that whoever records operators sees one result, on real tensors and on fake ones alike.

    Args:
        tensor: of any shape, on any device.
        rate: the share of elements to drop, 0 or more and less than 1.
        seed: decides which.

    Returns:
        Ones where an element is kept and zeros elsewhere, of the tensor's shape and dtype.
    """
    if tensor.device.type != "cpu":
        generator = torch.Generator(tensor.device).manual_seed(seed)
        return torch.empty_like(tensor).bernoulli_(1 - rate, generator=generator)
    words = -(-tensor.numel() * 2 // 8)
    bits = torch.from_numpy(np.random.SFC64(seed).random_raw(words).view(np.int16))[: tensor.numel()]
    # 16 random bits read as a signed number are at most this with the probability `rate`, to the nearest 2**-16; one
    # more and the element is kept. Clamping to those two and subtracting takes a third of a comparison's time.
    highest_dropped = min(round(rate * _LEVELS), _LEVELS - 1) - _LEVELS // 2 - 1
    if highest_dropped < -_LEVELS // 2:
        return torch.ones_like(tensor)
    kept = bits.clamp_(highest_dropped, highest_dropped + 1).sub_(highest_dropped)
    return kept.to(tensor.dtype).view(tensor.shape)


@keep_mask.register_fake
def _(tensor: torch.Tensor, rate: float, seed: int) -> torch.Tensor:  # noqa: ARG001  # values decide no shape
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


class _Dropout(torch.autograd.Function):
    """Keeps a seed."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rate: float) -> torch.Tensor:
        ctx.rate, ctx.seed = rate, draw_seed(x)
        return dropped(x, rate, ctx.seed).mul_(1 / (1 - rate))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return dropped(grads[0], ctx.rate, ctx.seed).mul_(1 / (1 - ctx.rate)), None


def seeded_dropout(x: torch.Tensor, rate: float) -> torch.Tensor:
    """Return what `nn.functional.dropout` does in training, with the rate and statistics of it and another mask.

    Args:
        x: of any shape.
        rate: the share of elements to drop, 0 or more and less than 1.
    """
    result: torch.Tensor = _Dropout.apply(x, rate)  # type: ignore[no-untyped-call]  # torch types `apply` for no function
    return result


def seed_dropouts(model: nn.Module) -> None:
    """Let the dropouts of a model keep seeds and not masks, where they run on a CPU.

    On an accelerator torch draws, scales and keeps the mask in one kernel, which is quicker than three of ours.

    Args:
        model: changed in place: modules that are exactly `nn.Dropout` get another forward.
    """
    for module in model.modules():
        if type(module) is nn.Dropout and 0 < module.p < 1:
            vars(module)["forward"] = _ForwardOf(module)


def keep_masks(model: nn.Module) -> None:
    """Give the dropouts of a model torch's own forward back, as on an accelerator.

    Args:
        model: changed in place.
    """
    for module in model.modules():
        if isinstance(vars(module).get("forward"), _ForwardOf):
            del vars(module)["forward"]


class _ForwardOf:
    """The forward of a dropout module: by seed on a CPU while it trains, else its own."""

    def __init__(self, module: nn.Dropout) -> None:
        self._module = module

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._module.training and x.device.type == "cpu" and not self._module.inplace:
            return seeded_dropout(x, self._module.p)
        return nn.Dropout.forward(self._module, x)
