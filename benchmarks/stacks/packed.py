"""4-bit linear layers of a bitsandbytes of the time, whose native library cannot compute without values.

The library's own layers and its own autograd function run; only the calls into its compiled half do nothing. So what
each version keeps for the backward is what that version's code keeps: the input of every layer up to 0.42, nothing of
it since 0.43 (bitsandbytes/autograd/_functions.py, MatMul4Bit).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import nn

BLOCK = 64
"""Weights that share a scale (bitsandbytes/nn/modules.py, Params4bit)."""
STATISTICS_BLOCK = 256
"""Scales that share a scale, under double quantization (functional.py, quantize_4bit)."""


class _NoLibrary:
    """A compiled library whose functions only touch what they would write, the last of their tensors."""

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> None:
            [one for one in args if isinstance(one, torch.Tensor)][-1].zero_()

        return call


@contextmanager
def no_library() -> Iterator[None]:
    """Let bitsandbytes' Python run without its compiled half."""
    from bitsandbytes import functional

    nothing: dict[str, Any] = {"lib": _NoLibrary(), "get_ptr": lambda tensor: tensor}
    nothing |= dict.fromkeys(("pre_call", "post_call", "is_on_gpu"), lambda *_: None)
    with mock.patch.multiple(functional, **nothing):
        yield


def replace_linear(model: nn.Module, dtype: torch.dtype, *, double: bool, kind: str = "nf4") -> None:
    """Put 4-bit layers in the place of every linear layer of a model on `meta`.

    Args:
        model: changed in place.
        dtype: what the layers compute in.
        double: whether the scales are quantized too.
        kind: `nf4` or `fp4`.
    """
    from bitsandbytes.nn import Linear4bit

    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            sizes = module.in_features, module.out_features, module.bias is not None
            with torch.device("meta"):
                layer = Linear4bit(*sizes, compute_dtype=dtype, compress_statistics=double, quant_type=kind)
            layer.weight = nn.Parameter(module.weight.data, requires_grad=False)
            layer.bias = module.bias
            vars(layer)["double"] = double
            model.set_submodule(name, layer)


def quantize(model: nn.Module, dtype: torch.dtype, *, kind: str = "nf4") -> Iterator[tuple[str, torch.Tensor]]:
    """Pack the weights of the 4-bit layers, one after the other as they were loaded; inside `recording`, before `fake`.

    Args:
        model: after `replace_linear`, its weights on `meta` or packed.
        dtype: of the weights that are quantized: what unpacking gives.
        kind: `nf4` or `fp4`.

    Yields:
        Names and tensors of the constants that unpacking needs.
    """
    from bitsandbytes.nn import Linear4bit

    for name, layer in model.named_modules():
        if isinstance(layer, Linear4bit):
            shape = torch.Size((layer.out_features, layer.in_features))
            wide = torch.empty(shape, dtype=dtype)
            state, constants = _state(shape, dtype, kind, double=vars(layer)["double"])
            weight: Any = nn.Parameter(torch.empty((shape.numel() + 1) // 2, 1, dtype=torch.uint8), requires_grad=False)
            weight.quant_state = state
            layer.weight = weight
            del wide
            yield from ((f"{name}.weight.{key}", tensor) for key, tensor in constants.items())


def _state(shape: torch.Size, dtype: torch.dtype, kind: str, *, double: bool) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return what `quantize_4bit` returns beside the packed weight, and the tensors in it."""
    from bitsandbytes import functional

    blocks = -(-shape.numel() // BLOCK)
    scales = torch.empty(blocks, dtype=torch.uint8 if double else torch.float32)
    code = torch.empty(16)
    found = {"absmax": scales, "code": code}
    nested = offset = None
    if double:
        offset, second = torch.empty(()), torch.empty(-(-blocks // STATISTICS_BLOCK))
        table = torch.empty(256)
        found |= {"offset": offset, "nested_absmax": second, "nested_code": table}
        nested = _second_state(functional, second, table, scales.shape)
    if hasattr(functional, "QuantState"):
        made: Any = functional.QuantState(scales, shape, code, BLOCK, kind, dtype, offset, nested)
    else:  # before 0.42: a list
        made = [scales, shape, dtype, BLOCK, [offset, nested] if double else None, kind, code]
    return made, found


def _second_state(functional: Any, scales: torch.Tensor, table: torch.Tensor, shape: torch.Size) -> Any:
    if hasattr(functional, "QuantState"):
        return functional.QuantState(
            scales, shape, code=table, blocksize=STATISTICS_BLOCK, dtype=torch.float32, quant_type=None
        )
    return [scales, table, STATISTICS_BLOCK, False, torch.float32, None, None]


@contextmanager
def no_updates() -> Iterator[None]:
    """Let the updates of bitsandbytes' optimizers do nothing: their kernels work in place, and allocate nothing."""
    from bitsandbytes import functional

    def nothing(*_: Any, **__: Any) -> None:
        """Stand in for a kernel; no Mock, which would keep its arguments."""

    nothings: dict[str, Any] = dict.fromkeys(("optimizer_update_8bit_blockwise", "optimizer_update_32bit"), nothing)
    with mock.patch.multiple(functional, **nothings):
        yield


PAGED_FROM = 100_000
"""Elements from which a paged optimizer keeps its moments in managed memory, which the caching allocator does not
count (bitsandbytes/optim/optimizer.py, get_state_buffer: below 1e5 `torch.zeros_like`, else `get_paged`)."""


def paged(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return a `get_state_buffer` of bitsandbytes whose large moments are on no card.

    Of a large parameter with moments in 8 bits only the scales of their blocks are there, which are never paged
    (bitsandbytes 0.50, optim/optimizer.py, Optimizer2State.init_state: absmax1, absmax2).

    Args:
        make: what an optimizer that is not paged makes moments with.
    """

    def get_state_buffer(parameter: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return make(parameter, dtype) if parameter.numel() < PAGED_FROM else torch.empty(0, dtype=dtype)

    return get_state_buffer


class PagedAdamW(torch.optim.Optimizer):
    """bitsandbytes' paged AdamW as the caching allocator sees it: the moments of small parameters, in fp32."""

    def __init__(self, parameters: Any) -> None:
        """Start without moments."""
        super().__init__(parameters, {})

    def step(self, *_: Any) -> None:  # type: ignore[override]  # no stack gives a closure
        """Make the moments that are not there yet."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.numel() < PAGED_FROM and not self.state[parameter]:
                    moments = (torch.zeros_like(parameter, dtype=torch.float32) for _ in range(2))
                    self.state[parameter] = dict(enumerate(moments))
