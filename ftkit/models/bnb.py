"""4-bit weights and 8-bit or paged AdamW; the only importer of bitsandbytes."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, cast

import torch
from torch import nn

from ftkit.config.training import OptimizerConfig
from ftkit.errors import DependencyError, ModelError
from ftkit.models import foreign
from ftkit.models.left_out import left_out, mark, placeholder


@dataclass(frozen=True)
class Packing:
    """The format that weights are packed in.

    Attributes:
        quant_type: `nf4` or `fp4`.
        is_double: whether the quantization constants are quantized too.
        dtype: what the layers compute in.
    """

    quant_type: str
    is_double: bool
    dtype: torch.dtype


def quantize(model: nn.Module, packing: Packing, keep: Iterable[str]) -> None:
    """Replace the linear layers of a model, in place, by 4-bit ones.

    Embeddings, norms and the modules in `keep` stay as they are: nothing is upcast. The packed weights are stored in
    the compute dtype, so that ZeRO-3 can partition them like any other (bnb's `quant_storage`).

    Args:
        model: with weights on the device where the quantized ones shall be, or on `meta`.
        packing: how weights are packed.
        keep: names of modules that are not to be quantized, with all below them.

    Raises:
        ModelError: the model has no linear layer.
        DependencyError: bitsandbytes is missing.
    """
    kept = tuple(keep)
    names = [
        name
        for name, module in model.named_modules()
        if is_linear(module) and not any(name == one or name.startswith(f"{one}.") for one in kept)
    ]
    if not names:
        raise ModelError(f"{type(model).__name__} has no linear layer to quantize; choose method lora")
    for name in names:  # by name: a list of the layers would keep all of them whole until the last is packed
        model.set_submodule(name, _linear_4bit(model.get_submodule(name), packing))
    foreign.say_loaded_in_4bit(model)


def is_linear(module: nn.Module) -> bool:
    """Return whether a module multiplies by one weight matrix and adds a bias, in 4 bits or not.

    By the class itself: others that derive from a linear layer do something else, such as choose experts.
    """
    return type(module) is nn.Linear or type(module).__name__ in foreign.LINEAR


def matrix_of(layer: nn.Module) -> torch.Tensor:
    """Return the weight of a linear layer as [out, in]: a view, or the unpacked numbers of a 4-bit one.

    Args:
        layer: of a class that `is_linear` knows.
    """
    weight = cast(torch.Tensor, layer.weight)
    state = getattr(weight, "quant_state", None)
    if state is not None:
        return unpacked(weight, state)
    return weight.t() if foreign.is_conv1d(layer) else weight


def packed_parameter(weight: torch.Tensor, packing: Packing, module: nn.Module) -> nn.Parameter:
    """Return a weight of any shape in 4 bits.

    Args:
        weight: on the device where the packed one shall be; on `meta` it is not packed yet, a placeholder stays one.
        packing: how.
        module: gets the constants as `quant_state`, as the weight itself does.
    """
    if left_out(weight) is not None:
        return _packed_placeholder(weight, packing, module)
    new = _params_4bit(weight, packing, module)
    # Moving to a device is what quantizes (bitsandbytes/nn/modules.py, Params4bit.to).
    return cast(nn.Parameter, new if weight.is_meta else new.to(packer(weight.device)).to(weight.device))


def packed_tensors(weight: torch.Tensor, like: Any) -> tuple[torch.Tensor, ...]:
    """Return the packed values of a weight and its constants, in the order of `state_tensors`.

    Args:
        weight: contiguous, on the device where the packed one shall be.
        like: a 4-bit weight, or the placeholder for one, which says how.
    """
    values, state = _library().functional.quantize_4bit(
        weight.to(packer(weight.device)),
        blocksize=like.blocksize,
        compress_statistics=like.compress_statistics,
        quant_type=like.quant_type,
        quant_storage=like.quant_storage,
    )
    return tuple(one.to(weight.device) for one in (values, *state_tensors(state).values()))


def packer(device: torch.device) -> torch.device:
    """Return where weights are packed: on an accelerator, where sixteen cores took a minute for 8 billion of them."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return device if accelerator is None or device.type != "cpu" else accelerator


def unpacked(packed: torch.Tensor, state: Any) -> torch.Tensor:
    """Return the whole weight of packed values and their constants."""
    whole: torch.Tensor = _library().functional.dequantize_4bit(packed, state)
    return whole


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


def pack_without_values(parameter: Any, weight: torch.Tensor) -> nn.Parameter:
    """Return the 4-bit weight that quantizing would make, its values left open; for plans.

    Args:
        parameter: a 4-bit weight that has not been quantized.
        weight: [out, in] an empty tensor of its shape, which says where the new ones go.

    Returns:
        The packed weight with its constants: two values in a byte, an fp32 scale for each block of 64, itself in 8 bits
        with a second scale for each 256 where statistics are compressed (Dettmers et al. 2023; quantize_4bit).
    """
    library = _library()
    state_type = library.functional.QuantState
    elements, blocksize = weight.numel(), parameter.blocksize
    blocks = -(-elements // blocksize)
    packed = weight.new_empty((-(-elements // 2) // parameter.quant_storage.itemsize, 1), dtype=parameter.quant_storage)
    constants: dict[str, Any] = {"absmax": weight.new_empty(blocks, dtype=torch.float32)}
    if parameter.compress_statistics:
        second = state_type(
            absmax=weight.new_empty(-(-blocks // 256), dtype=torch.float32),
            code=weight.new_empty(256, dtype=torch.float32),
            blocksize=256,
            dtype=torch.float32,
        )
        constants = {
            "absmax": weight.new_empty(blocks, dtype=torch.uint8),
            "offset": weight.new_empty((), dtype=torch.float32),
            "state2": second,
        }
    state = state_type(
        shape=weight.shape,
        dtype=weight.dtype,
        blocksize=blocksize,
        code=weight.new_empty(16, dtype=torch.float32),
        quant_type=parameter.quant_type,
        **constants,
    )
    parameter.module.quant_state = state
    # A fake tensor has a class of its own, so what makes it a 4-bit weight is set on an ordinary parameter.
    new = nn.Parameter(packed, requires_grad=False)
    return foreign.as_packed(new, parameter, state)


def unpack_without_values(parameter: Any) -> torch.Tensor | None:
    """Return a tensor for the whole weight that a 4-bit one without values stands for.

    Args:
        parameter: on `meta` and not packed yet, or what `pack_without_values` returned.

    Returns:
        [out, in] without values; None where the parameter is not such a weight, so that it can be read as any other.
    """
    if foreign.is_packed(parameter):
        return torch.empty_like(parameter.data) if parameter.is_meta else None
    state = getattr(parameter, "quant_state", None)
    return None if state is None else unpacked(parameter.data, state)


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Let the optimizers start where tensors have no values, and none be paged, which only a GPU's driver can do.

    The table of 8-bit numbers is left open. A paged optimizer counts as if all that it holds were on the device.
    """
    optimizers = _library().optim
    with (
        foreign.without_dynamic_map(_library()),
        foreign.patched(optimizers, "PagedAdamW32bit", optimizers.AdamW32bit),
        foreign.patched(optimizers, "PagedAdamW8bit", optimizers.AdamW8bit),
    ):
        yield


def state_tensors(state: Any) -> dict[str, torch.Tensor]:
    """Return the constants of a 4-bit weight by name."""
    found = {"absmax": state.absmax, "code": state.code}
    if state.nested:
        found |= {"offset": state.offset, "state2.absmax": state.state2.absmax, "state2.code": state.state2.code}
    return found


def least_bytes(weight: torch.Tensor) -> int:
    """Return the bytes of a weight; of one that is to become 4-bit, half a byte for each number, without constants.

    Args:
        weight: with values, or on `meta`, where nothing is packed yet.
    """
    is_to_come = foreign.is_packed(weight) and weight.is_meta
    return weight.numel() // 2 if is_to_come else weight.numel() * weight.itemsize


def set_state_tensors(state: Any, tensors: Sequence[torch.Tensor]) -> None:
    """Put other tensors in the place of the constants of a 4-bit weight.

    Args:
        state: of the weight; changed in place.
        tensors: in the order of `state_tensors`.
    """
    for name, tensor in zip(state_tensors(state), tensors, strict=True):
        owner = state.state2 if name.startswith("state2.") else state
        setattr(owner, name.removeprefix("state2."), tensor)


def _linear_4bit(module: nn.Module, packing: Packing) -> nn.Module:
    """Return the 4-bit twin of a linear layer; Conv1D holds its weight as [in, out] and is transposed."""
    library = _library()
    weight = cast(torch.Tensor, module.weight)
    weight = _transposed(weight) if foreign.is_conv1d(module) else weight
    num_outputs, num_inputs = weight.shape
    with torch.device("meta"):
        new: Any = library.nn.Linear4bit(
            num_inputs,
            num_outputs,
            bias=module.bias is not None,
            compute_dtype=packing.dtype,
            compress_statistics=packing.is_double,
            quant_type=packing.quant_type,
            quant_storage=packing.dtype,
        )
    new.weight = packed_parameter(weight, packing, new)
    new.bias = module.bias
    foreign.keep_layout(new)
    return cast(nn.Module, new)


def _transposed(weight: torch.Tensor) -> torch.Tensor:
    """Return a matrix the other way round, with memory of its own; a placeholder stays one."""
    found = left_out(weight)
    if found is None:
        return weight.t().contiguous()
    turned = weight.detach().t()
    mark(turned, replace(found, is_transposed=True))
    return turned


def _packed_placeholder(weight: torch.Tensor, packing: Packing, module: nn.Module) -> nn.Parameter:
    """Return a 4-bit weight with its constants, all of them placeholders, for the placeholder of a whole weight."""
    found = left_out(weight)
    assert found is not None
    whole = torch.empty(weight.shape, dtype=weight.dtype, device="meta")
    packed = pack_without_values(_params_4bit(whole, packing, module), whole)
    state = cast(Any, packed).quant_state
    constants = [placeholder(one.shape, one.dtype, weight.device) for one in state_tensors(state).values()]
    set_state_tensors(state, constants)
    new = _params_4bit(placeholder(packed.shape, packed.dtype, weight.device), packing, module)
    new.quant_state, new.bnb_quantized = state, True
    mark(new, found)
    return cast(nn.Parameter, new)


def _params_4bit(weight: torch.Tensor, packing: Packing, module: nn.Module) -> Any:
    """Return a 4-bit weight that is packed when it is moved to a device."""
    return _library().nn.Params4bit(
        weight.detach(),
        requires_grad=False,
        compress_statistics=packing.is_double,
        quant_type=packing.quant_type,
        quant_storage=packing.dtype,
        module=module,
    )


def preload() -> None:
    """Import bitsandbytes, if it is there, before another library triggers its slow import; see `compiling_later`."""
    with contextlib.suppress(DependencyError):
        _library()


def _library() -> ModuleType:
    try:
        with foreign.compiling_later():
            import bitsandbytes
    except ImportError:
        raise DependencyError("4-bit weights and 8-bit AdamW need bitsandbytes: pip install bitsandbytes") from None
    return bitsandbytes


def hidden_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a model that are neither parameters nor buffers: the constants of 4-bit weights."""
    found: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            found |= {f"{name}.{key}": tensor for key, tensor in state_tensors(state).items()}
    return found
