"""Tell a stage of ZeRO about each moment of the plain engine's step, and write what one rank then holds.

The plain engine's tape is walked event by event. What happens to each storage on it is its fate, which the stage
decides; what the stage holds beside them it adds to the heap itself, whenever it hears of a moment:

    load       after_load
    forward    on_visit ...
    backward   on_visit ..., on_first_gradient, on_gradient ..., end_backward
    update     before_update, end_update

An example: a step of one micro-batch under `Stage2`, on a model of two weights in fp32, of 4 and 6 elements, at two
ranks; the bucket takes 8 elements. Gradients go from the plain engine's tape, and what replaces them is the stage's:

    the plain engine's tape     the stage is told             and adds to the heap
    -- load                     after_load                    masters of this rank's half
    activations                                               (they are copied as they are)
    -- forward
    gradient of 6 is born       on_first_gradient             the bucket's memory, of 8 elements
                                on_gradient(6)
    gradient of 4 is born       on_gradient(4)                no room: the 6 are averaged, and this rank's part kept
    -- backward                 end_backward(is_last=True)    the 4 are averaged; the bucket's memory goes
                                before_update                 the norm, for a moment
    -- optimizer                end_update                    moments, which stay; the sums go
"""

from enum import Enum, auto
from itertools import zip_longest

from ftkit.observe.peaks import kinds
from ftkit.observe.tape import Birth, Tape
from ftkit.plan.zero.heap import FP32, Heap
from ftkit.plan.zero.module_events import Moment, Visit
from ftkit.records.figures import Kind
from ftkit.step.observer import Phase


class Fate(Enum):
    """The fate of a storage of the plain engine on one rank."""

    STAYS = auto()
    """It is there as on the plain engine."""
    LEAVES = auto()
    """It is never there: the stage has its own, or has it elsewhere."""
    HALVES = auto()
    """A gradient that stays in the half precision in which it was computed; the stage sums it in fp32."""
    WAITS = auto()
    """A gradient that is there until the stage has put it into its bucket (`Heap.end_gradients`)."""
    GOES = auto()
    """A gradient that goes into the bucket as it comes (`Stage.on_gradient`)."""


class Stage:
    """A stage, told of the moments of a step; one that a stage has no method for changes nothing."""

    def fate(self, birth: Birth, kind: Kind) -> Fate:  # noqa: ARG002  # for stages that ask
        """Return what becomes of a storage of the plain engine.

        Args:
            birth: of the storage.
            kind: the part of a breakdown that it belongs to.
        """
        return Fate.STAYS

    def after_load(self) -> None:
        """The weights are there."""

    def on_visit(self, visit: Visit) -> None:
        """A module's forward or backward begins or ends; told of where weights are partitioned."""

    def on_first_gradient(self) -> None:
        """The first gradient of a backward comes."""

    def on_gradient(self, elements: int) -> None:
        """A gradient comes whose fate is to go."""

    def end_backward(self, *, is_last: bool) -> None:
        """The backward of a micro-batch, the last of the step or not, has ended."""

    def before_update(self) -> None:
        """All gradients of the step are there."""

    def end_update(self) -> None:
        """The weights are updated."""


def rewrite(tape: Tape, heap: Heap, stage: Stage) -> Tape:
    """Return what one rank holds in the steps of a tape.

    Args:
        tape: of the plain engine.
        heap: of that tape, and new.
        stage: adds to the heap.

    Returns:
        The heap's tape.
    """
    return _Walk(tape, heap, stage).walk()


class _Walk:
    """One walk along a tape."""

    def __init__(self, tape: Tape, heap: Heap, stage: Stage) -> None:
        self._tape, self._heap, self._stage = tape, heap, stage
        self._fates = [stage.fate(birth, kind) for birth, kind in zip(tape.births, kinds(tape), strict=True)]
        self._first_gradient = -1
        self._is_summing = False

    def walk(self) -> Tape:
        begin = 0
        marks = self._tape.marks
        for (end, phase), following in zip_longest(marks, [name for _, name in marks[1:]]):
            self._heap.phase = phase
            if phase is Phase.OPTIMIZER:
                self._stage.before_update()
            self._phase(begin, end)
            self._end_phase(is_last=following is not Phase.FORWARD)
            begin = end
        self._phase(begin)
        return self._heap.tape

    def _phase(self, begin: int, end: int | None = None) -> None:
        watches = self._heap.phase is Phase.BACKWARD
        for number, (storage, is_birth, layer) in enumerate(self._tape.walk(begin, end)):
            # Later micro-batches add to the gradients of the first one, and so begin where that one had its first.
            is_gradient = is_birth and self._fates[storage] in (Fate.WAITS, Fate.GOES)
            if watches and (is_gradient or number == self._first_gradient):
                self._first_gradient, watches = number, False
                self._stage.on_first_gradient()
            if is_birth:
                self._copy(storage, layer)
            else:
                self._heap.end(storage, layer)

    def _copy(self, storage: int, layer: int | None) -> None:
        birth, fate = self._tape.births[storage], self._fates[storage]
        if isinstance(birth, Visit):
            self._visit(birth)
        elif fate is Fate.GOES:
            self._stage.on_gradient(birth.size // FP32)
        elif fate is not Fate.LEAVES and not self._is_summing:
            size = -(-birth.size // 2) if fate is Fate.HALVES else birth.size
            self._heap.copy(storage, size, layer, waits=fate is Fate.WAITS)

    def _visit(self, visit: Visit) -> None:
        # Between these two the plain engine adds a gradient to its sums, which the stage does not have.
        if visit.moment in (Moment.GRADIENT, Moment.SUMMED):
            self._is_summing = visit.moment is Moment.GRADIENT
        self._stage.on_visit(visit)

    def _end_phase(self, *, is_last: bool) -> None:
        if self._heap.phase is Phase.LOAD:
            self._stage.after_load()
            self._heap.step = 1
        elif self._heap.phase is Phase.BACKWARD:
            self._stage.end_backward(is_last=is_last)
        elif self._heap.phase is Phase.OPTIMIZER:
            self._stage.end_update()
            self._heap.step += 1
        self._heap.end_phase()
