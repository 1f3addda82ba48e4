"""Let a layer recompute what is cheap: it keeps its matrix products and its attention, and nothing else.

Checkpointing runs a layer's forward again in the backward. Two modes stand around the two runs: in the first, `_Keep`
takes the result of each dear operator; in the second, `_Replay` hands it out in the place of computing it. Norms,
activation functions, casts and dropout run again, so the backward sees the very tensors that it would have kept.

An example: a linear layer of PEFT, whose adapter is added in place, then a GELU. n stands for the tokens, r for a rank:

    operator            first run                       second run
    mm      x, weight   computed, kept                  handed out: it holds the sum below already
    mm      x, down     computed, kept (n x r: small)   handed out
    mm      low, up     computed                        computed: r products a number, so it is cheap
    add_    sum         changes what is kept            left out: it has been added
    gelu                computed                        computed

Leaving the sum out is right as long as nobody has read the product before it; where somebody has, the product is not
kept after all (`_Keep._follow`). A function that is dear as a whole, such as a LoRA layer or an attention of our own,
asks for it by `keep_whole`.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from ftkit.models.foreign import saving_hooks, storage_key
from ftkit.models.kernels import foreign

_WIDENING = 8
"""A product with a weight is kept if its rows are at most this many times as long as those it sums over: the widest
MLP is (Gemma: 8), a product of rank r is not."""
_WHOLE = frozenset({"_grouped_mm", "gemm_4bit", "convolution", "linear"})
"""Operators that are kept whatever their shape: products of experts, with 4-bit weights, and convolutions."""


@dataclass
class _Kept:
    """The result of one dear operator.

    Attributes:
        result: a tensor or a tuple with tensors, once the layer has run what autograd would save in their place; None:
            compute it again.
        is_read: an operator has used it.
        is_changed: an operator has changed it in place, before anyone read it.
        num_changes: of each tensor in the first run.
        random_state: of torch's generators after an operator that draws; None: it does not.
    """

    result: Any
    is_read: bool = False
    is_changed: bool = False
    num_changes: tuple[int, ...] = ()
    random_state: tuple[torch.Tensor, torch.Tensor | None] | None = None


@dataclass(frozen=True)
class _Packed:
    """What the hooks of autograd's saved tensors have made of one."""

    value: Any


def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Return what stands around the two runs of a layer: the `context_fn` of torch's checkpoint."""
    kept: deque[_Kept] = deque()
    pack, unpack = saving_hooks()
    return _Keep(kept, pack), _Replay(kept, unpack)


def keep_whole(function: Callable[[], torch.Tensor], *read: torch.Tensor | None) -> torch.Tensor:
    """Return what a function returns; a layer that keeps its products keeps this, and nothing made on the way.

    Args:
        function: draws no random numbers, and changes nothing that was there before.
        read: what it reads of what the layer may have made.
    """
    mode = foreign.top_mode()
    return mode.whole(function, read) if isinstance(mode, _Keep | _Replay) else function()


