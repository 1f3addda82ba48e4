"""A close look at one step of a training run: its timeline of live bytes, and torch's own snapshot of a GPU's memory.

The step is the second, the first that finds an optimizer with state; a run of one step has no other. Under the recorder
it takes a few times as long.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ftkit.data.batching import MicroBatch
from ftkit.engine.protocol import Engine
from ftkit.machine.memory import Snapshot, quiet_collector
from ftkit.observe.peaks import timeline
from ftkit.observe.recorded import batch_tensors, layer_names, see_model
from ftkit.observe.recorder import Recorder
from ftkit.observe.tape import Role
from ftkit.records.files import SNAPSHOT
from ftkit.records.schema import TimelineLine
from ftkit.step.observer import NOTHING, Observer, Phase


class Watch:
    """Looks closely at one step, where it was asked to."""

    def __init__(
        self,
        engine: Engine,
        at: int,
        write: Callable[[TimelineLine], None] | None,
        snapshot: Snapshot | None,
        folder: Path,
    ) -> None:
        """Wait for a step.

        Args:
            engine: what trains.
            at: the number of the step.
            write: takes the timeline; None: none is wanted.
            snapshot: is written after the step; None: none is wanted.
            folder: the result folder, for the snapshot.
        """
        self._engine, self._at, self._write, self._snapshot = engine, at, write, snapshot
        self._path = folder / SNAPSHOT.format(rank=engine.process.rank)

    @contextmanager
    def over(self, step: int, micro_batches: Sequence[MicroBatch]) -> Iterator[Observer]:
        """Look at a step, if it is the one.

        Args:
            step: its number.
            micro_batches: of this rank.

        Yields:
            Who wants to be told of its phases.
        """
        if step != self._at:
            yield NOTHING
            return
        if self._write is None:
            yield NOTHING
        else:
            with recorded(self._engine, step, micro_batches, self._write) as recorder:
                yield recorder
        self.close()

    def close(self) -> None:
        """Write the snapshot if it has not been: the run ends before the step, perhaps because memory ran out."""
        if self._snapshot is not None:
            self._snapshot.write(self._path)


@contextmanager
def recorded(
    engine: Engine, step: int, micro_batches: Sequence[MicroBatch], write: Callable[[TimelineLine], None]
) -> Iterator[Observer]:
    """Record the one step that is taken while this lasts.

    Args:
        engine: holds a model and an optimizer.
        step: the number of the step.
        micro_batches: of this rank.
        write: takes the timeline.

    Yields:
        The recorder, to be told of the step's phases.
    """
    model, recorder = engine.model, Recorder(device_type=engine.device.type)
    layers = layer_names(model)
    with quiet_collector(), recorder.inside(model, layers):
        see_model(recorder, model, layers)
        for kind, tensor in engine.held_tensors():
            recorder.see([("held by the engine", tensor)], Role(kind))
        recorder.mark(Phase.LOAD)
        recorder.begin_step(step)
        recorder.see(batch_tensors(micro_batches), Role.INPUT)
        yield recorder
    write(timeline(recorder.tape, step, engine.process.rank, layers))
