"""What two ranks run: one training that writes shards, and two that go on from shards."""

import shutil
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import distributed

from ftkit.config.files import load_config
from ftkit.machine import process as machine
from ftkit.machine.process import ProcessContext
from ftkit.training import loop
from ftkit.training.reporters import Reporters
from tests.quick_ranks import collect_little, know_the_processor

SHARDED = ["engine.zero_stage=3", "training.checkpoint_shards=always"]


def settings(work: Path, folder: Path, steps: int, *more: str) -> list[str]:
    """Return the settings of a run of full fine-tuning, whose schedule does not depend on its end."""
    return [
        f"model.name={work / 'bert'}", f"data.dataset={work / 'texts.csv'}", f"output.folder={folder}",
        "output.reopen=false", "model.precision=fp32", "method.name=full", "optimizer.learning_rate=0.001",
        "schedule.name=constant", "schedule.warmup_steps=0", "training.plan_first=false", "training.log_every=1",
        "training.eval_every=2", "training.checkpoint_every=3", "batch.global_batch_size=16",
        f"training.max_steps={steps}", *more,
    ]  # fmt: skip


def main() -> None:
    """Train in the folder that is named, over the files in the other one."""
    work, folder, process = Path(sys.argv[1]), Path(sys.argv[2]), ProcessContext.from_environment()
    torch.set_num_threads(1)
    machine.join(process)
    vars(loop)["joined"] = lambda *_: nullcontext()  # one process group for all of them

    know_the_processor()
    keep_imports = collect_little()

    def run(name: str, steps: int, *more: str, resume: bool = False) -> None:
        loop.train_run(
            load_config(settings=settings(work, folder / name, steps, *more)), process, Reporters(), resume=resume
        )
        keep_imports()

    run("from two", 3, *SHARDED)
    if process.is_main:
        shutil.copytree(folder / "from two", folder / "to ZeRO-2")
    distributed.barrier()
    run("to ZeRO-2", 6, "engine.zero_stage=2", resume=True)
    run("from one", 6, *SHARDED, resume=True)
    machine.leave()


if __name__ == "__main__":
    main()
