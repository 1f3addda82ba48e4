"""ZeRO-3's coordinator: which parameters are whole at each moment of a step.

It hears the visits on a traced step and does what DeepSpeed's does (deepspeed 0.19, runtime/zero/):

    ours                          theirs                                   where
    TraceMode                     ZeRoTraceMode                            partitioned_param_coordinator.py
    reset_step                    reset_step                               partitioned_param_coordinator.py
    _trace_prologue               trace_prologue, _invalidate_trace        partitioned_param_coordinator.py
    _fetch_sub_module             record_module, fetch_sub_module          partitioned_param_coordinator.py
    _prefetch                     the end of fetch_sub_module              partitioned_param_coordinator.py
    _release_sub_module           release_sub_module                       partitioned_param_coordinator.py
    _params_to_release            __params_to_release                      partitioned_param_coordinator.py
    _release_param                __release_param                          partitioned_param_coordinator.py
    release_backward_leftovers    release_backward_leftovers               partitioned_param_coordinator.py
    release_and_reset_all         release_and_reset_all, _post_step        partitioned_param_coordinator.py, stage3.py
    _touch                        ZeROOrderedDict.__getitem__              parameter_offload.py

The first pass, a forward with its backward, gathers what a module needs when it needs it, and records the order of the
modules. From the second on the order is known, and parameters are fetched ahead: until the prefetch bucket is full, and
never more than may be live. An example: three modules with a weight each, of 100 elements in 2 bytes, on two ranks; a
prefetch bucket of 200 elements, 400 that may be live, no reuse distance. The bytes that live in each module:

    at work with   pass 1   pass 2
    the root            0      400   a and b are fetched ahead into one flat storage
    a                 200     1000   both are copied out of it, and it waits for b; c is fetched ahead
    b                 200      600   the flat storage is gone; a stays, since looking ahead came upon its backward
    c                 200      600   and goes when its forward is over: the next step is no longer ahead
    c, backward       200      600   it is gathered again
    b, backward       200      400
    a, backward       200      200
"""

import itertools
from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from ftkit.plan.zero.gather import NEVER, Gatherer, Module, Parameter, Status, in_order
from ftkit.plan.zero.module_events import Moment, Visit
from ftkit.step.observer import Phase


class TraceMode(Enum):
    """The knowledge of the order of the modules in a pass."""

    INVALID = auto()
    """Nothing yet, or the pass at hand goes another way than the last one."""
    RECORD = auto()
    """It is being written down."""
    COMPLETE = auto()
    """All of it."""


@dataclass(frozen=True)
class Limits:
    """The settings that decide which parameters are whole, in elements.

    Attributes:
        prefetch: stage3_prefetch_bucket_size.
        live: stage3_max_live_parameters.
        reuse: stage3_max_reuse_distance.
        persist: stage3_param_persistence_threshold.
    """

    prefetch: int
    live: int
    reuse: int
    persist: int

    @classmethod
    def of(cls, zero: dict[str, Any]) -> "Limits":
        """Read the section `zero_optimization`."""
        names = ("prefetch_bucket_size", "max_live_parameters", "max_reuse_distance", "param_persistence_threshold")
        return cls(*(int(zero[f"stage3_{name}"]) for name in names))


