"""ZeRO-3's window of gathered weights, moved over a traced step as DeepSpeed's coordinator moves it.

Which weights are whole at a moment follows from the order in which modules come by, three numbers of the configuration
and what the coordinator remembers of the pass before (deepspeed 0.19, runtime/zero/partitioned_param_coordinator.py and
partition_parameters.py, `all_gather_coalesced`): one weight alone is gathered into a storage of its own; several into
one flat storage, from which each is copied when the first of them is waited for, and which lives until the last has
been. A first pass records the order and gathers only what is needed; from the second on, the next weights are fetched
ahead. Gradients are copied into the bucket as they come and reduced when it is full and at the end of each backward.
"""

import itertools
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, Protocol

from ftkit.observe.tape import BACKWARD, FORWARD
from ftkit.plan.zero.module_events import ENTER, ENTER_BACKWARD, GRADIENT, LEAVE, LEAVE_BACKWARD, SUMMED, TOUCH, Visit

FP32, FP64 = 4, 8
_NEVER = -1


class Storages(Protocol):
    """Where storages are born and die, now."""

    def born(self, size: int) -> int:
        """Return the number of a new storage of `size` bytes."""

    def died(self, number: int) -> None:
        """End a storage."""


@dataclass(eq=False)
class Weight:
    """A parameter of the deep model.

    Attributes:
        numel: elements.
        itemsize: bytes of one.
        order: among all parameters.
        trains: whether it has a gradient.
        state: `away`, `coming` or `here`.
        storage: of the whole, while it is here or, alone, on its way.
        users: modules in whose forward or backward it is.
        gathering: on its way, and not yet waited for by its module.
        fetched_for: the step of the pass that it was last fetched for.
        is_matrix: it has more dimensions than one.
        is_held: something keeps its storage until the graph is gone.
        viewed_by: the module whose backward is to come, and keeps its storage until then.
    """

    numel: int
    itemsize: int
    order: int
    trains: bool
    is_matrix: bool
    state: str = "away"
    storage: int | None = None
    users: set[Any] = field(default_factory=set)
    gathering: "_Gathering | None" = None
    fetched_for: int = _NEVER
    is_held: bool = False
    viewed_by: Any = None


@dataclass(eq=False)
class _Gathering:
    """One all-gather: of one weight into its own storage, or of several into flat ones."""

    weights: list[Weight]
    flat: list[int]
    waiting: int
    is_done: bool = False


@dataclass(frozen=True)
class Limits:
    """What of the configuration moves the window, in elements.

    Attributes:
        ranks: W.
        prefetch: stage3_prefetch_bucket_size.
        live: stage3_max_live_parameters.
        reuse: stage3_max_reuse_distance.
        persist: stage3_param_persistence_threshold.
        bucket: reduce_bucket_size.
        copies: how many more storages as large as the bucket a reduction takes: gloo sums a copy, NCCL does not.
        weights_come: partitions of weights are in another memory, and come to the device to be gathered.
        sums_come: partitions of gradients are, and come to be added to.
        norms_early: each partition's norm is taken, in fp64, when it has been reduced; else before the update.
    """

    ranks: int
    prefetch: int
    live: int
    reuse: int
    persist: int
    bucket: int
    copies: int
    weights_come: bool = False
    sums_come: bool = False
    norms_early: bool = False


