"""Count what an operator computes and moves, from its name and its arguments."""

from enum import Enum, auto
from functools import cache
from typing import Any

import torch

from ftkit.observe.tape import OpKey, Product


@cache
def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype's name, such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")


class Work(Enum):
    """Whether an operator costs anything."""

    NONE = auto()  # it makes nothing: it tells of a tensor
    VIEW = auto()  # it makes a tensor and computes nothing
    SOME = auto()


@cache
def work_of(func: Any) -> Work:
    """Return whether an operator costs anything."""
    name = str(func)
    if name.startswith("prim.") or "sym_" in name:
        return Work.NONE
    if getattr(func, "is_view", False) or name.startswith(("aten.detach", "aten._unsafe_view", "aten.empty")):
        return Work.VIEW
    return Work.SOME


UNALIGNED = ".unaligned"
"""The overload that a tape gives a product for which a GPU has slow kernels alone."""
_ALIGNED = 8
"""Numbers in half precision that are 16 bytes."""
_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "_grouped_mm"}


@cache
def is_product(name: str) -> bool:
    """Return whether an operator, by its name, multiplies matrices."""
    plain = name.partition(".")[0].removesuffix("_")
    return plain in _PRODUCTS or plain.startswith("gemm_4bit") or "scaled_dot_product" in plain


_PICKS = {"embedding", "index", "index_select", "gather"}
"""Operators that read no more of their first argument than they make: of a table, the rows that are asked for."""
_PUTS = {"index_fill_", "index_add_", "index_copy_"}
"""Operators that write the rows of their first argument that an index names."""


def op_key(name: str, args: tuple[Any, ...], out: Any) -> OpKey:
    """Return what a call of an operator costs.

    Args:
        name: of the operator.
        args: its arguments.
        out: what it made.
    """
    moved, dtype = 0, ""
    for value in (*args, out):
        for tensor in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(tensor, torch.Tensor):
                moved += tensor.nbytes
                dtype = dtype or (dtype_name(tensor.dtype) if tensor.is_floating_point() else "")
    if _is_unaligned(name, args, out):
        name = name.partition(".")[0] + UNALIGNED
    return name, _flops(name, args), moved - _untouched(name.partition(".")[0], args, out), dtype


def _is_unaligned(name: str, args: tuple[Any, ...], out: Any) -> bool:
    """Return whether a product in half precision has rows that are no multiple of 16 bytes, or that begin at none."""
    product = half_product(name, args)
    if product is None:
        return False
    sides = [product[1:3], product[3:5]]
    if isinstance(out, torch.Tensor):
        sides.append((tuple(out.shape), out.stride()))
    return any(
        (size if stride == 1 else stride) % _ALIGNED
        for shape, strides in sides
        for size, stride in zip(shape, strides, strict=True)
    )


def _untouched(name: str, args: tuple[Any, ...], out: Any) -> int:
    """Return the bytes of what an operator is given and returns that it neither reads nor writes."""
    if name in _PICKS:
        return int(args[0].nbytes - out.nbytes)
    if name in _PUTS and args[0].numel() and args[0].dim():
        whole, along, index = args[:3]
        return int(2 * (whole.nbytes - whole.nbytes // whole.shape[along] * index.numel()))
    return 0


def half_product(name: str, args: tuple[Any, ...]) -> Product | None:
    """Return the product of matrices that an operator is, where that is in half precision; else None.

    Args:
        name: of the operator.
        args: its arguments.
    """
    sides = _sides(name.partition(".")[0].removesuffix("_"), args)
    if sides is None or sides[0].dtype not in (torch.bfloat16, torch.float16):
        return None
    left, right = sides
    return name, tuple(left.shape), left.stride(), tuple(right.shape), right.stride()


def _sides(name: str, args: tuple[Any, ...]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return what a product multiplies; None where an operator is not a product."""
    if name in ("mm", "bmm"):
        return args[0], args[1]
    return (args[1], args[2]) if name in ("addmm", "baddbmm") else None


def _flops(name: str, args: tuple[Any, ...]) -> int:
    """Return the FLOPs of an operator, a multiplication and an addition counting two; 0 for what only moves bytes."""
    name = name.partition(".")[0].removesuffix("_")  # what is added in place, as an adapter's part, was multiplied too
    if (sides := _sides(name, args)) is not None:
        return 2 * int(sides[0].numel()) * int(sides[1].shape[-1])
    if name == "_grouped_mm":  # of experts: each row, or column of the right side, is multiplied by its group alone
        left, right = args[0], args[1]
        rows = left[0] if left.ndim > right.ndim else left
        return 2 * int(rows.numel()) * int(right.shape[-1])
    if name.startswith("gemm_4bit"):  # the input, the packed weight, the weight's shape (bitsandbytes/_ops.py)
        return 2 * int(args[0].numel()) * int(args[2][0])
    if "scaled_dot_product" in name:
        backward = "backward" in name
        query, key = (args[1], args[2]) if backward else (args[0], args[1])
        products = 5 if backward else 2  # the backward recomputes the scores and multiplies four times more
        return 2 * products * int(query.numel()) * int(key.shape[-2])
    return 0
