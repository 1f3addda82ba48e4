"""Dropout whose mask is drawn again from a seed, and never kept.

torch keeps a mask for each dropout from the forward to the backward, and on a CPU draws it number by number. Here a
seed is kept. On a CPU, at the usual rates, what is drawn is the gap from each dropped element to the next: a geometric
number, which a table gives for 16 random bits. So an element that stays costs nothing but its copy. At high rates a
mask is drawn, with 16 bits of SFC64 (numpy) for each element. Both ways meet a rate within 2**-17. On an accelerator
torch's own generator draws a mask from the seed. Seeds come from torch's generator of the CPU, which
activation checkpointing stores and restores, so a recomputed layer draws the same mask.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ftkit.models import foreign
from ftkit.models.kernels import on_cpu

_LEVELS = 2**16
_MOST_BY_GAPS = 0.25
"""The highest rate at which gaps are drawn: from there on a mask is quicker."""


def draw_seed(tensor: torch.Tensor) -> int:
    """Return a new seed from torch's generator of the CPU; 0 for tensors without values, whose mask has none either.

    Args:
        tensor: what will be dropped from.
    """
    if not foreign.has_values(tensor):
        return 0
    return int(torch.randint(2**62, (), device="cpu"))


def dropped(tensor: torch.Tensor, rate: float, seed: int) -> torch.Tensor:
    """Return a copy of a tensor with elements set to zero; what is left is not scaled by 1 / (1 - rate).

    Args:
        tensor: of any shape.
        rate: the share of elements to drop, 0 or more and less than 1.
        seed: decides which; the same seed drops the same places.
    """
    kept = tensor.detach().clone(memory_format=torch.contiguous_format)
    drop_in_place([kept], rate, seed)
    return kept


def drop_in_place(tensors: Sequence[torch.Tensor], rate: float, seed: int) -> None:
    """Set the elements of tensors to zero that a seed drops, at the same places in each.

    Args:
        tensors: of one number of elements, contiguous; overwritten, and without a graph.
        rate: the share of elements to drop, 0 or more and less than 1.
        seed: decides which.
    """
    if draws_gaps(tensors[0], rate):
        torch.ops.ftkit.zero_dropped(tensors, rate, seed)
    else:
        kept: torch.Tensor = keep_mask(tensors[0], rate, seed)
        for tensor in tensors:
            tensor.mul_(kept.view_as(tensor))


def draws_gaps(tensor: torch.Tensor, rate: float) -> bool:
    """Return whether the places to drop are drawn, and no mask is made.

    Args:
        tensor: what will be dropped from.
        rate: the share of elements to drop.
    """
    return on_cpu.is_on_cpu(tensor) and 0 < rate <= _MOST_BY_GAPS


torch.library.define("ftkit::zero_dropped", "(Tensor(a!)[] tensors, float rate, int seed) -> ()")
"""Drops in place by gaps.

An operator of its own, so that whoever records operators sees the same on real tensors and on fake ones. Not made by
`custom_op`, whose layers for autograd take longer than drawing for a small tensor does.
"""


@torch.library.impl("ftkit::zero_dropped", "CPU")
def _zero_dropped(tensors: Sequence[torch.Tensor], rate: float, seed: int) -> None:
    places = _dropped_places(tensors[0].numel(), rate, seed)
    for tensor in tensors:
        tensor.view(-1).index_fill_(0, places, 0)


@torch.library.impl("ftkit::zero_dropped", "Meta")
def _zero_nothing(tensors: Sequence[torch.Tensor], rate: float, seed: int) -> None:
    """Do nothing: there are no values."""


def _dropped_places(num_elements: int, rate: float, seed: int) -> torch.Tensor:
    """Return the places of the elements to drop in rising order, int64."""
    # A place more than eight standard deviations above the mean would be missed: less than once in 10**14 draws.
    expected = num_elements * rate
    most = int(expected + 8 * expected**0.5 + 8)
    gaps = _gaps(rate).take(_random_bits(most, seed), mode="wrap")  # which checks no bounds
    gaps[0] -= 1  # the first place is 0 and not 1
    places = torch.from_numpy(gaps).cumsum(0)
    return places[: int(places.numpy().searchsorted(num_elements))]


def _random_bits(least: int, seed: int) -> NDArray[np.uint16]:
    """Return at least so many numbers of 16 random bits."""
    return np.random.SFC64(seed).random_raw(-(-least // 4)).view(np.uint16)


@cache
def _gaps(rate: float) -> NDArray[np.int16] | NDArray[np.int64]:
    """Return the gap between dropped places for each value of 16 random bits, 1 or more, [2**16].

    The inverse of a geometric distribution, read at the middle of each of 2**16 equal shares. The mean of the table is
    1 / rate, so the rate is met; the longest gaps, of a probability below 2**-17, are cut off.
    """
    shares = (np.arange(_LEVELS) + 0.5) / _LEVELS
    gaps: NDArray[np.float64] = np.ceil(np.log1p(-shares) / np.log1p(-rate))
    # A small table stays in a core's cache.
    return gaps.astype(np.int16) if gaps.max() < 2**15 else gaps.astype(np.int64)


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
    bits = torch.from_numpy(_random_bits(tensor.numel(), seed).view(np.int16))[: tensor.numel()]
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
        return _scaled_and_dropped(x, rate, ctx.seed)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return _scaled_and_dropped(grads[0], ctx.rate, ctx.seed), None


def _scaled_and_dropped(x: torch.Tensor, rate: float, seed: int) -> torch.Tensor:
    scaled = x.contiguous() * (1 / (1 - rate))  # one pass, where a copy that is then scaled takes two
    drop_in_place([scaled], rate, seed)
    return scaled


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
