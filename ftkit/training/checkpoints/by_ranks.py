"""Write a checkpoint that no host holds whole: every rank its own parts, the first one the rest."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from ftkit.engine.protocol import Parts
from ftkit.machine.disk import explained_writing
from ftkit.machine.process import ProcessContext, first_decides
from ftkit.machine.ranks import together
from ftkit.training.checkpoints.checkpoint import (
    ELSEWHERE,
    SHARDED,
    STATE,
    TrainingState,
    best_folder,
    remove_bests,
    remove_older,
    replacing,
    vouch,
)
from ftkit.training.checkpoints.shards import write_own


@dataclass(frozen=True)
class Ranks:
    """The ranks that write a checkpoint together.

    Attributes:
        process: the place of this one.
        patiently: does a write, perhaps several times, while a disk is full or gone.
        check: refuses a tensor that is not finite, by its name.
    """

    process: ProcessContext
    patiently: Callable[[Callable[[], None]], None]
    check: Callable[[str, torch.Tensor], None]

    def save(self, folder: Path, state: TrainingState, weights: Parts, moments: Parts, keep: int) -> None:
        """Write a checkpoint; every rank calls this.

        Args:
            folder: the run's `checkpoints` folder.
            state: where the run stands.
            weights: this rank's parts of what trains.
            moments: this rank's parts of the optimizer's tensors.
            keep: checkpoints that stay, this one counted.

        Raises:
            FtkitError: what went wrong on one rank, on all of them.
        """
        text = state.model_copy(update={"format": SHARDED}).model_dump_json(indent=2)
        self._write(folder / f"step-{state.step:08d}", {"weight": weights, "moment": moments}, text)
        if self.process.is_main:
            remove_older(folder, state, keep)

    def save_best(self, folder: Path, state: TrainingState, weights: Parts) -> None:
        """Keep the weights of a validation that is among the best so far; as `save`."""
        self._write(best_folder(folder, state.step), {"weight": weights}, None)
        if self.process.is_main:
            remove_bests(folder, state.best_steps)

    def _write(self, target: Path, groups: dict[str, Parts], text: str | None) -> None:
        process = self.process

        def write_parts(aside: Path) -> None:
            with explained_writing(aside, ELSEWHERE):
                self.patiently(lambda: write_own(aside, process.rank, process.world_size, groups, self.check))

        def finish(aside: Path) -> None:
            if text is not None:
                (aside / STATE).write_text(text, encoding="utf-8")
            vouch(aside)

        with ExitStack() as stack:  # which is empty on all ranks but the first
            aside = first_decides(process, lambda: stack.enter_context(replacing(target)))
            together(process, lambda: write_parts(aside))
            first_decides(process, lambda: finish(aside))
