"""What two ranks run: trainings in which memory runs out on the second one, at the places that a case names."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from ftkit.config.files import load_config
from ftkit.engine.deepspeed import DeepSpeedEngine
from ftkit.engine.plain import PlainEngine
from ftkit.machine import process as machine
from ftkit.machine.process import ProcessContext
from ftkit.training import loop
from ftkit.training.reporters import Reporters
from ftkit.training.steps import take_step
from tests.quick_ranks import collect_little, know_the_processor

STEPS = 7
FAILING = 1
"""The rank that has less memory."""


class Place(NamedTuple):
    """Where memory runs out, once."""

    kind: str
    """`forward` and `backward` in the middle of the model, `update` when it has changed weights, `evaluation`."""
    step: int


PASSES = [Place("forward", 1), Place("backward", 1), Place("forward", 7), Place("backward", 7)]
UPDATES = [Place("update", 1), Place("evaluation", 4), Place("backward", 5), Place("update", 7)]
CASES: dict[str, tuple[list[str], list[Place]]] = {
    f"{name}-{places}": (["engine.zero_stage=" + stage, *more], PASSES if places == "passes" else UPDATES)
    for name, stage, more in (
        ("plain", "0", []),
        ("zero1", "1", []),
        ("zero2", "2", []),
        ("zero3", "3", []),
        ("zero3-offload", "3", ["engine.offload_optimizer=cpu", "engine.offload_parameters=cpu"]),
    )
    for places in ("passes", "updates")
}


USUAL = ["zero2-passes", "zero3-passes", "zero3-updates"]
"""Those that the ordinary tests run; the others take a minute more."""


def settings(work: Path, folder: Path) -> list[str]:
    """Return what all of the runs have in common."""
    return [
        f"model.name={work / 'bert'}", f"data.dataset={work / 'texts.csv'}", f"output.folder={folder}",
        "model.precision=fp32", "training.plan_first=false", f"training.max_steps={STEPS}", "training.log_every=1",
        "batch.global_batch_size=16", "batch.micro_batch_size=8", "training.eval_every=2",
        "training.checkpoint_every=3", "output.reopen=false",
    ]  # fmt: skip


class Shortage:
    """Lets memory run out on this rank at some places."""

    def __init__(self, places: list[Place]) -> None:
        self.left, self.step = list(places), 1
        self.model: Any = None
        self.catches_up = False

    def due(self, kind: str) -> bool:
        """Return whether it runs out now, and note that it has."""
        if self.catches_up or Place(kind, self.step) not in self.left:
            return False
        self.left.remove(Place(kind, self.step))
        return True

    def watch(self, engine: Any) -> None:
        """Hang hooks into the last layer of a model that is new."""
        if engine.model is not self.model:
            self.model = engine.model
            name = next(name for name, _ in self.model.named_modules() if name.endswith("layer.1.attention.output"))
            self.model.get_submodule(name).register_forward_hook(self._in_forward)

    def _in_forward(self, module: Any, _: Any, output: torch.Tensor) -> None:
        if self.due("forward" if module.training else "evaluation"):
            no_memory()
        if module.training and output.requires_grad:
            output.register_hook(lambda _: no_memory() if self.due("backward") else None)

    def in_update(self, *_: Any) -> None:
        """Run when the optimizer has updated this rank's masters."""
        if self.due("update"):
            no_memory()

    def at_each_step(self, take: Any) -> Any:
        """Return a function that takes a step and notes its number."""

        def call(job: Any, batch: Any, *arguments: Any) -> Any:
            self.step = batch.step
            return take(job, batch, *arguments)

        return call


def no_memory() -> None:
    """Raise what an allocator raises."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def main() -> None:
    """Run the cases that are named."""
    work, folder, process = Path(sys.argv[1]), Path(sys.argv[2]), ProcessContext.from_environment()
    torch.set_num_threads(1)
    machine.join(process)
    vars(loop)["joined"] = lambda *_: nullcontext()  # one process group for all of them
    shortage = Shortage([])
    vars(loop)["take_step"] = shortage.at_each_step(take_step)
    for kind in (PlainEngine, DeepSpeedEngine):
        for name in ("loss", "logits", "begin_step", "rewind"):
            setattr(kind, name, watched(getattr(kind, name), shortage))
    register_optimizer_step_post_hook(shortage.in_update)
    know_the_processor()
    keep_imports, left = collect_little(), {}
    for case in sys.argv[3].split(","):
        more, places = CASES[case]
        shortage.left, shortage.step = list(places) if process.rank == FAILING else [], 1
        config = load_config(settings=[*settings(work, folder / case), *more])
        loop.train_run(config, process, Reporters())
        left[case] = shortage.left
        keep_imports()
    if process.rank == FAILING:
        (folder / "left.json").write_text(json.dumps(left))
    machine.leave()


def watched(method: Any, shortage: Shortage) -> Any:
    """Return a method of an engine that shows the shortage its model, and whether it catches up with the other rank."""

    def call(engine: Any, *arguments: Any) -> Any:
        shortage.watch(engine)
        if method.__name__ in ("begin_step", "rewind"):
            shortage.catches_up = method.__name__ == "rewind"
        return method(engine, *arguments)

    return call


if __name__ == "__main__":
    main()
