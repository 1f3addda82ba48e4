"""One configuration of a sweep in a process of its own: `python -m ftkit.cli.profile_one`, perhaps launched."""

import resource
from pathlib import Path

import click

from ftkit.cli.options import Place, quieten, user_errors
from ftkit.config.files import load_config
from ftkit.machine.memory import grow_segments
from ftkit.machine.process import ProcessContext, end_if_launched
from ftkit.records.schema import Prediction
from ftkit.sweep.sweep import CONFIG, PREDICTION


@click.command()
@click.argument("folder", type=Place())
@click.option("--warmup", type=int, required=True)
@click.option("--steps", type=int, required=True)
@click.option("--memory-limit", type=int, help="Bytes that this process may allocate on the host.")
@click.option("--local_rank", "--local-rank", type=int, hidden=True)
def profile_one(folder: Path, warmup: int, steps: int, memory_limit: int | None, local_rank: int | None) -> None:  # noqa: ARG001  # LOCAL_RANK says the same
    """Profile the configuration that stands in FOLDER and write its record there."""
    with user_errors():
        process = ProcessContext.from_environment()
    with user_errors(process.rank):
        config = load_config(folder / CONFIG)
        if config.engine.expandable_segments:
            grow_segments()
        quieten()
        from ftkit.profile.profiler import profile_run

        if memory_limit is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (memory_limit, memory_limit))
        given = folder / PREDICTION
        prediction = Prediction.model_validate_json(given.read_text(encoding="utf-8")) if given.is_file() else None
        profile_run(config, process, folder, prediction, num_warmup=warmup, num_timed=steps)
    end_if_launched()


if __name__ == "__main__":
    profile_one()
