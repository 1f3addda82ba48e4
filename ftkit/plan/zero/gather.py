"""Gather the parameters that ZeRO-3 has partitioned, and partition them again: what lives while they are whole.

As DeepSpeed does it (deepspeed 0.19, runtime/zero/partition_parameters.py):

    ours                    theirs
    Status                  ZeroParamStatus
    Parameter               a torch parameter with ds_status, ds_active_sub_modules, ds_persist, ...
    Gathering               AllGatherHandle, AllGatherCoalescedHandle
    Gatherer.all_gather     all_gather_coalesced
    Gatherer.wait           AllGatherCoalescedHandle.wait
    Gatherer.partition      partition, _partition_param

One parameter alone is gathered into a storage of its own. Several are gathered into one flat storage for each dtype;
the first of them that is waited for brings all, each copied out into a storage of its own; the flat one lives until
the last of them has been waited for.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

from ftkit.plan.seconds.messages import Collective
from ftkit.plan.zero.heap import Heap

Module = tuple[int | None, str]
"""Layer and name of a module; on a tape that was unrolled many layers have a module of the same name."""
NEVER = -1


class Status(Enum):
    """The state of a parameter."""

    NOT_AVAILABLE = auto()
    """Each rank has its part."""
    INFLIGHT = auto()
    """Its gathering has begun, and nobody has waited for it."""
    AVAILABLE = auto()
    """It is whole."""


@dataclass(eq=False)
class Parameter:
    """A parameter of the deep model.

    Attributes:
        numel: elements.
        itemsize: bytes of one.
        order: among all parameters.
        is_trainable: whether it has a gradient.
        is_matrix: whether it has more dimensions than one.
        status: where it is.
        storage: of the whole parameter, where it has one to itself.
        gathering: that brings it, until somebody has waited for it.
        active_sub_modules: the modules that are at work with it.
        last_fetched_for: the step of the pass for which it was fetched last.
        kept_by: the module that keeps its storage, after it is partitioned, until its backward.
    """

    numel: int
    itemsize: int
    order: int
    is_trainable: bool
    is_matrix: bool
    status: Status = Status.NOT_AVAILABLE
    storage: int | None = None
    gathering: "Gathering | None" = None
    active_sub_modules: set[Module] = field(default_factory=set)
    last_fetched_for: int = NEVER
    kept_by: Module | None = None


@dataclass(eq=False)
class Gathering:
    """Parameters that are gathered together.

    Attributes:
        parameters: in the order in which they are copied out.
        flat: the flat storages; none where a parameter comes alone.
        num_waiting: parameters that nobody has waited for.
        is_complete: whether somebody has waited for one.
    """

    parameters: list[Parameter]
    flat: list[int | None]
    num_waiting: int
    is_complete: bool = False


class Gatherer:
    """Gathers parameters, and partitions them again."""

    def __init__(
        self,
        heap: Heap,
        ranks: int,
        *,
        parts_come: bool,
        asked: Callable[[], None],
        copied: Callable[[int], None],
    ) -> None:
        """Start with all parameters partitioned.

        Args:
            heap: takes what is gathered.
            ranks: W.
            parts_come: whether the parts are in another memory, and come to the device to be gathered.
            asked: told of each message that ranks exchange.
            copied: told of the bytes that are copied into a flat storage, and out of it.
        """
        self._heap, self._ranks, self._parts_come = heap, ranks, parts_come
        self._asked, self._copied = asked, copied
        self._kept: dict[Module, list[int]] = {}

    def all_gather(self, parameters: list[Parameter]) -> None:
        """Begin to gather partitioned parameters."""
        if not parameters:
            return
        sizes: Counter[int] = Counter()  # itemsize to bytes
        for parameter in parameters:
            sizes[parameter.itemsize] += self._padded_bytes(parameter)
        if self._parts_come:
            self._heap.pass_by(sizes.total() // self._ranks)
        flat: list[int | None] = []
        if self._ranks > 1 and len(parameters) > 1:
            flat = [self._heap.born(size) for size in sizes.values()]
            for size in sizes.values():
                self._send(size)
            self._copied(sizes.total() // self._ranks)
        else:
            for parameter in parameters:
                self._own_storage(parameter)
        gathering = Gathering(sorted(parameters, key=in_order), flat, len(parameters))
        for parameter in parameters:
            parameter.status, parameter.gathering = Status.INFLIGHT, gathering

    def gather_now(self, parameter: Parameter) -> None:
        """Gather one parameter and wait for it."""
        self._own_storage(parameter)
        parameter.status = Status.AVAILABLE

    def wait(self, parameter: Parameter) -> None:
        """Wait for a parameter, if it is on its way."""
        gathering, parameter.gathering = parameter.gathering, None
        if gathering is None:
            return
        if not gathering.is_complete:
            gathering.is_complete = True
            for one in gathering.parameters:
                one.status = Status.AVAILABLE
                if gathering.flat:
                    one.storage = self._heap.born(one.numel * one.itemsize)
                    self._copied(one.numel * one.itemsize)
        gathering.num_waiting -= 1
        if gathering.num_waiting == 0:
            for storage in gathering.flat:
                self._heap.died(storage)

    def partition(self, parameter: Parameter) -> None:
        """Go back to a part of a parameter; a storage that somebody keeps lives on."""
        parameter.status = Status.NOT_AVAILABLE
        if parameter.storage is not None and parameter.kept_by is not None:
            self._kept.setdefault(parameter.kept_by, []).append(parameter.storage)
        else:
            self._heap.died(parameter.storage)
        parameter.storage = parameter.kept_by = None

    def drop_kept(self, keeper: Module) -> None:
        """End the storages that somebody has kept."""
        for storage in self._kept.pop(keeper, ()):
            self._heap.died(storage)

    def drop_all_kept(self) -> None:
        """End the storages that anybody has kept."""
        for keeper in list(self._kept):
            self.drop_kept(keeper)

    def _own_storage(self, parameter: Parameter) -> None:
        """Gather a parameter into a storage of its own; one rank that has all of it on its device needs none."""
        if self._ranks > 1 or self._parts_come:
            parameter.storage = self._heap.born(self._padded_bytes(parameter))
            self._send(self._padded_bytes(parameter))

    def _send(self, size: int) -> None:
        self._heap.sends(Collective.GATHER, size)
        if self._ranks > 1:
            self._asked()

    def _padded_bytes(self, parameter: Parameter) -> int:
        """Return the bytes of a parameter whose parts are all of one size."""
        return -(-parameter.numel // self._ranks) * self._ranks * parameter.itemsize


def in_order(parameter: Parameter) -> int:
    """Return the key by which parameters are sorted as in the model."""
    return parameter.order
