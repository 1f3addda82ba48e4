"""Put what lives at a moment of a tape into groups, and say in which types the parts of a run are.

The storages of one place in the model, in all layers alike, are a group: the first results of each layer's MLP, say.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from ftkit.observe.allocator import round_size
from ftkit.observe.peaks import NUMBER, kinds, live_at
from ftkit.observe.tape import Birth, Role, Tape
from ftkit.records.explained import LiveGroup, PartTypes
from ftkit.records.figures import Kind
from ftkit.step.observer import Phase

_WRAPPER = "base_model.model."
"""The path that peft puts before a model's own."""


@dataclass(frozen=True)
class _Key:
    kind: Kind
    module: str
    op: str
    shape: tuple[int, ...]
    dtype: str
    is_recomputed: bool

    @classmethod
    def of(cls, kind: Kind, birth: Birth) -> "_Key":
        return cls(
            kind,
            NUMBER.sub("*", own_path(birth.module)),
            birth.op.partition(".")[0],
            birth.shape,
            birth.dtype,
            birth.recomputed,
        )


def own_path(module: str) -> str:
    """Return the path of a module in its model, without what peft puts before it."""
    return module.removeprefix(_WRAPPER)


def live_groups(tape: Tape, place: int, rounding: Callable[[int], int] = round_size) -> tuple[LiveGroup, ...]:
    """Return what lives after an event, in groups, the largest first.

    Args:
        tape: of whole steps.
        place: of the event; -1: nothing lives.
        rounding: bytes asked to bytes taken; the CUDA allocator's by default.

    Returns:
        The groups; their bytes add up to what lives.
    """
    of_kind = kinds(tape)
    grouped: dict[_Key, list[Birth]] = defaultdict(list)
    for storage in sorted(live_at(tape, place)) if place >= 0 else ():
        grouped[_Key.of(of_kind[storage], tape.births[storage])].append(tape.births[storage])
    groups = (
        LiveGroup(
            kind=key.kind,
            module=key.module,
            op=key.op,
            shape=key.shape,
            dtype=key.dtype,
            is_recomputed=key.is_recomputed,
            num_bytes=sum(rounding(birth.size) for birth in births),
            num_tensors=len(births),
            num_layers=len({birth.layer for birth in births} - {None}),
        )
        for key, births in grouped.items()
    )
    return tuple(sorted(groups, key=lambda group: -group.num_bytes))


def part_types(tape: Tape) -> tuple[PartTypes, ...]:
    """Return the types of the parts of a run: weights, masters, moments, gradients, activations, temporaries.

    Masters are what the optimizer has from the start, moments what its first update makes. A part that an engine keeps
    in one piece has no type on the tape. Numbers that say which targets there are, and counters, are left out.

    Args:
        tape: of whole steps.
    """
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for kind, birth in zip(kinds(tape), tape.births, strict=True):
        is_index = birth.dtype in _INDICES and kind in (Kind.OPTIMIZER, Kind.GRADIENT)
        if kind is not Kind.BUFFER and birth.size and not is_index:
            found[_part(kind, birth)][birth.dtype] += birth.size
    return tuple(PartTypes(part=part, num_bytes=dict(found[part].most_common())) for part in _PARTS if part in found)


def widest_results(tape: Tape, width: int) -> Birth | None:
    """Return the largest result of a forward outside the layers whose rows have a width, such as logits; None: none.

    Args:
        tape: of whole steps.
        width: the last dimension.
    """
    wide = (
        birth
        for birth in tape.births
        if birth.phase is Phase.FORWARD and birth.layer is None and birth.role is None and birth.shape[-1:] == (width,)
    )
    return max(wide, key=lambda birth: birth.size, default=None)


_INDICES = ("int64", "int32")
_PARTS = (
    "frozen weights", "trained weights", "masters", "moments", "gradients", "activations", "temporaries",
)  # fmt: skip


def _part(kind: Kind, birth: Birth) -> str:
    match kind:
        case Kind.PARAMETER:
            return "trained weights" if birth.role is Role.TRAINABLE else "frozen weights"
        case Kind.OPTIMIZER:
            return "masters" if birth.phase is Phase.LOAD else "moments"
        case Kind.GRADIENT:
            return "gradients"
        case Kind.ACTIVATION:
            return "activations"
        case _:
            return "temporaries"
