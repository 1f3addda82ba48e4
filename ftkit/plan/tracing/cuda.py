"""Trace what CUDA would do on a machine that has no GPU.

Fake tensors say that they are on the CPU, and torch then takes the CPU's way. It differs from CUDA's in the memory of
five operators, and each is corrected by calling the operator that CUDA would call:

- dropout: CUDA makes one result and one bool mask (`native_dropout`); the CPU makes a float mask.
- attention: CUDA has kernels that keep query, key, value, result and a log-sum-exp (`attention`, `attention_choice`).
- softmax of fp16 asked for in fp32: CUDA reads the one and writes the other; the CPU makes a copy in fp32 first.
- layer norm: CUDA keeps mean and deviation in fp32; the CPU keeps them in the dtype of the input.
- 4-bit matrices: CUDA unpacks the whole weight before it multiplies (bitsandbytes/backends/cuda/ops.py).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from ftkit.machine.hardware import Gpu, find_gpu
from ftkit.models.kernels import grouped_heads, on_cpu
from ftkit.plan.tracing import attention, foreign
from ftkit.plan.tracing.attention_choice import AttentionCall

ANY_CARD = "a100-40gb"
"""Whose kernels are taken where no card is named: one that no rule of the flash kernel names."""
TILE = 64
"""Rows that the memory-efficient kernel's backward takes at a time."""
REGISTER_HEAD = 128
"""The widest head in half precision whose gradients both kernels keep in registers."""
HALF_BYTES = 2
"""Of an element in half precision."""
SORTED_FROM_TOKENS = 3073
"""From how many on an embedding's gradient is summed by sorted tokens; fewer are summed by one kernel."""
ROWS_OF_A_PART = 10
"""Rows that one part of such a sum adds (EmbeddingBackwardKernel.cu, NROWS_PER_THREAD)."""

Softmax = Callable[..., torch.Tensor]
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


def scratch_size(op: str, args: tuple[Any, ...]) -> tuple[int, ...]:
    """Return the bytes of each tensor that an operator holds on CUDA beside its results until its end.

    Args:
        op: the operator's name.
        args: its arguments.
    """
    find = _SCRATCH.get(op.partition(".")[0])
    return () if find is None else find(args)


def _unpacked_weight(args: tuple[Any, ...]) -> tuple[int, ...]:
    rows, columns = args[2]
    return (int(rows * columns * args[0].element_size()),)


def _safe_softmax(args: tuple[Any, ...]) -> tuple[int, ...]:
    """Return the softmax before rows of minus infinity are put right, and which elements are that.

    torch 2.13, aten/src/ATen/native/transformers/attention.cpp, _safe_softmax
    """
    return args[0].numel() * args[0].element_size(), args[0].numel()


def _softmax_backward(args: tuple[Any, ...]) -> tuple[int, ...]:
    """Return the product of gradient and result (torch, aten/src/ATen/native/cuda/SoftMax.cu).

    https://github.com/pytorch/pytorch/blob/v2.9.0/aten/src/ATen/native/cuda/SoftMax.cu, softmax_backward_cuda_out
    """
    grad, out = args[:2]
    return (grad.numel() * max(grad.element_size(), out.element_size()),)


def _flash_backward(args: tuple[Any, ...]) -> tuple[int, ...]:
    """Return what flash attention's backward holds.

    Sums over the rows and the gradient of the query in fp32; gradients of key and value for each head of the query
    where heads are grouped; the gradient of the result in one piece.
    https://github.com/pytorch/pytorch/blob/v2.9.0/aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp,
    mha_bwd
    """
    grad, query, key = args[:3]
    batch, heads, length, width = query.shape
    rows = batch * heads * _round_up(length, 128)
    sizes = [4 * rows, 4 * rows * _round_up(width, 32 if width <= REGISTER_HEAD else 64)]
    if key.shape[1] != heads:
        sizes += 2 * [key.shape[0] * key.shape[2] * heads * width * key.element_size()]
    return (*sizes, *_one_piece(grad))


