"""Names of torch and transformers that a trace replaces, or that are not public.

Each is a function that says in which version and file it was read; `tests/contracts/test_foreign.py` asks the installed
libraries for each, so that an upgrade names what has gone.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
    in_kernel_invocation_manager,
)
from torch.nn import functional

from ftkit.machine.foreign import TorchSays
from ftkit.models.foreign import patched

# --- torch ------------------------------------------------------------------------------------------------------------


def fake_mode() -> FakeTensorMode:
    """Return a mode in which tensors have no values and say that they are on a CPU (torch 2.13, _subclasses)."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def is_fake(value: object) -> bool:
    """Return whether something is a fake tensor, and not one whose value torch remembers, as it does of constants."""
    return type(value) is FakeTensor and value.constant is None


def fake_of(mode: FakeTensorMode, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a fake tensor that says it is on a device, over one on `meta` (torch 2.13, FakeTensor.__new__)."""
    with without_modes():
        return FakeTensor(mode, tensor, device)


def below_fake(mode: FakeTensorMode, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Return what an operator makes of fake tensors as tensors on `meta`, which they are inside.

    `in_kernel_invocation_manager` (torch 2.13, _subclasses/fake_tensor.py), as torch itself calls operators on them.
    """
    with in_kernel_invocation_manager(mode):
        made: torch.Tensor = operator(*args, **kwargs)
    return made


def without_modes() -> AbstractContextManager[None]:
    """Let operators run as if no mode was on: `_DisableTorchDispatch` (torch 2.13, csrc/Module.cpp)."""
    guard: AbstractContextManager[None] = torch._C._DisableTorchDispatch()
    return guard


def meta_cannot(error: Exception) -> bool:
    """Return whether an error is one of tensors on `meta`: no such operator there, or a value that was asked for.

    Whatever else is raised, such as shapes that do not match, is raised on every device.
    """
    is_theirs = isinstance(error, RuntimeError | TypeError) and TorchSays.ON_META in str(error)
    return is_theirs or isinstance(error, NotImplementedError)


def needs_values(error: Exception) -> bool:
    """Return whether an error is one of fake tensors whose values were asked for (torch 2.13, _subclasses)."""
    kinds = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)
    return isinstance(error, kinds) or (isinstance(error, RuntimeError) and TorchSays.NO_NUMPY in str(error))


