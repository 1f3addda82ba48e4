"""Trace what CUDA would do on a machine that has no GPU.

Fake tensors say that they are on the CPU, and torch then takes the CPU's way. It differs from CUDA's in the memory of
six operators, and each is corrected by calling the operator that CUDA would call:

- dropout: CUDA makes one result and one bool mask (`native_dropout`); the CPU makes a float mask.
- attention: CUDA has kernels that keep query, key, value, result and a log-sum-exp (`attention`, `attention_choice`).
- softmax of fp16 asked for in fp32: CUDA reads the one and writes the other; the CPU makes a copy in fp32 first.
- layer norm: CUDA keeps mean and deviation in fp32; the CPU keeps them in the dtype of the input.
- 4-bit matrices: CUDA unpacks the whole weight before it multiplies (bitsandbytes/backends/cuda/ops.py).
- experts: torch multiplies them as groups from Ampere on, and transformers one by one before (integrations/moe.py).

What CUDA's operators hold beside their results is told by `scratch_size`: `attention_scratch` and `reductions` have the
two large kinds.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from ftkit.machine.hardware import Gpu, find_gpu
from ftkit.models.kernels import grouped_heads, on_cpu
from ftkit.plan.tracing import attention, attention_scratch, foreign, reductions
from ftkit.plan.tracing.attention_choice import AttentionCall

ANY_CARD = "a100-40gb"
"""Whose kernels are taken where no card is named: one that no rule of the flash kernel names."""
UNPACKED_FROM_ROWS = 5
"""Fewer rows are multiplied by a 4-bit weight as it is."""
SORTED_FROM_TOKENS = 3073
"""From how many on an embedding's gradient is summed by sorted tokens; fewer are summed by one kernel."""
ROWS_OF_A_PART = 10
"""Rows that one part of such a sum adds (EmbeddingBackwardKernel.cu, NROWS_PER_THREAD)."""

Softmax = Callable[..., torch.Tensor]
Scratch = Callable[[tuple[Any, ...], Gpu], tuple[int, ...]]
"""The arguments of an operator, and the card, to the bytes of each tensor that it holds beside its results."""
NUM_WORKSPACES = 2
"""cuBLAS workspaces in training: the thread of the forward has a handle, and autograd's thread has another."""


@contextmanager
def cuda_semantics(gpu: Gpu | None = None, told: Callable[[AttentionCall], None] = lambda _: None) -> Iterator[None]:
    """Let torch choose what it would choose on CUDA.

    Args:
        gpu: decides between the kernels; None: a card that has all of them.
        told: is told of each attention, before it runs.
    """
    card = gpu or find_gpu(ANY_CARD)

    # torch names its functions by `__name__` (overrides.py), which a partial does not have.
    def attend(*arguments: Any, **options: Any) -> torch.Tensor:
        told(attention.call_of(*arguments, **options))
        return attention.attend(card, *arguments, **options)

    # Replaced and not overridden by a mode: in checkpoint's recomputation modes are not active.
    with (
        foreign.dropout_by(_dropout),
        foreign.softmax_by(_one_kernel),
        foreign.attention_by(attend),
        on_cpu.judged_by(lambda _: False),
        grouped_heads.judged_by(partial(attention.takes_groups, card)),
        foreign.fused_adam_anywhere(),
        foreign.grouped_products(by_torch=card.capability >= (8, 0)),  # whatever the type
    ):
        yield


def storage_size(op: str, number: int, tensor: torch.Tensor) -> int:
    """Return the bytes that an output's storage has on CUDA.

    Args:
        op: the operator's name.
        number: which of its outputs.
        tensor: the output.
    """
    if number > 0 and op.startswith("native_layer_norm."):
        return tensor.numel() * 4
    return int(tensor.untyped_storage().nbytes())


def scratch_size(op: str, args: tuple[Any, ...], gpu: Gpu | None = None) -> tuple[int, ...]:
    """Return the bytes of each tensor that an operator holds on CUDA beside its results until its end.

    Args:
        op: the operator's name.
        args: its arguments.
        gpu: the card; None: a recent one.
    """
    find = _SCRATCH.get(op.partition(".")[0])
    return () if find is None else find(args, gpu or find_gpu(ANY_CARD))