class Window:
    """The coordinator and the gradients' bucket; told of one visit after another."""

    def __init__(
        self,
        weights: dict[tuple[int | None, str], Weight],
        num_gradients: dict[tuple[int, int], int],
        limits: Limits,
        storages: Storages,
    ) -> None:
        """Start with all weights partitioned.

        Args:
            weights: (layer, name) to the weight.
            num_gradients: (step, micro-batch) to the visits that bring a gradient.
            limits: of the configuration.
            storages: take what is gathered.
        """
        self._weights, self._num_gradients, self._limits, self._storages = weights, num_gradients, limits, storages
        self._mode = "unknown"
        self._passed: list[tuple[Any, list[Weight]]] = []
        self._queue: deque[tuple[Weight, int]] = deque()
        self._step = self._num_available = 0
        self._backwards: dict[Any, list[Weight]] = {}
        self._recomputed: dict[Any, set[Weight]] = {}
        self._kept: dict[Any, list[int]] = {}
        self._gradients: list[Weight] = []
        self._filled = self._seen_gradients = 0
        self._own: dict[Any, list[Weight]] = {}
        self._known_releases: dict[tuple[Any, int], set[Weight]] = {}

    def visit(self, visit: Visit) -> None:
        """Do what DeepSpeed's hook does at this moment."""
        module = (visit.layer, visit.module)
        if visit.op in (TOUCH, GRADIENT, SUMMED):
            own = [self._weight(visit, name) for name in visit.weights]
        elif module in self._own:
            own = self._own[module]
        else:
            own = self._own[module] = [self._weight(visit, name) for name in visit.weights]
        if visit.op == ENTER and visit.is_root:
            self._begin_pass()
        if visit.op in (ENTER, ENTER_BACKWARD):
            self._check_order(module)
            self._fetch(module, own, visit)
        elif visit.op in (LEAVE, LEAVE_BACKWARD):
            self._leave(module, own, visit)
        elif visit.op == TOUCH:
            self._touch(self._own[module], own[0])
        elif visit.op == GRADIENT:
            self._take_gradient(own[0])
        elif visit.op == SUMMED and self._seen_gradients == self._num_gradients[visit.step, visit.micro_batch]:
            self._reduce()

    def end_backward(self) -> None:
        """Release what no module's backward has released; the graph is gone."""
        for module, own in list(self._backwards.items()):
            for weight in {*own, *self._recomputed.pop(module, ())}:
                weight.users.discard(module)
                if not self._persists(weight):
                    self._release(weight)
        self._backwards.clear()
        self._seen_gradients = 0
        for module in list(self._kept):
            self._drop_kept(module)

    def end_step(self) -> None:
        """Release all, as before an update."""
        for weight in self._weights.values():
            if weight.gathering is not None:
                self._wait(weight)
            weight.users.clear()
            self._release(weight)
        stay = [weight for weight in self._weights.values() if self._persists(weight)]
        self._gather(stay)
        for weight in stay:
            self._wait(weight)

    def _weight(self, visit: Visit, name: str) -> Weight:
        found = self._weights.get((visit.layer, name))
        return self._weights[None, name] if found is None else found

    def _persists(self, weight: Weight) -> bool:
        return weight.numel <= self._limits.persist

    def _begin_pass(self) -> None:
        """Forward begins: after a first pass of any order its order is recorded, then it is known."""
        self._drop_coming()
        self._mode = {"unknown": "recording", "recording": "known", "known": "known"}[self._mode]
        if self._mode == "recording":
            self._passed = []
        self._queue = deque(
            (weight, number)
            for number, (_, own) in enumerate(self._passed)
            for weight in sorted(set(own), key=lambda one: one.order)
        )
        for weight in self._weights.values():
            weight.fetched_for = _NEVER
        self._step = self._num_available = 0

    def _check_order(self, module: Any) -> None:
        if self._mode != "known":
            return
        if self._step >= len(self._passed) or self._passed[self._step][0] != module:
            self._mode, self._passed, self._queue = "unknown", [], deque()
            self._drop_coming()

    def _drop_coming(self) -> None:
        coming = [weight for weight in self._weights.values() if weight.gathering is not None]
        for weight in coming:
            self._wait(weight)
            self._release(weight)

    def _fetch(self, module: Any, own: list[Weight], visit: Visit) -> None:
        if visit.op == ENTER_BACKWARD:
            self._backwards[module] = own
        if self._mode == "recording":
            self._passed.append((module, own))
        self._gather([weight for weight in own if weight.state == "away"])
        for weight in own:
            weight.users.add(module)
            if visit.op == ENTER and visit.phase == BACKWARD and self._backwards and not weight.trains:
                user = next(reversed(self._backwards))
                self._recomputed.setdefault(user, set()).add(weight)
                weight.users.add(user)
            if weight.gathering is not None:
                self._wait(weight)
        if visit.needs_grad:
            self._keep(module, [self._weight(visit, name) for name in visit.weights], visit)
        if self._mode == "known":
            self._look_ahead(own)
        self._step += 1

    def _keep(self, module: Any, own: list[Weight], visit: Visit) -> None:
        """Note which storages outlive their release.

        bitsandbytes' product keeps a 4-bit weight as long as its graph (autograd/_functions.py, MatMul4Bit), and a
        recomputed graph is gone at once; a recomputed linear layer keeps a view of its weight until its backward, since
        checkpointing's own hooks come before those of `ftkit/engine/released.py`.
        """
        for weight in own:
            if visit.is_packed:
                weight.is_held |= visit.phase == FORWARD
            elif visit.phase == BACKWARD and weight.is_matrix:
                weight.viewed_by = module

    def _look_ahead(self, own: list[Weight]) -> None:
        missing = {weight for weight in own if weight.fetched_for < self._step}
        while self._queue and missing:
            weight, number = self._queue.popleft()
            weight.fetched_for = number
            missing.discard(weight)
        room = min(self._limits.live - self._num_available, self._limits.prefetch)
        ahead: dict[Weight, None] = {}
        numel = 0
        while self._queue and numel < room:
            weight, number = self._queue.popleft()
            weight.fetched_for = max(weight.fetched_for, number)
            if weight.state == "away" and weight not in ahead:
                ahead[weight] = None
                numel += weight.numel
        self._gather(list(ahead))

    def _gather(self, weights: list[Weight]) -> None:
        if not weights:
            return
        self._num_available += sum(weight.numel for weight in weights)
        flat: list[int] = []
        if self._limits.weights_come:
            self._pass_by(sum(self._padded(weight) * weight.itemsize for weight in weights) // self._limits.ranks)
        if self._limits.ranks > 1 and len(weights) > 1:
            sizes: Counter[int] = Counter()
            for weight in weights:
                sizes[weight.itemsize] += self._padded(weight) * weight.itemsize
            flat = [self._storages.born(size) for size in sizes.values()]
        elif self._limits.ranks > 1 or self._limits.weights_come:
            for weight in weights:
                weight.storage = self._storages.born(self._padded(weight) * weight.itemsize)
        gathering = _Gathering(sorted(weights, key=lambda one: one.order), flat, len(weights))
        for weight in weights:
            weight.state, weight.gathering = "coming", gathering

    def _padded(self, weight: Weight) -> int:
        return -(-weight.numel // self._limits.ranks) * self._limits.ranks

    def _wait(self, weight: Weight) -> None:
        gathering = weight.gathering
        assert gathering is not None
        weight.gathering = None
        if not gathering.is_done:
            gathering.is_done = True
            for one in gathering.weights:
                one.state = "here"
                if gathering.flat:
                    one.storage = self._storages.born(one.numel * one.itemsize)
        gathering.waiting -= 1
        if gathering.waiting == 0:
            for storage in gathering.flat:
                self._storages.died(storage)

    def _touch(self, own: list[Weight], weight: Weight) -> None:
        """Gather another module's weight, which from now on comes and goes with this module's own."""
        if weight.state == "away":
            own.append(weight)
            weight.state = "here"
            if self._limits.ranks > 1 or self._limits.weights_come:
                weight.storage = self._storages.born(self._padded(weight) * weight.itemsize)

    def _leave(self, module: Any, own: list[Weight], visit: Visit) -> None:
        release = self._to_release(module, own) if self._mode == "known" else set(own)
        touched = set(own)
        if visit.op == LEAVE_BACKWARD:
            recomputed = self._recomputed.pop(module, set())
            release |= {weight for weight in recomputed if not self._persists(weight)}
            touched |= recomputed
            self._backwards.pop(module, None)
            self._drop_kept(module)
            for weight in own:
                weight.viewed_by = None if weight.viewed_by == module else weight.viewed_by
        for weight in sorted(touched, key=lambda one: one.order):
            weight.users.discard(module)
            if weight in release:
                self._release(weight)

    def _drop_kept(self, module: Any) -> None:
        for storage in self._kept.pop(module, ()):
            self._storages.died(storage)

    def _to_release(self, module: Any, own: list[Weight]) -> set[Weight]:
        """Return what is not used again soon; DeepSpeed decides once for each step of a pass (an lru_cache)."""
        if (module, self._step) not in self._known_releases:
            release = {one for one in own if not self._persists(one) and one.fetched_for <= self._step}
            distance = 0
            for _, weights in itertools.islice(self._passed, self._step, None):
                if distance >= self._limits.reuse or not release:
                    break
                release.difference_update(weights)
                distance += sum(weight.numel for weight in weights)
            self._known_releases[module, self._step] = release
        return set(self._known_releases[module, self._step])

    def _release(self, weight: Weight) -> None:
        if weight.state != "here" or weight.users:
            return
        weight.state = "away"
        self._num_available -= weight.numel
        if weight.storage is not None:
            if weight.is_held:
                self._kept.setdefault(None, []).append(weight.storage)
            elif weight.viewed_by is not None:
                self._kept.setdefault(weight.viewed_by, []).append(weight.storage)
            else:
                self._storages.died(weight.storage)
        weight.storage, weight.is_held, weight.viewed_by = None, False, None

    def _take_gradient(self, weight: Weight) -> None:
        if self._gradients and self._filled + weight.numel > self._limits.bucket:
            self._reduce()
        self._gradients.append(weight)
        self._filled += weight.numel
        self._seen_gradients += 1

    def _reduce(self) -> None:
        """Copy the bucket in the order of its owners, unless it is one gradient that needs no padding, and sum."""
        size = FP32 * sum(self._padded(weight) for weight in self._gradients)
        is_alone = len(self._gradients) == 1 and self._gradients[0].numel % self._limits.ranks == 0
        flat = None if is_alone else self._storages.born(size)
        self._pass_by(*[size] * self._limits.copies)
        largest = max(self._padded(weight) for weight in self._gradients) // self._limits.ranks
        self._pass_by(
            *[FP32 * largest] * self._limits.sums_come,
            *[FP64 * largest] * self._limits.norms_early,
        )
        if flat is not None:
            self._storages.died(flat)
        self._gradients.clear()
        self._filled = 0

    def _pass_by(self, *sizes: int) -> None:
        for storage in [self._storages.born(size) for size in sizes]:
            self._storages.died(storage)