@contextmanager
def dropout_by(dropout: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Let another function drop out (torch 2.13, nn/functional.py, dropout; torch.dropout of csrc).

    Args:
        dropout: takes the tensor, the share and whether it trains.
    """
    with (
        patched(functional, "dropout", dropout),
        patched(torch, "dropout", lambda tensor, share, train: dropout(tensor, share, train)),
    ):
        yield


def attention_by(attention: Callable[..., torch.Tensor]) -> AbstractContextManager[None]:
    """Let another function attend: `scaled_dot_product_attention` (torch 2.13, nn/functional.py)."""
    return patched(functional, "scaled_dot_product_attention", attention)


@contextmanager
def softmax_by(softmax: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Let another function take `softmax` and `log_softmax`: nn/functional.py, torch's own and a tensor's (torch 2.13).

    Args:
        softmax: takes torch's own function first, and then its arguments.
    """
    with ExitStack() as stack:
        for owner in (functional, torch, torch.Tensor):
            for name in ("softmax", "log_softmax"):
                stack.enter_context(patched(owner, name, _calling(softmax, getattr(owner, name))))
        yield


def _calling(softmax: Callable[..., torch.Tensor], original: Callable[..., torch.Tensor]) -> Callable[..., Any]:
    def call(*args: Any, **settings: Any) -> torch.Tensor:  # a function, which a class binds to its tensor
        return softmax(original, *args, **settings)

    return call


def fused_adam_anywhere() -> AbstractContextManager[None]:
    """Let the fused optimizer, which CUDA has, take tensors of any device, also of `meta`, which it refuses by name.

    `_device_dtype_check_for_fused` (torch 2.13, optim/optimizer.py), as optim/adam.py has imported it.
    """
    # torch.optim hides the module's own name behind a function.
    return patched(import_module("torch.optim.adam"), "_device_dtype_check_for_fused", lambda *_, **__: None)


def every_update_taken() -> AbstractContextManager[None]:
    """Let torch's loss scaler update without asking whether a gradient is infinite, which needs values.

    `GradScaler._maybe_opt_step` (torch 2.13, amp/grad_scaler.py) asks for every optimizer but the fused one. Another
    dtype without a scaler would have other attention kernels on cards before Ampere.
    """
    return patched(
        torch.amp.GradScaler,
        "_maybe_opt_step",
        lambda _, optimizer, __, *args, **kwargs: optimizer.step(*args, **kwargs),
    )


def stay(model: nn.Module) -> None:
    """Keep a model where it is: tensors without values cannot be moved (torch 2.13, nn/modules/module.py, to)."""
    vars(model)["to"] = lambda _: model


def schema(operator: Any) -> Any:
    """Return an operator's arguments and results, with what they share: `_schema` (torch 2.13, _ops.py)."""
    return operator._schema


def changes_layout(operator: Any) -> bool:
    """Return whether an operator changes the shape or the storage of a tensor that is there (torch 2.13, _ops.py)."""
    return torch.Tag.inplace_view in operator.tags


# --- transformers -----------------------------------------------------------------------------------------------------


def _is_there(package: str, module: str) -> bool:
    """Return whether a package has a module; one that is a file has none."""
    spec = find_spec(package)
    return bool(spec and spec.submodule_search_locations) and find_spec(f"{package}.{module}") is not None


@contextmanager
def grouped_products(*, by_torch: bool = True) -> Iterator[None]:
    """Multiply experts as a device does: by torch's product of groups, of any type, or by transformers' own loop.

    transformers 5.23, integrations/moe.py, `_can_use_grouped_mm`, which asks a device that is not there. Tensors
    without values would take bf16 alone: `_meta_grouped_mm_common` (torch 2.13, _meta_registrations.py) repeats the
    rules of a kernel of Hopper's, and what has none is multiplied one group after another, into a result of one layout.

    Args:
        by_torch: whether the device has torch's product: a CPU, and CUDA from compute capability 8.0 on.
    """
    from torch import _meta_registrations

    if not _is_there("transformers.integrations", "moe"):  # before 5.0 each model had a loop of its own
        yield
        return
    from transformers.integrations import moe

    common = _meta_registrations._meta_grouped_mm_common

    def of_any_type(left: Any, right: Any, offs: Any = None, out_dtype: Any = None, **others: Any) -> Any:
        if left.dtype == torch.bfloat16:
            return common(left, right, offs=offs, out_dtype=out_dtype, **others)
        return _meta_registrations._create_grouped_mm_output_tensor(left, right, offs, out_dtype)

    with (
        patched(moe, "_can_use_grouped_mm", lambda *_: by_torch)
        if hasattr(moe, "_can_use_grouped_mm")
        else nullcontext(),
        patched(_meta_registrations, "_meta_grouped_mm_common", of_any_type),
    ):
        yield


def unpacked_batches() -> AbstractContextManager[None]:
    """Answer for transformers what it would read from values: no sequence is packed of several.

    With tensors without values it supposes that they may be, and then makes a mask that training does not have:
    `find_packed_sequence_indices` (transformers 5.23, masking_utils.py; versions before 4.53 do not ask).
    """
    if find_spec("transformers.masking_utils") is None:
        return nullcontext()
    from transformers import masking_utils

    return patched(masking_utils, "find_packed_sequence_indices", lambda _: None)


def taken_for_fake() -> AbstractContextManager[None]:
    """Let transformers take every tensor for one without values, which it does not ask for any.

    `is_fake_tensor` (transformers 5.23, utils/import_utils.py).
    """
    from transformers.utils import import_utils

    return patched(import_utils, "is_fake_tensor", lambda _: True)