def _unpacked_weight(args: tuple[Any, ...], _: Gpu) -> tuple[int, ...]:
    """Return the weight of a 4-bit product, and its scales, twice, where they are packed too.

    A few rows are multiplied by a kernel that unpacks as it goes. Up to 1536 rows that depends on card and sizes, and
    the weight is taken to be unpacked (bitsandbytes 0.50, backends/cuda/ops.py, gemm_4bit).
    """
    x, (rows, columns), block = args[0], args[2], args[4]
    if x.numel() < UNPACKED_FROM_ROWS * x.shape[-1]:
        return ()
    is_packed_twice = len(args) > 7 and args[7] is not None
    scales = 2 * [4 * -(-rows * columns // block)] if is_packed_twice else []
    return (*scales, int(rows * columns * x.element_size()))


def _safe_softmax(args: tuple[Any, ...], _: Gpu) -> tuple[int, ...]:
    """Return which elements are minus infinity, which rows are all of them, and what is written there instead.

    torch 2.13, aten/src/ATen/native/transformers/attention.cpp, _safe_softmax
    """
    scores, dim = args[:2]
    return scores.numel(), scores.numel() // max(1, scores.shape[dim]), scores.element_size()


def _softmax_backward(args: tuple[Any, ...], _: Gpu) -> tuple[int, ...]:
    """Return the product of gradient and result (torch, aten/src/ATen/native/cuda/SoftMax.cu).

    https://github.com/pytorch/pytorch/blob/v2.9.0/aten/src/ATen/native/cuda/SoftMax.cu, softmax_backward_cuda_out
    """
    grad, out = args[:2]
    return (grad.numel() * max(grad.element_size(), out.element_size()),)


def _embedding_backward(args: tuple[Any, ...], gpu: Gpu) -> tuple[int, ...]:
    """Return what the gradient of a table of embeddings holds, whose rows are sums over the tokens that asked for them.

    Tokens are sorted, which gives them and their places anew; those of one row are a segment, summed in parts of at
    most ten. How many segments and parts there are is not known on the host, so for each list the most are allocated:
    a segment for each token or row of the table, whichever are fewer, and one part more for each ten tokens; each count
    is a tensor too. The parts' sums are in fp32; where a table has so few rows that adding these up would leave a card
    idle, each part is added to its row at once, in fp32 too. The sort's own scratch, gone before the sums are there, is
    smaller for any width above 8. Measured on an H200 with torch 2.11: to the byte for eight tables.
    https://github.com/pytorch/pytorch/blob/v2.9.0/aten/src/ATen/native/cuda/Embedding.cu, embedding_dense_backward_cuda
    and EmbeddingBackwardKernel.cu, embedding_backward_cuda_kernel; use_fused_kernel, since torch 2.11
    """
    grad, tokens, rows, _, by_frequency = args
    num_tokens, width, index = tokens.numel(), grad.shape[-1], tokens.element_size()
    copies = () if grad.is_contiguous() else (grad.numel() * grad.element_size(),)
    if num_tokens < SORTED_FROM_TOKENS and not by_frequency:
        return copies
    segments = min(num_tokens, int(rows))
    parts = num_tokens // ROWS_OF_A_PART + segments
    lists = [num_tokens] * (4 if by_frequency else 3) + [segments] * 2 + [parts] + [1] * 2
    threads = -(-width // 32) * 32
    blocks = -(-segments * threads // min(threads, 1024))
    if blocks < 4 * gpu.multiprocessors and parts > 4 * blocks:
        lists.append(parts)
        sums = int(rows) * width * 4 if grad.element_size() < 4 else 0
    else:
        sums = parts * width * max(4, grad.element_size())
    return (*copies, *(index * length for length in lists), *([sums] if sums else []))


def _all_of(accumulates: bool) -> Scratch:
    """Return what a reduction holds whose dimensions are the second argument, or all.

    Args:
        accumulates: whether partial results are sums, in fp32 at least, and not of the tensor's own type.
    """

    def held(args: tuple[Any, ...], gpu: Gpu) -> tuple[int, ...]:
        tensor = args[0]
        size = tensor.element_size()
        dims = args[1] if len(args) > 1 else None
        dims = [dims] if isinstance(dims, int) else dims or []
        return reductions.scratch(tensor, dims, max(4, size) if accumulates else size, gpu)

    return held


def _norm(args: tuple[Any, ...], gpu: Gpu) -> tuple[int, ...]:
    """Return what a norm holds: a sum whose dimensions come after the order of the norm."""
    return _all_of(True)((args[0], *args[2:3]), gpu)


def _grouped_product(args: tuple[Any, ...], gpu: Gpu) -> tuple[int, ...]:
    """Return the addresses and sizes of each group, and four descriptors of 128 bytes for each multiprocessor.

    bf16 on Hopper has a kernel for all groups; whatever else is multiplied one group after another (torch 2.11,
    aten/src/ATen/native/cuda/GroupMM.cu). Measured on an H200.
    """
    first, groups = args[0], args[2].numel() if len(args) > 2 and args[2] is not None else args[0].shape[0]
    if first.dtype != torch.bfloat16 or gpu.vendor != "nvidia" or gpu.capability[0] != 9:
        return ()
    return 60 * groups, 4 * 128 * gpu.multiprocessors


_SCRATCH: dict[str, Scratch] = {
    "gemm_4bit": _unpacked_weight,
    "_grouped_mm": _grouped_product,
    "embedding_dense_backward": _embedding_backward,
    "_safe_softmax": _safe_softmax,
    "_softmax_backward_data": _softmax_backward,
    "_scaled_dot_product_flash_attention": attention_scratch.flash_forward,
    "_scaled_dot_product_flash_attention_backward": attention_scratch.flash_backward,
    "_scaled_dot_product_cudnn_attention_backward": attention_scratch.cudnn_backward,
    "_scaled_dot_product_efficient_attention": attention_scratch.efficient_forward,
    "_scaled_dot_product_efficient_attention_backward": attention_scratch.efficient_backward,
    **dict.fromkeys(("sum", "mean"), _all_of(True)),
    **dict.fromkeys(("amax", "amin", "all", "any"), _all_of(False)),
    "linalg_vector_norm": _norm,
}
"""Beside these operators nothing is held that grows with anything but blocks and indices."""


def cublas_workspace(gpu: Gpu | None) -> int:
    """Return the bytes that torch allocates for cuBLAS at the first matrix product.

    Eight buffers of 16 KiB and two of 4 MiB, 32 MiB on Hopper (torch, aten/src/ATen/cuda/CublasHandlePool.cpp). It is
    cuBLASLt's too, which products with a bias go by; up to torch 2.11 that kept 1 MiB more for each thread, although
    its size was taken from what both have (pull request 175879 has put that right).
    """
    if gpu is not None and gpu.vendor == "nvidia" and gpu.capability[0] == 9:
        return 32 * 2**20
    return 8 * 16 * 2**10 + 2 * 4096 * 2**10


def _dropout(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    if not training or p == 0.0:
        return x
    out: torch.Tensor = torch.ops.aten.native_dropout(x, p, True)[0]
    return x.copy_(out) if inplace else out


def _one_kernel(softmax: Softmax, x: torch.Tensor, dim: int | None = None, *args: Any, **settings: Any) -> torch.Tensor:
    """Do what CUDA does for fp16 that is asked for in fp32: one kernel (torch 2.13, aten/src/ATen/native/SoftMax.cpp).

    bf16 is converted first on every device.
    """
    if x.dtype != torch.float16 or settings.get("dtype") != torch.float32 or dim is None:
        return softmax(x, dim, *args, **settings)
    aten: Any = torch.ops.aten
    operator = aten._log_softmax if softmax.__name__ == "log_softmax" else aten._softmax
    out: torch.Tensor = operator(x, dim, True)
    return out
