"""The result folder: where it is, and what a finished run leaves in it.

config.yaml     the configuration, with the learning rate, the precision and the cut that were used
record.jsonl    every figure, as it happened
answers/        what each example of validation and test was answered
checkpoints/    what a run needs to go on
model/          adapters or weights as plain PEFT or transformers load them, and the tokenizer
README.md       the model card
report.html     the page of `ftkit report`
memory_snapshot_rank0.pickle   where it was asked for, what torch's viewer of a GPU's memory opens
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from ftkit.config.paths import named_paths
from ftkit.config.tree import DEMO, RunConfig
from ftkit.engine.resolve import ResolvedRun
from ftkit.errors import CheckpointError, ConfigError, DeviceError
from ftkit.machine.disk import check_writable, write_rate
from ftkit.machine.memory import free_host_bytes
from ftkit.machine.process import ProcessContext
from ftkit.models.sources.adapters import base_of, find_adapter
from ftkit.records.answers import FOLDER as ANSWERS
from ftkit.records.files import (
    CARD,
    CHECKPOINT_BYTES,
    CHECKPOINTS,
    CONFIG,
    LIMITS,
    MODEL,
    PAGE,
    RANKS,
    RECORD,
    read_record,
    resume_flag,
)
from ftkit.records.schema import ResultLine, RunLine, RunRecord
from ftkit.report.words import distribution, energy
from ftkit.training.checkpoints.same_run import has_another_end
from ftkit.units import format_bytes, format_count, format_seconds, parse_bytes

_WRITTEN = (RECORD, CONFIG, CHECKPOINTS, MODEL, CARD, PAGE, LIMITS, RANKS, ANSWERS)
"""What a run writes into its folder, and what goes where another one takes it over."""


def check_folder(config: RunConfig, *, is_resumed: bool) -> None:
    """Refuse a result folder that cannot be used, before anything is read; nothing is changed.

    Args:
        config: names it, or leaves it to be found below `runs/`.
        is_resumed: whether an earlier run goes on there.

    Raises:
        ConfigError: another run has filled it, or it cannot be made or written to.
        CheckpointError: the run that would go on is finished.
    """
    folder = Path(config.output.folder or "runs")
    with _explained(folder):
        check_writable(folder)
    if config.output.folder is not None and not is_resumed:
        _check_inputs(config, folder)
    if config.output.folder is None or not (folder / RECORD).exists():
        return
    if not is_resumed and not config.output.overwrite:
        raise ConfigError(
            f"{folder} holds a run; go on with {resume_flag(folder)}, empty it with --overwrite, or name another"
        )
    if is_resumed:
        _check_unfinished(config, folder)


def _check_inputs(config: RunConfig, folder: Path) -> None:
    """Refuse a result folder in which a run would delete, or write over, what it reads."""
    named = [(f"{section}.{key}={path}", path) for section, key, path in named_paths(config) if section != "engine"]
    adapter = find_adapter(config.model.name)
    if adapter is not None:
        base = Path(base_of(adapter)[0])
        named.append((f"the base model of {config.model.name}, {base},", base))
    target = folder.resolve()
    for words, path in named:
        source = path.resolve()
        if source == target or any(target / name in (source, *source.parents) for name in _WRITTEN):
            raise ConfigError(f"{folder} holds {words} which this run reads; name another result folder with --output")


def _check_unfinished(config: RunConfig, folder: Path) -> None:
    """Refuse to go on with a run that is finished, unless another end is asked for."""
    record = read_record(folder)
    if record.result is not None and not has_another_end(config, record):
        raise CheckpointError(
            f"the run in {folder} is finished; train it for longer with {resume_flag(folder)} and a "
            "higher --epochs or --max-steps, or start another with another --output"
        )


def open_folder(config: RunConfig, *, is_resumed: bool) -> Path:
    """Make the result folder of a run, or find it again; with `output.overwrite` what another run left there goes.

    Args:
        config: names it, or leaves it to be found below `runs/`.
        is_resumed: whether an earlier run goes on there.

    Returns:
        The folder.

    Raises:
        FtkitError: as `check_folder`, since another run may have filled it in the meantime.
    """
    check_folder(config, is_resumed=is_resumed)
    named = config.output.folder
    folder = Path(named) if named else _free_folder(config)
    with _explained(folder):
        if (folder / RECORD).exists() and not is_resumed:
            is_same_run = config.output.resume == "auto"  # started again; what ran out of memory would again
            for name in _WRITTEN if not is_same_run else (name for name in _WRITTEN if name != LIMITS):
                path = folder / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"cannot write to the result folder {folder}: {error.strerror}; name another with --output"
        ) from None


def describe_saving(folder: Path, num_trainable: int) -> str:
    """Return how long a save takes, as a sentence; the time that a job asks for between a signal and its kill.

    Args:
        folder: the result folder, whose disk is tried.
        num_trainable: numbers that train.

    Raises:
        DeviceError: the disk is full or not writable.
    """
    num_bytes = num_trainable * CHECKPOINT_BYTES
    try:
        rate = write_rate(folder, num_bytes)
    except OSError as error:
        raise DeviceError(
            f"cannot write {folder}: {error.strerror}, tried with a file of {format_bytes(num_bytes)} as a checkpoint "
            "has; free some space, or name another folder with --output"
        ) from None
    return (
        f"a checkpoint has {format_bytes(num_bytes)}: about {format_seconds(num_bytes / rate)} at the "
        f"{format_bytes(rate)}/s that this disk took in a trial"
    )


def shards_checkpoints(
    run: ResolvedRun, process: ProcessContext, num_trainable: int, note: Callable[[str], None]
) -> bool:
    """Return whether each rank writes its own part of a checkpoint.

    Args:
        run: says what was asked for, and whether weights are partitioned.
        process: the place of this process, one of several on this host.
        num_trainable: numbers that train.
        note: told where it is so.
    """
    if not run.partitions_weights:
        return False
    asked, free = run.config.training.checkpoint_shards, free_host_bytes()
    gathered = num_trainable * CHECKPOINT_BYTES * process.local_world_size  # every rank has a copy
    is_too_large = free is not None and gathered > free / 2
    if asked == "never" or (asked == "auto" and not is_too_large):
        return False
    note(
        f"each rank writes its own part of a checkpoint, a tensor at a time: gathered it would take "
        f"{format_bytes(gathered)} of this host" + ("" if free is None else f", where {format_bytes(free)} are free")
    )
    return True


def written_bytes(folder: Path) -> int:
    """Return the bytes that a run has written into its folder: checkpoints, result, record, answers."""
    roots = [folder / name for name in (RECORD, CONFIG, CHECKPOINTS, MODEL, ANSWERS)]
    files = [file for root in roots for file in (root.rglob("*") if root.is_dir() else [root])]
    return sum(file.stat().st_size for file in files if file.is_file())


def summary_rows(record: RunRecord) -> list[tuple[str, str]]:
    """Return what a run took, as names and texts."""
    rows = [
        (
            "engine",
            f"{distribution(record.run)}, {record.run.world_size} x {record.run.device}, {record.run.precision}",
        ),
        ("steps planned", str(record.run.num_steps)),
    ]
    if record.result is None:
        return rows
    measured = record.result.measurement
    figures = [
        ("steps taken", str(record.result.num_steps)),
        ("resumed", _of(record.run.resumed_step, lambda step: f"at step {step}; times and throughput are of all")),
        ("trainable parameters", _share(measured.num_trainable_parameters, measured.num_parameters)),
        ("training time", format_seconds(record.result.train_seconds)),
        ("total time", _total(record.run, record.result)),
        ("throughput", _of(measured.tokens_per_second, lambda rate: f"{format_count(rate)} tokens/s")),
        ("peak of live tensors", _of(measured.peak_active_bytes, format_bytes)),
        ("peak of one process", _of(measured.peak_process_bytes, partial(_beside_budget, record.run))),
        ("energy of the processors", _of(measured.processor_joules, energy)),
        ("energy of the GPUs", _of(measured.gpu_joules, energy)),
    ]
    return rows + [(name, text) for name, text in figures if text]


def _total(run: RunLine, result: ResultLine) -> str:
    """Return how long a run took, and of one that was not resumed what of it went before its steps, and beside them."""
    whole, setup = format_seconds(result.total_seconds), result.setup_seconds
    if setup is None or run.resumed_step is not None or not result.num_steps:
        return whole
    rest = max(0.0, result.total_seconds - result.train_seconds - setup)
    return f"{whole} (start {format_seconds(setup)}, scores and saving {format_seconds(rest)})"


def _beside_budget(run: RunLine, peak: int) -> str:
    """Return a peak, and the budget where the run was given one that did not hold it."""
    named = run.config.get("engine", {}).get("memory_budget")  # records of an earlier ftkit have none
    budget = None if named is None else parse_bytes(named)
    excess = f", more than the budget of {format_bytes(budget)}" if budget is not None and peak > budget else ""
    return format_bytes(peak) + excess


def _of(value: float | None, form: Any) -> str:
    return "" if value is None else str(form(value))


def _share(part: int | None, whole: int | None) -> str:
    return "" if not part or not whole else f"{format_count(part)} of {format_count(whole)} ({_percent(part / whole)})"


def _percent(share: float) -> str:
    return f"{share:.2%}" if share >= 1e-4 else "< 0.01%"


def _free_folder(config: RunConfig) -> Path:
    """Return a new folder below runs/, named for the data, the model and the method."""
    data, model = (Path(name).stem if name != DEMO else DEMO for name in (config.data.dataset, config.model.name))
    base = Path("runs") / f"{data}-{model}-{config.method.name}"
    return next(
        path
        for number in count(1)
        if not (path := base if number == 1 else base.with_name(f"{base.name}-{number}")).exists()
    )