class Coordinator:
    """Decides what is gathered and what is released, as one visit follows another."""

    def __init__(self, parameters: dict[Module, Parameter], limits: Limits, gatherer: Gatherer) -> None:
        """Start with nothing known.

        Args:
            parameters: (layer, name) to the parameter.
            limits: of the configuration.
            gatherer: does what is decided.
        """
        self._parameters, self._limits, self._gatherer = parameters, limits, gatherer
        self._mode = TraceMode.INVALID
        self._order: list[tuple[Module, list[Parameter]]] = []  # of the pass that was recorded
        self._queue: deque[tuple[Parameter, int]] = deque()  # what is left of it, each parameter with its step
        self._step = self._num_available = 0
        self._own: dict[Module, list[Parameter]] = {}
        self._active_backward: dict[Module, list[Parameter]] = {}
        self._recomputed: dict[Module, set[Parameter]] = {}
        self._known_releases: dict[tuple[Module, int], frozenset[Parameter]] = {}

    def parameter(self, layer: int | None, name: str) -> Parameter:
        """Return the parameter that a name means in a layer: the layer's own, else one outside the layers."""
        own = self._parameters.get((layer, name))
        return self._parameters[None, name] if own is None else own

    def visit(self, visit: Visit) -> None:
        """Do what DeepSpeed's hooks do when a module begins or ends, or asks for a parameter of another one."""
        module = (visit.layer, visit.module)
        if visit.moment is Moment.TOUCH:
            self._touch(self._own[module], self.parameter(visit.layer, visit.weights[0]))
            return
        if module not in self._own:
            self._own[module] = [self.parameter(visit.layer, name) for name in visit.weights]
        if visit.moment is Moment.ENTER and visit.is_root:
            self.reset_step()
        if visit.moment in (Moment.ENTER, Moment.ENTER_BACKWARD):
            self._trace_prologue(module)
            self._fetch_sub_module(module, visit)
        else:
            self._release_sub_module(module, is_forward=visit.moment is Moment.LEAVE)

    def reset_step(self) -> None:
        """Begin a pass; one that was recorded is known from now on."""
        self._release_inflight()
        self._mode = TraceMode.RECORD if self._mode is TraceMode.INVALID else TraceMode.COMPLETE
        self._queue = deque(
            (parameter, step)
            for step, (_, own) in enumerate(self._order)
            for parameter in sorted(set(own), key=in_order)
        )
        for parameter in self._parameters.values():
            parameter.last_fetched_for = NEVER
        self._step = self._num_available = 0

    def release_backward_leftovers(self) -> None:
        """End a backward: release what no module's backward has released, and what the graph has kept."""
        for module, own in self._active_backward.items():
            for parameter in sorted({*own, *self._recomputed.pop(module, ())}, key=in_order):
                parameter.active_sub_modules.discard(module)
                if not self._persists(parameter):
                    self._release_param(parameter)
        self._active_backward.clear()
        self._gatherer.drop_all_kept()

    def release_and_reset_all(self) -> None:
        """Release all, and gather again what persists, as an update does."""
        for parameter in self._parameters.values():
            self._gatherer.wait(parameter)
            parameter.active_sub_modules.clear()
            self._release_param(parameter)
        persistent = [parameter for parameter in self._parameters.values() if self._persists(parameter)]
        self._all_gather_params(persistent)
        for parameter in persistent:
            self._gatherer.wait(parameter)

    def _trace_prologue(self, module: Module) -> None:
        """Forget the order of a pass that goes another way than was recorded."""
        if self._mode is not TraceMode.COMPLETE:
            return
        if self._step >= len(self._order) or self._order[self._step][0] != module:
            self._mode, self._order, self._queue = TraceMode.INVALID, [], deque()
            self._release_inflight()

    def _release_inflight(self) -> None:
        """Wait for what is on its way, and release it."""
        inflight = [parameter for parameter in self._parameters.values() if parameter.gathering is not None]
        for parameter in inflight:
            self._gatherer.wait(parameter)
            self._release_param(parameter)

    def _fetch_sub_module(self, module: Module, visit: Visit) -> None:
        """Gather what a module needs, wait for it, and fetch ahead what comes next."""
        own = self._own[module]
        if visit.moment is Moment.ENTER_BACKWARD:
            self._active_backward[module] = own
        if self._mode is TraceMode.RECORD:
            self._order.append((module, own))
        self._all_gather_params([parameter for parameter in own if parameter.status is Status.NOT_AVAILABLE])
        is_recomputed = visit.moment is Moment.ENTER and visit.phase is Phase.BACKWARD and bool(self._active_backward)
        for parameter in own:
            parameter.active_sub_modules.add(module)
            # A frozen parameter has no backward of its own to release it: that of the recomputed layer does.
            if is_recomputed and not parameter.is_trainable:
                owner = next(reversed(self._active_backward))
                self._recomputed.setdefault(owner, set()).add(parameter)
                parameter.active_sub_modules.add(owner)
            self._gatherer.wait(parameter)
        if visit.needs_grad:
            self._note_keepers(module, visit)
        if self._mode is TraceMode.COMPLETE:
            self._prefetch(own)
        self._step += 1

    def _note_keepers(self, module: Module, visit: Visit) -> None:
        """Note which storages outlive their release.

        A recomputed linear layer keeps a view of its weight until its backward, since checkpointing's own hooks come
        before those of `ftkit/engine/released_weights.py`. In 4 bits it keeps none (`models/kernels/packed_linear.py`).
        """
        for name in visit.weights:
            parameter = self.parameter(visit.layer, name)
            if visit.phase is Phase.BACKWARD and parameter.is_matrix and not visit.is_packed:
                parameter.kept_by = module

    def _prefetch(self, own: list[Parameter]) -> None:
        """Take a module's own parameters off the queue, and gather those behind them."""
        missing = {parameter for parameter in own if parameter.last_fetched_for < self._step}
        while self._queue and missing:
            parameter, step = self._queue.popleft()
            parameter.last_fetched_for = step
            missing.discard(parameter)
        room = min(self._limits.live - self._num_available, self._limits.prefetch)
        ahead: dict[Parameter, None] = {}  # a set that keeps its order
        numel = 0
        # The last one may exceed the room: DeepSpeed looks before it adds.
        while self._queue and numel < room:
            parameter, step = self._queue.popleft()
            parameter.last_fetched_for = max(parameter.last_fetched_for, step)
            if parameter.status is Status.NOT_AVAILABLE and parameter not in ahead:
                ahead[parameter] = None
                numel += parameter.numel
        self._all_gather_params(list(ahead))

    def _all_gather_params(self, parameters: list[Parameter]) -> None:
        self._num_available += sum(parameter.numel for parameter in parameters)
        self._gatherer.all_gather(parameters)

    def _touch(self, own: list[Parameter], parameter: Parameter) -> None:
        """Gather another module's parameter, which from now on comes and goes with this module's own."""
        if parameter.status is Status.NOT_AVAILABLE:
            own.append(parameter)
            self._gatherer.gather_now(parameter)

    def _release_sub_module(self, module: Module, *, is_forward: bool) -> None:
        """Release what a module has used and no other needs soon."""
        own = self._own[module]
        release = set(self._params_to_release(module) if self._mode is TraceMode.COMPLETE else own)
        touched = set(own)
        if not is_forward:
            recomputed = self._recomputed.pop(module, set())
            release |= {parameter for parameter in recomputed if not self._persists(parameter)}
            touched |= recomputed
            self._active_backward.pop(module, None)
            self._gatherer.drop_kept(module)
            for parameter in own:
                parameter.kept_by = None if parameter.kept_by == module else parameter.kept_by
        for parameter in sorted(touched, key=in_order):
            parameter.active_sub_modules.discard(module)
            if parameter in release:
                self._release_param(parameter)

    def _params_to_release(self, module: Module) -> frozenset[Parameter]:
        """Return what is not used again soon; DeepSpeed decides once for each step of a pass (an lru_cache)."""
        key = (module, self._step)
        if key not in self._known_releases:
            candidates = [parameter for parameter in self._own[module] if not self._persists(parameter)]
            # What was fetched ahead for a later module stays until then.
            release = {parameter for parameter in candidates if parameter.last_fetched_for <= self._step}
            distance = 0
            for _, own in itertools.islice(self._order, self._step, None):
                if distance >= self._limits.reuse or not release:
                    break
                release.difference_update(own)
                distance += sum(parameter.numel for parameter in own)
            self._known_releases[key] = frozenset(release)
        return self._known_releases[key]

    def _release_param(self, parameter: Parameter) -> None:
        """Partition a parameter again, unless a module is at work with it."""
        if parameter.status is Status.AVAILABLE and not parameter.active_sub_modules:
            self._num_available -= parameter.numel
            self._gatherer.partition(parameter)

    def _persists(self, parameter: Parameter) -> bool:
        """Return whether a parameter is too small to be partitioned again."""
        return parameter.numel <= self._limits.persist
