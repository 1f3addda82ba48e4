"""4-bit weights and 8-bit or paged AdamW; the only importer of bitsandbytes."""

from collections.abc import Iterable
from types import ModuleType
from typing import Any, cast

import torch
from torch import nn

from ftkit.config import OptimizerConfig, Qlora
from ftkit.errors import DependencyError, ModelError


def quantize(model: nn.Module, method: Qlora, dtype: torch.dtype, keep: Iterable[str]) -> None:
    """Replace the linear layers of a model, in place, by 4-bit ones.

    Embeddings, norms and the modules in `keep` stay as they are: nothing is upcast. The packed weights are stored in
    the compute dtype, so that ZeRO-3 can partition them like any other (bnb's `quant_storage`).

    Args:
        model: with weights on the device where they shall be quantized, or on `meta`.
        method: the 4-bit type.
        dtype: what the layers compute in.
        keep: names of modules that are not to be quantized, with all below them.

    Raises:
        ModelError: the model has no linear layer.
        DependencyError: bitsandbytes is missing.
    """
    kept = tuple(keep)
    linear = [
        (name, module)
        for name, module in model.named_modules()
        if is_linear(module) and not any(name == one or name.startswith(f"{one}.") for one in kept)
    ]
    if not linear:
        raise ModelError(f"{type(model).__name__} has no linear layer to quantize; choose method lora")
    for name, module in linear:
        model.set_submodule(name, _linear_4bit(module, method, dtype))
    # PEFT asks this attribute which kind of adapter layer fits (peft/tuners/lora/bnb.py, dispatch_bnb_4bit).
    cast(Any, model).is_loaded_in_4bit = True


def is_linear(module: nn.Module) -> bool:
    """Return whether a module multiplies by one weight matrix: a linear layer, or GPT-2's transposed Conv1D."""
    return type(module) is nn.Linear or type(module).__name__ == "Conv1D"


def build_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return an AdamW of bitsandbytes: moments in 8 bits, or paged, or both.

    Args:
        groups: parameter groups with their own `weight_decay`.
        config: the optimizer section; its name chooses.

    Returns:
        The optimizer. Without a GPU a paged one keeps its moments in ordinary memory.
    """
    library = _library()
    kind = {
        "adamw_8bit": library.optim.AdamW8bit,
        "paged_adamw": library.optim.PagedAdamW32bit,
        "paged_adamw_8bit": library.optim.PagedAdamW8bit,
    }[config.name]
    optimizer = kind(groups, lr=0.0, betas=config.betas, eps=config.epsilon, weight_decay=config.weight_decay)
    return cast(torch.optim.Optimizer, optimizer)


def _linear_4bit(module: nn.Module, method: Qlora, dtype: torch.dtype) -> nn.Module:
    """Return the 4-bit twin of a linear layer; Conv1D holds its weight as [in, out] and is transposed."""
    library = _library()
    weight = cast(torch.Tensor, module.weight)
    weight = weight.t().contiguous() if type(module).__name__ == "Conv1D" else weight
    num_outputs, num_inputs = weight.shape
    with torch.device("meta"):
        new: nn.Module = library.nn.Linear4bit(
            num_inputs,
            num_outputs,
            bias=module.bias is not None,
            compute_dtype=dtype,
            compress_statistics=method.double_quantization,
            quant_type=method.quantization,
            quant_storage=dtype,
        )
    new.weight = library.nn.Params4bit(
        weight.detach(),
        requires_grad=False,
        compress_statistics=method.double_quantization,
        quant_type=method.quantization,
        quant_storage=dtype,
        module=new,
    )
    new.bias = module.bias
    # Moving to a device is what quantizes (bitsandbytes/nn/modules.py, Params4bit.to).
    return new if weight.is_meta else new.to(weight.device)


def _library() -> ModuleType:
    try:
        import bitsandbytes
    except ImportError:
        raise DependencyError("4-bit weights and 8-bit AdamW need bitsandbytes: pip install bitsandbytes") from None
    return bitsandbytes
