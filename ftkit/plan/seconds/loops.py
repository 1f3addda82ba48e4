"""Loops of single operators, which show a processor at its best."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from ftkit.observe.operators import dtype_name

_ROUNDS, FEW_ROUNDS = 6, 3
"""Of a loop; of one among many."""
_ROWS, _COLUMNS = 2**12, 2**8
"""What each operator of `_operators` is timed with, in a fifth of a second."""


def clock() -> float:
    """Return seconds; of this thread alone where it computes alone, since others may have the core meanwhile."""
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def best_seconds(work: Callable[[], object], rounds: int = _ROUNDS) -> float:
    """Return how long a piece of work takes in the best of some rounds, since others may be at work."""
    best = math.inf
    for _ in range(rounds):
        begin = clock()
        work()
        best = min(best, clock() - begin)
    return best


def operator_rates(bandwidth: float) -> dict[tuple[str, str], float]:
    """Return the bytes per second of operators that are slower than a copy, by name and dtype.

    Args:
        bandwidth: of a copy.
    """
    return {
        (operator, dtype_name(dtype)): min(bandwidth, _operator_rate(overload, arguments))
        for dtype in (torch.float32, torch.bfloat16)
        for operator, overload, arguments in _operators(dtype)
    }


def _operators(dtype: torch.dtype) -> list[tuple[str, Any, tuple[Any, ...]]]:
    """Return what does more than move bytes: name, overload and arguments."""
    aten = torch.ops.aten
    one = torch.full((_ROWS, _COLUMNS), 0.5, dtype=dtype)
    means = torch.zeros(_ROWS, 1, dtype=dtype)
    return [
        ("bernoulli_", aten.bernoulli_.float, (one.clone(), 0.5)),
        ("_softmax", aten._softmax.default, (one, -1, False)),
        ("_safe_softmax", aten._safe_softmax.default, (one, -1)),
        ("_softmax_backward_data", aten._softmax_backward_data.default, (one, one, -1, dtype)),
        ("_log_softmax", aten._log_softmax.default, (one, -1, False)),
        ("gelu", aten.gelu.default, (one,)),
        ("gelu_backward", aten.gelu_backward.default, (one, one)),
        ("silu", aten.silu.default, (one,)),
        ("silu_backward", aten.silu_backward.default, (one, one)),
        ("tanh", aten.tanh.default, (one,)),
        ("where", aten.where.self, (one > 0, one, one)),
        ("native_layer_norm", aten.native_layer_norm.default, (one, [_COLUMNS], None, None, 1e-5)),
        (
            "native_layer_norm_backward",
            aten.native_layer_norm_backward.default,
            (one, one, [_COLUMNS], means, means + 1, None, None, [True, False, False]),
        ),
    ]


def _operator_rate(overload: Any, arguments: tuple[Any, ...]) -> float:
    """Return the bytes per second of an operator, counted as a tape counts them: what it is given and what it makes."""
    made = overload(*arguments)
    touched = [*arguments, *(made if isinstance(made, tuple) else (made,))]
    moved = sum(one.nbytes for one in touched if isinstance(one, torch.Tensor))
    return moved / best_seconds(lambda: overload(*arguments), FEW_ROUNDS)
