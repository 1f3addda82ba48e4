"""4-bit linear layers of bitsandbytes and of GPTQ without their kernels, which have none for fake tensors.

What bitsandbytes' autograd function keeps for the backward is its own, of the version that is installed; only the
unpacking of a weight is stood in for, by tensors of the same sizes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import nn

from benchmarks.stacks import traced
from benchmarks.stacks.hf import HEADS
from ftkit.models.foreign import say_loaded_in_4bit


def quantize(model: nn.Module, *, keep: tuple[str, ...] = HEADS, **options: Any) -> None:
    """Put bitsandbytes' 4-bit layers in the place of a model's linear ones, on `meta`.

    The model says so, as transformers lets it (quantizers/quantizer_bnb_4bit.py): else PEFT adapts the layers as if
    they were not packed, and makes their inputs fp32 under autocast too (peft/tuners/lora/bnb.py, dispatch_bnb_4bit).

    Args:
        model: changed in place.
        keep: last names of the layers that stay.
        options: of `Linear4bit`: compute_dtype, quant_type, compress_statistics, quant_storage.
    """
    import bitsandbytes

    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] not in keep:
            dtype = module.weight.dtype
            new = bitsandbytes.nn.Linear4bit(
                module.in_features, module.out_features, module.bias is not None, device="meta", **options
            )
            new.to(dtype)
            _replace(model, name, new)
    say_loaded_in_4bit(model)


@contextmanager
def unpacking() -> Iterator[None]:
    """Stand in for bitsandbytes' unpacking: its scales in fp32 while it runs, and the whole weight."""
    import bitsandbytes
    from bitsandbytes import functional

    def dequantize(packed: Any, quant_state: Any = None, *_: Any, **__: Any) -> torch.Tensor:
        scales = torch.empty(quant_state.absmax.shape, dtype=torch.float32)
        out = torch.empty(quant_state.shape, dtype=quant_state.dtype)
        del scales
        return out.t() if packed.shape[0] == 1 else out

    def again(_: type, data: torch.Tensor, **__: Any) -> torch.Tensor:
        """Sharding takes a weight's class away, and the layer puts it on again; a fake tensor keeps its own."""
        vars(data)["_is_param"] = True
        return data

    with traced.patched(
        mock.patch.object(functional, "dequantize_4bit", dequantize),
        mock.patch.object(bitsandbytes.nn.Params4bit, "__new__", again),
    ):
        yield


class GptqLinear(nn.Module):
    """A GPTQ layer as AutoGPTQ's triton kernels have it: packed weights and zeros, a scale for each group.

    Args:
        inputs, outputs: of the layer.
        group: rows that share a scale; -1: all of them.
        storage: the dtype that packed weights are kept in as parameters, for FSDP; None: buffers of int32.
    """

    def __init__(self, inputs: int, outputs: int, group: int, storage: torch.dtype | None) -> None:
        """Make the tensors on `meta`."""
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        group = inputs if group == -1 else group
        packed = {"qweight": (inputs // 8, outputs), "qzeros": (inputs // group, outputs // 8)}
        for name, shape in packed.items():
            tensor = torch.empty(shape, dtype=torch.int32, device="meta")
            if storage is None:
                self.register_buffer(name, tensor)
            else:
                self.register_parameter(name, nn.Parameter(tensor.view(storage), requires_grad=False))
        self.register_buffer("scales", torch.empty(inputs // group, outputs, dtype=torch.float16, device="meta"))
        self.register_buffer("g_idx", torch.empty(inputs, dtype=torch.int32, device="meta"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [..., outputs] for [..., inputs]."""
        weights = (self.qweight, self.scales, self.qzeros, self.g_idx)
        out: torch.Tensor = _Gptq.apply(x.reshape(-1, self.in_features), *weights, self.out_features)
        return out.half().reshape(*x.shape[:-1], self.out_features)


class _Gptq(torch.autograd.Function):
    """Unpack the whole weight, multiply, keep the packed one (fms_acceleration_peft, triton_utils/dequant.py)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, *weights: Any) -> torch.Tensor:
        """Multiply by the unpacked weight."""
        *tensors, outputs = weights
        ctx.save_for_backward(*tensors)
        ctx.shape = (x.shape[-1], outputs)
        return x @ torch.empty(ctx.shape, dtype=torch.float16)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        """Unpack again."""
        return grad @ torch.empty(ctx.shape, dtype=torch.float16).t(), None, None, None, None, None


def quantize_gptq(model: nn.Module, storage: torch.dtype | None, *, group: int) -> None:
    """Put GPTQ layers in the place of a model's linear ones, on `meta`; see `GptqLinear`."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] not in HEADS:
            _replace(model, name, GptqLinear(module.in_features, module.out_features, group, storage))


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, new)