def _efficient_backward(args: tuple[Any, ...]) -> tuple[int, ...]:
    """Return what memory-efficient attention's backward holds.

    Sums over the rows in fp32, of a product in fp32 where the kernel does not make them; the gradient of the query in
    fp32, in whole tiles; those of key and value for heads too wide for registers; the gradient of the result in one
    piece. Tiles have 64 rows; columns are those that a tile takes of the key.
    https://github.com/pytorch/pytorch/blob/v2.9.0/aten/src/ATen/native/transformers/cuda/attention_backward.cu and
    mem_eff_attention/kernel_backward.h, workspace_size; mem_eff_attention/kernels/generate_kernels.py: which tiles
    """
    grad, query, key = args[:3]
    batch, heads, length, width = query.shape
    is_half = query.element_size() == HALF_BYTES
    fits = is_half and width <= REGISTER_HEAD
    columns = REGISTER_HEAD if fits and width > TILE else TILE
    per_head = _round_up(length, TILE) * _round_up(width, columns)
    if is_half and not fits:
        splits = max(1, min(-(-key.shape[2] // TILE), 200 // (batch * heads)))
        per_head += 2 * splits * TILE * _round_up(width, TILE)
    sums = 4 * batch * heads * length
    workspace = 4 * batch * heads * per_head
    if is_half:
        return (sums, workspace, *_one_piece(grad))
    # The product is gone before the workspace is there.
    return (sums, max(workspace, sums * args[3].shape[-1]), *_one_piece(grad))


def _embedding_backward(args: tuple[Any, ...]) -> tuple[int, ...]:
    """Return what the gradient of a table of embeddings holds, whose rows are sums over the tokens that asked for them.

    Tokens are sorted, which gives them and their places anew; those of one row are a segment, summed in parts of at
    most ten. How many segments and parts there are is not known on the host, so for each list the most are allocated:
    a segment for each token or row of the table, whichever are fewer, and one part more for each ten tokens; each count
    is a tensor too. The parts' sums are in fp32. The sort's own scratch, gone before the sums are there, is smaller for
    any width above 8. Measured on an H200 with torch 2.11: to the byte for five tables.
    https://github.com/pytorch/pytorch/blob/v2.9.0/aten/src/ATen/native/cuda/Embedding.cu, embedding_dense_backward_cuda
    and EmbeddingBackwardKernel.cu, embedding_backward_cuda_kernel
    """
    grad, tokens, rows, _, by_frequency = args
    num_tokens, width, index = tokens.numel(), grad.shape[-1], tokens.element_size()
    copies = () if grad.is_contiguous() else (grad.numel() * grad.element_size(),)
    if num_tokens < SORTED_FROM_TOKENS and not by_frequency:
        return copies
    segments = min(num_tokens, int(rows))
    parts = num_tokens // ROWS_OF_A_PART + segments
    lists = [num_tokens] * (4 if by_frequency else 3) + [segments] * 2 + [parts] + [1] * 2
    return (*copies, *(index * length for length in lists), parts * width * max(4, grad.element_size()))


def _one_piece(grad: torch.Tensor) -> tuple[int, ...]:
    """Return the copy of a gradient whose heads of one token are not beside each other."""
    return () if grad.transpose(1, 2).is_contiguous() else (grad.numel() * grad.element_size(),)


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


_SCRATCH = {
    "gemm_4bit": _unpacked_weight,
    "embedding_dense_backward": _embedding_backward,
    "_safe_softmax": _safe_softmax,
    "_softmax_backward_data": _softmax_backward,
    "_scaled_dot_product_flash_attention_backward": _flash_backward,
    # Its workspace is not published; it needs at least the sums that flash attention needs.
    "_scaled_dot_product_cudnn_attention_backward": _flash_backward,
    "_scaled_dot_product_efficient_attention_backward": _efficient_backward,
}


def cublas_workspace(gpu: Gpu | None) -> int:
    """Return the bytes that torch allocates for cuBLAS at the first matrix product.

    Eight buffers of 16 KiB and two of 4 MiB, 32 MiB on Hopper (torch, aten/src/ATen/cuda/CublasHandlePool.cpp).
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