class _Keep(foreign.DispatchMode):
    """Keeps the results of dear operators, in their order."""

    def __init__(self, kept: deque[_Kept], pack: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self._kept, self._pack = kept, pack
        self._by_storage: dict[int, _Kept] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if self._by_storage and _reads_values(func):
            self._follow(func, args, kwargs or {}, out)
        if _is_dear(func, args):
            self._add(out, _random_state(args) if _draws(func) else None)
        return out

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]  # torch's
        for one in self._kept:
            one.result = _each(lambda tensor: _Packed(self._pack(tensor)), one.result)
            one.num_changes = _changes_of_tensors(one.result)
        self._by_storage.clear()

    def whole(self, function: Callable[[], torch.Tensor], read: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """Run a function, unseen by this mode, which takes longer than a small operator, and keep its result alone."""
        for key in _keys(read):
            if key in self._by_storage:
                self._by_storage[key].is_read = True
        with foreign.left_for_a_while():
            out = function()
        self._add(out, None)
        return out

    def _add(self, out: Any, random_state: Any) -> None:
        one = _Kept(_each(foreign.alias, out), random_state=random_state)
        self._kept.append(one)
        self._by_storage |= dict.fromkeys(_keys([out]), one)

    def _follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Note who reads a result that is kept; give up one that changes after it was read.

        So is one that an operator changes without returning it: the second run could not leave that operator out.
        """
        given = _keys([*args, *kwargs.values()])
        if self._by_storage.keys().isdisjoint(given):
            return
        written, shared = _keys(_written(func, args, kwargs)), set(_keys([out]))
        for key in given:
            one = self._by_storage.get(key)
            if one is None:
                continue
            if key in written and (one.is_read or key not in shared):
                one.result = None
                self._by_storage = {at: other for at, other in self._by_storage.items() if other is not one}
            one.is_changed = one.is_changed or key in written
            one.is_read = one.is_read or key not in shared  # what shares its storage is a view, or changes it


class _Replay(foreign.DispatchMode):
    """Hands out what `_Keep` has kept."""

    def __init__(self, kept: deque[_Kept], unpack: Callable[[Any], torch.Tensor]) -> None:
        super().__init__()
        self._kept, self._unpack, self._is_inside = kept, unpack, False
        self._changed: dict[int, torch.Tensor] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not self._is_inside and _is_dear(func, args):
            return self._next(lambda: func(*args, **(kwargs or {})), args)
        if self._changed and any(key in self._changed for key in _keys(_written(func, args, kwargs or {}))):
            return args[0]
        return func(*args, **(kwargs or {}))

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]  # torch's
        # The second run ends as soon as the backward has what it needs, so the last results may be left.
        self._kept.clear()
        self._changed.clear()

    def whole(self, function: Callable[[], torch.Tensor], _: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """Return the kept result of a function."""
        out: torch.Tensor = self._next(function, ())
        return out

    def _next(self, compute: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        one = self._kept.popleft()
        if one.result is None:
            self._is_inside = True
            try:
                return compute()
            finally:
                self._is_inside = False
        changes = _changes_of_tensors(one.result)
        assert changes == one.num_changes, "what a layer keeps was changed in place after it"
        result = _each(lambda packed: self._unpack(packed.value), one.result, _Packed)
        if one.random_state is not None:
            _set_random_state(one.random_state, args)
        if one.is_changed:  # held, so that no other tensor gets its key meanwhile
            self._changed |= {storage_key(tensor.untyped_storage()): tensor for tensor in _tensors([result])}
        return result


@cache
def _name(func: Any) -> str:
    return str(func.__name__).partition(".")[0]


@cache
def _reads_values(func: Any) -> bool:
    """Return whether an operator is one of values: a tensor without any is asked for its device and its sizes too."""
    return func.namespace != "prim" and not _name(func).startswith("sym_")


@cache
def _draws(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags


@cache
def _writing(func: Any) -> tuple[tuple[int, str], ...]:
    """Return place and name of the arguments that an operator changes."""
    arguments = enumerate(func._schema.arguments)
    return tuple((place, one.name) for place, one in arguments if one.alias_info and one.alias_info.is_write)


def _is_dear(func: Any, args: tuple[Any, ...]) -> bool:
    """Return whether an operator takes long for the size of its result."""
    name = _name(func)
    if name in ("mm", "bmm", "addmm", "baddbmm"):
        inner, columns = args[1 if name in ("mm", "bmm") else 2].shape[-2:]
        # The scores of a plain attention are many numbers, each a sum over the few of a head.
        return bool(columns <= inner * (1 if name in ("bmm", "baddbmm") else _WIDENING))
    return name in _WHOLE or "scaled_dot_product" in name or "flash_attn" in name


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Return the arguments that a call changes."""
    return [args[place] if place < len(args) else kwargs.get(name) for place, name in _writing(func)]


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _keys(values: Iterable[Any]) -> list[int]:
    return [storage_key(tensor.untyped_storage()) for tensor in _tensors(values)]


def _each(change: Callable[[Any], Any], out: Any, kind: type = torch.Tensor) -> Any:
    """Return what an operator returned with each of its tensors, or of another kind, changed."""
    if isinstance(out, list | tuple):
        return type(out)(_each(change, one, kind) for one in out)
    return change(out) if isinstance(out, kind) else out


def _changes_of_tensors(out: Any) -> tuple[int, ...]:
    """Return how often the tensors among packed results were changed; what hooks made of others is theirs."""
    found: list[int] = []

    def look(packed: _Packed) -> None:
        if isinstance(packed.value, torch.Tensor):
            found.append(foreign.num_changes(packed.value))

    _each(look, out, _Packed)
    return tuple(found)


def _random_state(args: tuple[Any, ...]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the states of the generators of the CPU and of the device of some arguments."""
    device = next(_tensors(args)).device
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: tuple[torch.Tensor, torch.Tensor | None], args: tuple[Any, ...]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], next(_tensors(args)).device)
