"""CUDA's autocast for tensors of the CPU.

The lists of what runs in half precision are the same for both devices (matrix products, linear layers, attention); the
lists of what runs in fp32 are not: CUDA's has softmax, norms, powers and sums, the CPU's has not (torch,
autocast_mode.cpp and "CUDA Ops that can autocast to float32" in torch's documentation of amp). Here those of CUDA's
that a transformer calls are registered for the CPU too. The cache of cast weights is torch's own.

Attention is traced by a function of ftkit's (`ftkit.plan.tracing.attention`), which stands where torch would cast: here
it is given what torch's kernels get. A query and a key that a rotation in fp32 has made fp32 are in half precision
before a kernel is chosen; beside values in half precision, none but plain math would take them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch

from benchmarks.stacks.traced import patched
from ftkit.plan.tracing import attention

CAST = (
    "pow.Tensor_Scalar",
    "pow.Tensor_Tensor",
    "pow.Scalar",
    "rsqrt",
    "exp",
    "log",
    "log1p",
    "log2",
    "reciprocal",
    "softplus",
    "layer_norm",
    "group_norm",
    "rms_norm",
    "cosine_similarity",
    "logsumexp",
)
"""Operators whose floating arguments CUDA's autocast makes fp32 (`rms_norm`: since torch 2.8)."""
WITH_DTYPE = ("sum", "sum.dim_IntList", "cumsum", "cumprod")
"""Operators that CUDA's autocast asks for a result in fp32 where nobody asked for another."""


@contextmanager
def cuda_lists() -> Iterator[None]:
    """Let the CPU's autocast cast what CUDA's does, and be what is meant where no device is said."""
    is_enabled, dtype_of = torch.is_autocast_enabled, torch.get_autocast_dtype
    library = torch.library.Library("aten", "IMPL", "AutocastCPU")
    try:
        for name in CAST:
            library.impl(name, _in_fp32(_operator(name)))
        for name in WITH_DTYPE:
            library.impl(name, _asking_for_fp32(_operator(name)))
        library.impl("softmax.int", _softmax(_operator("softmax.int"), torch.ops.aten._softmax.default))
        library.impl("log_softmax.int", _softmax(_operator("log_softmax.int"), torch.ops.aten._log_softmax.default))
        with patched(
            mock.patch.object(torch, "is_autocast_enabled", lambda device="cpu": is_enabled(device)),
            mock.patch.object(torch, "get_autocast_gpu_dtype", partial(dtype_of, "cpu")),
            mock.patch.object(attention, "attend", _attention(attention.attend, is_enabled, dtype_of)),
        ):
            yield
    finally:
        library._destroy()


def _operator(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def _is_half(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16)


def _outside(call: Callable[[], Any]) -> Any:
    """Call below autocast."""
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)):
        return call()


def _attention(
    attend: Callable[..., torch.Tensor], is_enabled: Callable[[str], bool], dtype_of: Callable[[str], torch.dtype]
) -> Callable[..., torch.Tensor]:
    """Let attention have query, key, value and summand in autocast's type, and choose its kernel below autocast.

    torch, aten/src/ATen/autocast_mode.h: AT_FORALL_LOWER_PRECISION_FP has scaled_dot_product_attention; `cached_cast`
    takes every floating tensor but those in fp64.
    """

    def cast(value: Any, dtype: torch.dtype) -> Any:
        is_cast = isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64
        return value.to(dtype) if is_cast else value

    def attend_below(*args: Any, **settings: Any) -> torch.Tensor:
        if not is_enabled("cpu"):
            return attend(*args, **settings)
        dtype = dtype_of("cpu")
        given = [cast(value, dtype) for value in args]
        named = {key: cast(value, dtype) for key, value in settings.items()}
        out: torch.Tensor = _outside(lambda: attend(*given, **named))
        return out

    return attend_below


def _in_fp32(operator: Any) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        def call() -> Any:
            cast = [value.float() if _is_half(value) else value for value in args]
            return operator(
                *cast, **{key: value.float() if _is_half(value) else value for key, value in kwargs.items()}
            )

        return _outside(call)

    return kernel


def _asking_for_fp32(operator: Any) -> Callable[..., Any]:
    def kernel(value: Any, *args: Any, dtype: Any = None) -> Any:
        wanted = torch.float32 if dtype is None and _is_half(value) else dtype
        return _outside(lambda: operator(value, *args, dtype=wanted))

    return kernel


def _softmax(operator: Any, fused: Any) -> Callable[..., Any]:
    """CUDA reads fp16 and writes fp32 in one kernel; of other types it makes a copy first (SoftMax.cpp)."""

    def kernel(value: Any, dim: int, dtype: Any = None) -> Any:
        wanted = torch.float32 if dtype is None and _is_half(value) else dtype
        if value.dtype == torch.float16 and wanted == torch.float32:
            return _outside(lambda: fused(value, dim, True))
        return _outside(lambda: operator(value, dim, wanted))

    return kernel
