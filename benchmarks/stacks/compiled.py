"""torch.compile on tensors without values: the compiler itself says what is kept, which buffers there are, and when.

Dynamo, AOTAutograd with its min-cut partitioner (torch/_functorch/partitioners.py) and Inductor run as they are, of
the torch that is installed. What Inductor writes, which allocates, multiplies matrices, reuses and deletes
(torch/_inductor/codegen/wrapper.py), then runs below the recorder. The kernels that it fuses do nothing; the recorder
is told the bytes of what each is given and of what it makes, once each. There is no CUDA here, so that the tensors are
the CPU's; where Inductor treats these otherwise than a GPU's, it is told to do as for a GPU.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch._dynamo import config as dynamo_config
from torch._dynamo import convert_frame
from torch._functorch import config as functorch_config
from torch._inductor import config as inductor_config
from torch._inductor import ir
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.utils import fresh_cache
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from benchmarks.stacks.traced import patched
from ftkit.observe.recorder import Recorder

AS_FOR_A_GPU = {"force_pointwise_cat": True}
"""What is joined is not copied before it is read (torch/_inductor/lowering.py, cat)."""
HERE = {"force_disable_caches": True, "compile_threads": 1, "cpp.simdlen": 1}
"""Nothing is found from before, no other process compiles, and the compiler of C++ is not asked for its vectors."""
KERNEL = "compiled"
"""The name that a fused kernel has on a tape."""


@contextmanager
def compiling(*, donates: bool = True) -> Iterator[None]:
    """Let torch.compile compile for tensors without values; inside `traced.recording`.

    Args:
        donates: whether a backward may write over what its forward kept, as since torch 2.6
            (torch/_functorch/config.py, donated_buffer).
    """
    guards = torch._C._dynamo.guards
    torch._dynamo.reset()
    try:
        with patched(
            fresh_cache(),
            inductor_config.patch(AS_FOR_A_GPU | HERE),
            functorch_config.patch(donated_buffer=donates),
            dynamo_config.patch(fail_on_recompile_limit_hit=True),  # else the rest would run as if not compiled
            # On the CPU what costs much is not computed twice (torch/_inductor/ir.py, should_realize_on_reuse).
            mock.patch.object(ir, "is_cpu", _never),
            # Dynamo leaves alone what runs below a mode, such as the recorder.
            mock.patch.object(convert_frame, "any_torch_dispatch_mode_on_stack", _never),
            mock.patch.object(convert_frame, "is_in_any_mode_without_ignore_compile_internals", _never),
            # What is written calls these past all modes, and they would make real tensors.
            mock.patch.object(guards, "_empty_strided_cpu", _empty_strided),
            mock.patch.object(guards, "_reinterpret_tensor", _reinterpret),
            mock.patch.object(AsyncCompile, "cpp_pybinding", _kernel),
        ):
            yield
    finally:
        torch._dynamo.reset()


def _never(*_: Any) -> bool:
    return False


def _empty_strided(size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty_strided(size, stride, dtype=dtype)


def _reinterpret(tensor: torch.Tensor, size: Sequence[int], stride: Sequence[int], offset: int = 0) -> torch.Tensor:
    return torch.as_strided(tensor, size, stride, int(tensor.storage_offset()) + offset)


def _kernel(_: Any, __: Any, source: str) -> Callable[..., None]:
    """Stand in for the compiler of C++: the kernel writes to buffers that are there already, and so computes nothing.

    Args:
        source: of the kernel, whose first arguments are the buffers: what it reads, what it writes, and what it does
            both to. A buffer that is read by index, as a table of angles is, counts whole.
    """
    times = [1 + (kind == "in_out") for kind in re.findall(r"\* (in_out|in|out)_ptr\d+[,)]", source)]
    return partial(_run, times)


def _run(times: Sequence[int], *arguments: Any) -> None:
    moved = sum(number * one.numel() * one.element_size() for number, one in zip(times, arguments, strict=False))
    for mode in _get_current_dispatch_mode_stack():
        if isinstance(mode, Recorder):
            mode.ran(KERNEL, moved)
