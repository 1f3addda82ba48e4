"""The candidates of a search: configurations with what they need, and the order in which they are offered."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ftkit.config.tree import RunConfig
from ftkit.plan.choices.changes import CUTS, RECOMPUTE, STREAM, Changes
from ftkit.plan.predicted import AnyPrediction, TracedPrediction
from ftkit.records.schema import Basis, Verdict

SHARING = ("engine.zero_stage", "engine.offload_optimizer", "engine.offload_parameters")
"""The keys that say how a step is shared out."""
TIGHT = 0.95
"""A recommendation leaves a twentieth of the device free: for other processes' contexts and libraries' workspaces."""
ALIKE = 1.03
"""A step that takes no more than this many times as long is as fast: predicted times order kernels no finer."""
_OFFERED = 3
"""Changes that are offered at most."""
NOTABLY = 1.02
"""A step that takes no more than this many times as long is as good, if it needs less memory."""


@dataclass(frozen=True)
class Candidate:
    """A configuration and what it needs.

    Attributes:
        config: the whole run.
        prediction: of it.
        changes: keys that differ from the one asked for, with their values.
    """

    config: RunConfig
    prediction: AnyPrediction
    changes: Changes

    @property
    def fits(self) -> bool:
        """Whether it surely fits."""
        return self.prediction.verdict is Verdict.FITS

    @property
    def has_room(self) -> bool:
        """Whether it fits with something to spare."""
        return self.fits and self.needed_bytes <= TIGHT * self.prediction.budget_bytes

    @property
    def is_between(self) -> bool:
        """Whether it was read off between two that were traced."""
        return self.prediction.basis is Basis.INTERPOLATED

    @property
    def needed_bytes(self) -> int:
        """The memory of the process at its peak, with the longest texts."""
        return self.prediction.needed_bytes

    @property
    def seconds(self) -> float:
        """Of a step, with its part of what runs once; 0 for all of a model that a formula knows, which has no time."""
        if not isinstance(self.prediction, TracedPrediction):
            return 0.0
        trunk, epochs = self.prediction.trunk, self.config.training.epochs or 1.0
        once = 0.0 if trunk is None or trunk.is_done else trunk.seconds_per_step / epochs
        return self.prediction.step_seconds + once


@dataclass(frozen=True)
class RefusedChange:
    """A change that a run does not go with.

    Attributes:
        changes: keys with their values.
        reason: why not, and what to do instead.
    """

    changes: Changes
    reason: str


def _rank(candidate: Candidate) -> tuple[float, int]:
    return candidate.seconds, candidate.needed_bytes


def ranked(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Order candidates: those that are hardly slower than the fastest by how much they change, the others by time.

    Args:
        candidates: in any order.

    Returns:
        The simplest of the fast ones first; of two that change as much the faster, then the one with more room.
    """
    by_time = sorted(candidates, key=_rank)
    limit = ALIKE * by_time[0].seconds if by_time else 0.0
    alike = [one for one in by_time if one.seconds <= limit]
    return sorted(alike, key=lambda one: (_complications(one.changes), *_rank(one))) + by_time[len(alike) :]


def best_of_each_kind(
    candidates: Iterable[Candidate], confirm: Callable[[Candidate], Candidate], fits: Callable[[Candidate], bool]
) -> list[Candidate]:
    """Return of the candidates that change the same things the best that fits.

    The cut, which layers recompute, and the place that layers are streamed from do not count.

    Args:
        candidates: in any order.
        confirm: makes of one that was read off one that was traced.
        fits: whether a candidate does; one that was read off may not after all.

    Returns:
        Traced ones, the best first, at most three.
    """
    best: dict[str, Candidate] = {}
    for one in ranked(candidates):
        kind = repr({key: key in (RECOMPUTE, STREAM) or value for key, value in one.changes.items() if key not in CUTS})
        if kind not in best and len(best) < _OFFERED:
            traced = confirm(one) if one.is_between else one
            if fits(traced):
                best[kind] = traced
    return list(best.values())


def _complications(changes: Changes) -> int:
    """Return how much of a run changes with some changes: offloading most, then sharing out, then all but the cut."""
    weights = {
        key: 4 if "offload" in key or key == STREAM else 2 if key in SHARING else 1
        for key in changes
        if key not in CUTS
    }
    return sum(weight for key, weight in weights.items() if changes[key] not in (0, "none"))
