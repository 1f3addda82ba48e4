"""Try a machine: every method under every engine, one step each of a tiny model, in a process of its own."""

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ftkit.config.files import load_config
from ftkit.config.methods import methods
from ftkit.machine.process import ProcessContext
from ftkit.records.schema import RunRecord
from ftkit.sweep.axes import Settings, Trial, make_trials
from ftkit.sweep.sweep import Runner, run_sweep

if TYPE_CHECKING:
    from ftkit.engine.resolve import ResolvedRun

ENGINES: dict[str, Settings] = {
    "plain": {"engine.name": "plain"},
    "ZeRO-2": {"engine.name": "deepspeed", "engine.zero_stage": "2"},
    "ZeRO-3": {"engine.name": "deepspeed", "engine.zero_stage": "3"},
}
"""What a method is tried under, by its name in the table."""
_TIME_LIMIT = 600.0
"""DeepSpeed may have to compile its operations first, which takes a minute on a small machine."""
_COMMON = (
    "batch.global_batch_size=4", "training.max_steps=1", "training.plan_first=false", "output.reopen=false",
    "data.max_length=16", "cache.trunk=off",
)  # fmt: skip


@dataclass(frozen=True)
class Tried:
    """One cell of the matrix.

    Attributes:
        method: its label.
        engine: a key of `ENGINES`.
        reason: why the training failed; None where it did not.
        seconds: from loading the model to saving it.
        peak_bytes: of the process; None where the system does not tell.
    """

    method: str
    engine: str
    reason: str | None
    seconds: float
    peak_bytes: int | None


def try_all() -> Iterator[Tried]:
    """Train one step of each method under each engine by `ftkit train`; about 7 s of a core each.

    Yields:
        How each of them ended. All that they wrote is removed.
    """
    from ftkit.models.sources.toys import decoder, make_model, make_texts

    with tempfile.TemporaryDirectory(prefix="ftkit-doctor-") as name:
        folder = Path(name)
        model, texts = make_model(folder / "model", decoder(64, vocabulary=16)), make_texts(folder / "texts.csv")
        base = [*_COMMON, f"model.name={model}", f"data.dataset={texts}"]

        def build(settings: list[str], world_size: int) -> "ResolvedRun":
            from ftkit.engine.resolve import Devices, resolve

            return resolve(load_config(settings=[*base, *settings]), Devices.of(ProcessContext(world_size=world_size)))

        axes = [[{"method": label} for label in methods()], list(ENGINES.values())]
        runner = Runner(command=_command, predict=lambda _: None, time_limit=_TIME_LIMIT)
        for trial, record, _ in run_sweep(make_trials(axes, build), folder / "runs", runner):
            yield _tried(trial, record)


def _command(_: Trial, place: Path) -> list[str]:
    return [sys.executable, "-m", "ftkit", "train", "--config", str(place / "config.yaml"), "--output", str(place)]


def _tried(trial: Trial, record: RunRecord) -> Tried:
    own = {key: value for key, value in trial.settings.items() if key != "method"}
    engine = next(name for name, settings in ENGINES.items() if settings == own)
    result = record.result
    assert result is not None
    reason = None if result.status == "completed" else result.reason or result.status
    measured = result.measurement.peak_process_bytes
    return Tried(trial.settings["method"], engine, reason, result.total_seconds, measured)
