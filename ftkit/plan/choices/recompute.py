"""As few layers that recompute more as make a step fit: between all of them at one level and all at the next.

Of twelve layers that keep all there may be room for five: then seven recompute what is cheap, and the step takes seven
twelfths of the time that it would take longer if all did.
"""

import bisect
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import pairwise

from ftkit.config.recompute import LEVELS, Level
from ftkit.plan.choices.candidates import Candidate
from ftkit.plan.choices.changes import RECOMPUTE, Changes, changed
from ftkit.plan.choices.interpolate import recomputing
from ftkit.plan.predicted import TracedPrediction

_DECIMALS = 1000
"""A share is rounded up to three decimals, which name each number of layers of up to a thousand."""
_TRIED = 2
"""Numbers of layers that are offered: an allocator's segments are coarse, so the first, once traced, may not fit."""


def mixes(
    candidates: Iterable[Candidate], num_layers: int, fits: Callable[[Candidate], bool] = lambda one: one.has_room
) -> list[Candidate]:
    """Return candidates between those that do not fit and those that do because all of their layers recompute more.

    Args:
        candidates: what was predicted; those that differ in the level of all layers alone are looked at together.
        num_layers: of the model.
        fits: whether a candidate does.

    Returns:
        The quickest two of each pair of neighbouring levels, interpolated; none where the quicker level fits itself.
    """
    families: dict[str, dict[str, Candidate]] = defaultdict(dict)
    for one in candidates:
        level = one.config.model.recompute.as_written()
        if isinstance(level, str) and isinstance(one.prediction, TracedPrediction):
            rest = {key: value for key, value in one.changes.items() if key != RECOMPUTE}
            families[repr(rest)][level] = one
    found = []
    for family in families.values():
        for less, more in pairwise(LEVELS):
            if less in family and more in family and not fits(family[less]) and fits(family[more]):
                found += _first_that_fit(family[less], family[more], num_layers, fits)
    return found


def _first_that_fit(
    less: Candidate, more: Candidate, num_layers: int, fits: Callable[[Candidate], bool]
) -> list[Candidate]:
    """Return the mixes of two levels in which the fewest layers recompute more; none where all of them have to."""

    def mix(number: int) -> Candidate:
        return _mix(less, more, number, num_layers)

    numbers = range(1, num_layers)
    first = bisect.bisect_left(numbers, True, key=lambda number: fits(mix(number)))
    return [mix(number) for number in numbers[first : first + _TRIED]]


def _mix(less: Candidate, more: Candidate, number: int, num_layers: int) -> Candidate:
    assert isinstance(less.prediction, TracedPrediction)
    assert isinstance(more.prediction, TracedPrediction)
    level: Level = "cheap" if more.config.model.recompute.cheap else "layer"
    share = math.ceil(_DECIMALS * number / num_layers) / _DECIMALS
    shares = {"cheap": share} if level == "cheap" else {"cheap": round(1 - share, 3), "layer": share}
    changes: Changes = more.changes | {RECOMPUTE: shares}
    return Candidate(
        changed(more.config, {RECOMPUTE: shares}),
        recomputing(less.prediction, more.prediction, number, num_layers),
        changes,
    )
