"""A stopwatch for the operators of real steps, and what it has seen of some of them."""

import contextlib
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from ftkit.machine.memory import page_faults
from ftkit.models.kernels.foreign import DispatchMode
from ftkit.observe.operators import Work, op_key, work_of
from ftkit.observe.tape import OpKey
from ftkit.plan.seconds.hooks import Hooks
from ftkit.plan.seconds.loops import clock
from ftkit.plan.seconds.speed import Device, fresh_pages
from ftkit.plan.seconds.timed import Timed
from ftkit.step.observer import Phase

_LEAST = 1e-7
"""Seconds that are left to an operator whose pages were given quicker than is usual."""


class Stopwatch(DispatchMode):
    """A dispatch mode that takes the time of each operator, beside what fresh pages take, which a plan counts alone.

    Attributes:
        calls: operators so far.
        seconds: that they took together, fresh pages included.
        clock: returns seconds.
    """

    def __init__(self, fault_seconds: float = 0.0, clock: Callable[[], float] = clock) -> None:
        """Start with nothing timed.

        Args:
            fault_seconds: that a page takes which is touched for the first time.
            clock: returns seconds.
        """
        super().__init__()
        self._fault_seconds, self.clock = fault_seconds, clock
        self._seen: dict[OpKey, list[float]] = defaultdict(list)
        self.calls, self.seconds = 0, 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator and take its time."""
        faults, begun = page_faults(), self.clock()
        out = func(*args, **(kwargs or {}))
        seconds = self.clock() - begun
        faults = page_faults() - faults
        if work_of(func) is Work.SOME:
            self.calls += 1
            self.seconds += seconds
            computed = max(_LEAST, seconds - faults * self._fault_seconds)
            for key, share in _keys(func.__name__, args, out):
                self._seen[key].append(share * computed)
        return out

    def operators(self) -> dict[tuple[str, str], list[Timed]]:
        """Return the median of each operator at each size, by its name without overload and its dtype."""
        found: dict[tuple[str, str], list[Timed]] = defaultdict(list)
        for (name, flops, moved, dtype), seconds in self._seen.items():
            found[name.partition(".")[0], dtype].append(Timed(flops, moved, statistics.median(seconds)))
        return dict(found)

    def asked(self) -> dict[str, float]:
        """Return the median of each operator's calls, by its name without overload, whatever its size."""
        found: dict[str, list[float]] = defaultdict(list)
        for (name, *_), seconds in self._seen.items():
            found[name.partition(".")[0]] += seconds
        return {name: statistics.median(seconds) for name, seconds in found.items()}


def _keys(name: str, args: tuple[Any, ...], out: Any) -> Iterator[tuple[OpKey, float]]:
    """Yield what a tape calls an operator, with its share of the time: of a list of parameters, one by one."""
    lists = [one for one in (*args, out) if isinstance(one, (list, tuple)) and one and isinstance(one[0], torch.Tensor)]
    if not name.startswith(("_fused", "_foreach")) or not lists:
        yield op_key(name, args, out), 1.0
        return
    total = sum(tensor.nbytes for one in lists for tensor in one)
    for parts in zip(*(one for one in lists if len(one) == len(lists[0])), strict=True):
        yield op_key(f"_fused{name}", parts, None), sum(one.nbytes for one in parts) / total


@dataclass(frozen=True)
class Part:
    """A phase of a step, as often as the step has it.

    Attributes:
        phase: which.
        seconds: that it took.
        calls: of operators under a stopwatch.
        computed: seconds of these.
    """

    phase: Phase
    seconds: float
    calls: int
    computed: float


class Parts:
    """An observer of a step that notes its parts, one after another.

    Attributes:
        each: the parts.
    """

    def __init__(self, stopwatch: Stopwatch, prepare: Callable[[], object]) -> None:
        """Start with none.

        Args:
            stopwatch: that may be at work.
            prepare: called before each part.
        """
        self._stopwatch, self._prepare = stopwatch, prepare
        self.each: list[Part] = []

    @contextlib.contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Note a part."""
        self._prepare()
        watch = self._stopwatch
        begun, calls, computed = watch.clock(), watch.calls, watch.seconds
        yield
        self.each.append(Part(phase, watch.clock() - begun, watch.calls - calls, watch.seconds - computed))


class Seen:
    """What steps have shown.

    Attributes:
        stopwatch: that timed their operators.
        hooks: around their modules.
    """

    def __init__(self, stopwatch: Stopwatch | None = None) -> None:
        """Start with nothing.

        Args:
            stopwatch: that will time the steps; None: one for a processor.
        """
        self.stopwatch, self.hooks = stopwatch or Stopwatch(fresh_pages()[0]), Hooks()
        self._hosts: dict[Phase, list[float]] = defaultdict(list)

    def beside(self, bare: list[Part], watched: list[Part]) -> None:
        """Note what each part of a step takes beyond its operators.

        Args:
            bare: of a step that nobody watched.
            watched: of one under the stopwatch.
        """
        for plain, one in zip(bare, watched, strict=True):
            self._hosts[plain.phase].append((plain.seconds - one.computed) / one.calls)

    def hosts(self) -> dict[Phase, float]:
        """Return what each phase took beside each of its operators."""
        return {phase: max(0.0, statistics.median(each)) for phase, each in self._hosts.items()}

    def put_into(self, quick: Device) -> Device:
        """Return the speed of the processor by what was seen.

        Args:
            quick: its speed by loops of their own.
        """
        hosts = self.hosts()
        return replace(
            quick,
            host_seconds=hosts[Phase.FORWARD],  # as phases of other kinds are
            hosts=hosts,
            hook_seconds=self.hooks.usual(),
            timed=self.stopwatch.operators(),
        )
