"""Cache the layouts of what operators produce on tensors without values.

On `meta`, torch works much of it out in Python, at every call anew (torch/_refs, torch/_meta_registrations.py): a tenth
of a millisecond each, and a step calls the same few operators on the same few shapes, layer after layer. Fake tensors
have a cache of torch's own, whose keys cost twice that; with this one a trace on them takes less than half the time.
"""

from collections.abc import Callable, Hashable
from enum import Enum, auto
from functools import cache, partial
from typing import Any, NamedTuple

import torch

from ftkit.models.foreign import storage_key
from ftkit.plan.tracing import foreign

Call = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
"""Calls an operator, such as `torch.ops.aten.mul.Tensor`, with its arguments and the named ones."""


class _Effect(Enum):
    """What an operator that returns one tensor does with its arguments."""

    FRESH = auto()
    """It leaves them as they are, and returns a tensor of its own."""
    VIEW = auto()
    """It returns a view of the first."""
    WRITE = auto()
    """It writes into the first and returns it."""


class _Layout(NamedTuple):
    """A tensor without its values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


_known: dict[Hashable, _Layout | None] = {}
"""An operator with the layouts of its arguments to that of its output; None: not a tensor like any other."""


def call_on_meta(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call an operator, or make what it made of arguments like these before.

    Args:
        func: an operator, such as `torch.ops.aten.mul.Tensor`.
        args: its arguments, tensors among them on `meta`.
        kwargs: the named ones.

    Returns:
        What the operator returns.
    """
    match _effect(func):
        case _Effect.FRESH:
            return _call(_meta_layout, _empty_on_meta, func, args, kwargs)
        case _Effect.WRITE:
            return _call(_meta_layout, lambda _: args[0], func, args, kwargs)
    return func(*args, **kwargs)  # views are quick on `meta`


def call_on_fake(mode: Any) -> Call:
    """Return what calls an operator on fake tensors, or makes what it made of arguments like these before.

    Args:
        mode: the fake tensors' mode, which is on.

    Returns:
        A function like `call_on_meta`.
    """
    empty = partial(_empty_fake, mode)

    def call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        match _effect(func):
            case _Effect.FRESH:
                return _call(_fake_layout, empty, func, args, kwargs)
            case _Effect.VIEW if (own := _fake_layout(args[0])) is not None:
                return foreign.fake_of(mode, foreign.below_fake(mode, func, args, kwargs), own.device)
            case _Effect.WRITE:
                return _call(_fake_layout, lambda _: args[0], func, args, kwargs)
        return func(*args, **kwargs)

    return call


def _call(
    layout: Callable[[Any], _Layout | None],
    empty: Callable[[_Layout], Any],
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    try:
        key = (layout, func, _key(layout, args), _key(layout, tuple(kwargs.items())) if kwargs else None)
        known = _known.get(key)
    except TypeError:  # an argument that cannot be told from others
        return func(*args, **kwargs)
    if known is not None:
        return empty(known)
    out = func(*args, **kwargs)
    if key not in _known:
        _known[key] = _kept(layout, _effect(func), out, args)
    return out


@cache
def _effect(func: Any) -> _Effect | None:
    """Return what an operator does; None: something else, or more."""
    schema = foreign.schema(func)
    if len(schema.returns) != 1 or str(schema.returns[0].type) != "Tensor" or foreign.changes_layout(func):
        return None
    shared = [one.alias_info for one in schema.arguments]
    returned = schema.returns[0].alias_info
    if returned is None:
        return _Effect.FRESH if not any(shared) else None
    if not shared or not shared[0] or any(shared[1:]):
        return None
    return _Effect.WRITE if shared[0].is_write else _Effect.VIEW


def _key(layout: Callable[[Any], _Layout | None], value: Any) -> Hashable:
    if isinstance(value, torch.Tensor):
        found = layout(value)
        if found is None:
            raise TypeError
        return found
    kind = type(value)
    if kind is tuple or kind is list:
        return tuple(_key(layout, one) for one in value)
    return kind, value


def _kept(layout: Callable[[Any], _Layout | None], effect: _Effect | None, out: Any, args: Any) -> _Layout | None:
    """Return the layout of an output that is made from its layout alone; None: it is not."""
    found = layout(out)
    if found is None or effect is _Effect.WRITE:
        return found if effect is _Effect.WRITE and out is args[0] else None
    if any(_shares_storage(out, one) for one in args) or out.storage_offset() != 0:
        return None
    return found if out.untyped_storage().nbytes() == _empty_on_meta(found).untyped_storage().nbytes() else None


def _meta_layout(value: Any) -> _Layout | None:
    if type(value) not in (torch.Tensor, torch.nn.Parameter) or not value.is_meta:
        return None
    return _Layout(value.shape, value.stride(), value.dtype, value.device)


def _fake_layout(value: Any) -> _Layout | None:
    """Return the layout of a fake tensor, which has no value that torch knows."""
    if not foreign.is_fake(value):
        return None
    return _Layout(value.shape, value.stride(), value.dtype, value.fake_device)


def _empty_on_meta(layout: _Layout) -> torch.Tensor:
    with foreign.without_modes():
        return torch.empty_strided(layout.shape, layout.stride, dtype=layout.dtype, device="meta")


def _empty_fake(mode: Any, layout: _Layout) -> torch.Tensor:
    return foreign.fake_of(mode, _empty_on_meta(layout), layout.device)


def _shares_storage(out: torch.Tensor, other: Any) -> bool:
    return isinstance(other, torch.Tensor) and storage_key(out.untyped_storage()) == storage_key(
        other.untyped_storage()
    )
