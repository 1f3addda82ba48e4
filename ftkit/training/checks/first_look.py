"""Look at a run before anything takes long: all that can be known to be wrong in a second is told at once.

A user who mends one mistake a start waits for a queue each time. So the checks do not end at the first that fails:
each one runs that does not need what another could not find out, and one message has all of their sentences.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ftkit.config.files import UnsoundConfigError
from ftkit.config.paths import is_there, looks_like_path
from ftkit.config.tree import DEMO, LabelKind, RunConfig
from ftkit.data.arrays import PreparedData
from ftkit.data.batching import check_cut
from ftkit.data.prepare import check_rows, prepare_data
from ftkit.engine.resolve import Devices, ResolvedRun, resolve
from ftkit.errors import (
    ConfigError,
    DependencyError,
    DeviceError,
    DoesNotFitError,
    FtkitError,
    ModelError,
    SeveralMistakesError,
)
from ftkit.machine.disk import cache_folder, existing_folder
from ftkit.machine.doctor.tools import missing_compilers
from ftkit.machine.kept_arrays import kept_tokens
from ftkit.machine.memory import quiet_collector
from ftkit.machine.process import ProcessContext, first_decides
from ftkit.machine.versions import check_versions
from ftkit.models.build import build_empty_model, check_positions, check_tokens
from ftkit.models.sources.gguf import as_safetensors
from ftkit.models.sources.source import (
    Source,
    load_config,
    load_tokenizer,
    own_label_kind,
    resolve_source,
)
from ftkit.models.sources.start import kept_label_names, settle_start
from ftkit.plan.preflight import check_weights
from ftkit.records.job import JobPlan
from ftkit.report.metrics import KINDS
from ftkit.training.results.folder import check_folder, written_bytes
from ftkit.training.standby import Standby, stand_by
from ftkit.training.trackers import check_trackers
from ftkit.units import format_bytes

Checked = TypeVar("Checked")

_QUICK_BYTES = 2**26
"""Of a dataset that is read while the other mistakes wait to be told."""

KIND_WORDS = {"single": "one class", "multi": "several labels", "regression": "a number", None: "next tokens"}


class Mistakes:
    """Collects the mistakes of a run."""

    def __init__(self) -> None:
        """Begin with none."""
        self._errors: list[FtkitError] = []

    def of(self, check: Callable[[], Checked]) -> Checked | None:
        """Return what a check returns, or None where it finds a mistake."""
        try:
            return check()
        except FtkitError as error:
            self._errors.append(error)
            return None

    def has(self, kind: type[FtkitError]) -> bool:
        """Return whether there is one of a kind."""
        return any(isinstance(error, kind) for error in self._errors)

    def beside(self, known: Sequence[FtkitError]) -> FtkitError:
        """Return the error of some mistakes and of the ones that were found, of which there is one at least."""
        errors = [*known, *self._errors]
        return errors[0] if len(errors) == 1 else SeveralMistakesError(errors)

    def tell(self) -> None:
        """Say them, if there are any.

        Raises:
            FtkitError: the only mistake, or all of them in one message.
        """
        if self._errors:
            raise self.beside([])


@dataclass(frozen=True)
class FirstLook:
    """What the checks have loaded.

    Attributes:
        run: the run, resolved, with what the model settles of it.
        source: the model's.
        tokenizer: the model's.
        data: the splits.
        architecture: of the model, with the labels of the data.
        longest: tokens of the longest sequence of any split.
        standby: a copy of this process from before it read data; None where none can be made.
    """

    run: ResolvedRun
    source: Source
    tokenizer: Any
    data: PreparedData
    architecture: Any
    longest: int
    standby: Standby | None


def look_first(
    config: RunConfig, process: ProcessContext, note: Callable[[str], None], *, is_resumed: bool
) -> FirstLook:
    """Check a run.

    Args:
        config: the run.
        process: the place of this process; every process of the job calls this.
        note: told what was found in the data.
        is_resumed: whether an earlier run goes on.

    Returns:
        What training goes on with.

    Raises:
        FtkitError: naming everything that is wrong, one line each.
    """
    mistakes = Mistakes()
    mistakes.of(check_versions)
    run = mistakes.of(lambda: resolve(config, Devices.of(process)))
    mistakes.of(lambda: first_decides(process, lambda: check_folder(config, is_resumed=is_resumed)))
    mistakes.of(lambda: check_trackers(config.output.trackers))
    mistakes.of(lambda: _check_nvme(config))
    mistakes.of(lambda: _check_compiler(config))
    source = mistakes.of(lambda: as_safetensors(resolve_source(config.model, config.task), note))
    with quiet_collector(trusts=True):  # of what is imported here nothing is freed
        tokenizer = None if source is None else mistakes.of(lambda: load_tokenizer(source))
    if mistakes.has(FtkitError) and not _is_quick(config.data.dataset):
        mistakes.tell()
    # Files, columns and labels are looked at even where the model or the settings are of no use.
    if run is None or source is None or tokenizer is None:
        mistakes.of(lambda: check_rows(config.data, config.task, config.data_seed))
        mistakes.tell()
    assert run is not None
    assert source is not None
    run = replace(run, config=settle_start(run.config, source, tokenizer))
    look = _look_at_data(mistakes, run, source, tokenizer, process)
    for line in look.data.report.lines():
        note(line)
    if look.architecture is not None and config.training.plan_first:  # building without weights is the planner's way
        model = mistakes.of(lambda: build_empty_model(look.run.config, look.architecture, look.run.dtype))
        if model is not None:
            mistakes.of(lambda: check_positions(model, look.longest))
            mistakes.of(lambda: check_tokens(model, look.data.highest_token))
    mistakes.tell()
    return look


def look_beside(error: UnsoundConfigError, *, is_resumed: bool) -> FtkitError:
    """Look for what is wrong beside a configuration that is not valid, as far as that takes a second.

    Args:
        error: the problems of the configuration, and its sound part.
        is_resumed: whether an earlier run was to go on.

    Returns:
        The same, or one with the other mistakes too: the result folder, the model, files, columns and labels.
    """
    config, mistakes = error.sound, Mistakes()
    if config is None:
        return error
    if "output" not in error.sections:
        mistakes.of(lambda: check_folder(config, is_resumed=is_resumed or config.output.resume == "auto"))
    if not {"model", "task"} & error.sections and looks_like_path(config.model.name):  # so that nothing is fetched
        mistakes.of(lambda: resolve_source(config.model, config.task))
    if not {"data", "task"} & error.sections and _is_quick(config.data.dataset):
        mistakes.of(lambda: check_rows(config.data, config.task, config.data_seed))
    return mistakes.beside([ConfigError(sentence) for sentence in str(error).splitlines()])


def _look_at_data(
    mistakes: Mistakes, run: ResolvedRun, source: Source, tokenizer: Any, process: ProcessContext
) -> FirstLook:
    """Check the model's size, then the data, then both against one another."""
    config, pad = run.config, tokenizer.pad_token_id
    own_labels = kept_label_names(config, source)
    # A model that does not fit is told before its data is read, which may take minutes.
    with quiet_collector(trusts=True):  # which imports the model's code
        mistakes.of(lambda: check_weights(config, process, load_config(source, own_labels, pad)))
    if mistakes.has(DoesNotFitError):
        mistakes.tell()
    standby = stand_by(config, process)
    store = kept_tokens(config.cache)
    is_main = process.is_main  # which tells of the data for all ranks
    data = mistakes.of(
        lambda: prepare_data(
            config.data, config.task, tokenizer, config.data_seed, own_labels, store=store, tells_near=is_main
        )
    )
    if data is None:
        mistakes.tell()
    assert data is not None
    data = data if config.training.score_test else replace(data, test=None)
    longest = data.longest
    mistakes.of(lambda: _check_best_metric(config.training.best_metric, data.label_kind))
    if own_labels is not None:
        mistakes.of(lambda: _check_head(source, data.label_kind))
    if config.batch.micro_batch_tokens != "auto":
        mistakes.of(lambda: check_cut(config.batch, longest))
    architecture = mistakes.of(lambda: load_config(source, data.label_names, pad, data.label_kind))
    return FirstLook(run, source, tokenizer, data, architecture, longest, standby)


def _is_quick(dataset: str) -> bool:
    """Return whether a dataset is looked at in about a second; one that is not does not keep a user waiting."""
    path = Path(dataset).expanduser()
    if not is_there(path):
        return dataset == DEMO or bool(path.suffix)  # a name on the hub has no suffix
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file()) <= _QUICK_BYTES


def check_disk(config: RunConfig, job: JobPlan | None, note: Callable[[str], None]) -> None:
    """Refuse a disk on which the checkpoints and the result have no room, what an earlier start has left counted.

    A run can do without the cache, which makes room for itself, so that a disk without room for it is only told.

    Args:
        config: names the folder.
        job: the plan of the whole job; None: nothing is known of it.
        note: told where the cache has no room.

    Raises:
        DeviceError: naming what is needed and what is free.
    """
    if job is None:
        return
    folder, needed_bytes = Path(config.output.folder or "runs"), job.checkpoint_bytes + job.result_bytes
    free = shutil.disk_usage(existing_folder(folder)).free
    if needed_bytes - written_bytes(folder) > free:
        raise DeviceError(
            f"the checkpoints and the result need {format_bytes(needed_bytes)}, and the disk of {folder} has "
            f"{format_bytes(free)} free; free some, name a folder on another disk with --output, or train fewer weights"
        )
    _warn_of_cache(job, folder, note)


def _warn_of_cache(job: JobPlan, folder: Path, note: Callable[[str], None]) -> None:
    cache, beside = existing_folder(cache_folder()), existing_folder(folder)
    is_shared = cache.stat().st_dev == beside.stat().st_dev
    free = shutil.disk_usage(cache).free - (job.checkpoint_bytes + job.result_bytes if is_shared else 0)
    if job.cache_bytes is not None and job.cache_bytes > free:
        note(
            f"warning: the cache is to take {format_bytes(job.cache_bytes)}, and the disk of {cache} has "
            f"{format_bytes(max(free, 0))} free for that; free some, or name a folder on another disk as FTKIT_CACHE"
        )


def _check_nvme(config: RunConfig) -> None:
    """Refuse a folder for what is offloaded that is not there."""
    path = config.engine.nvme_path
    if path is not None and not Path(path).expanduser().is_dir():
        raise ConfigError(f"engine.nvme_path={path}: there is no such folder; make it, on the disk that is to be used")


def _check_compiler(config: RunConfig) -> None:
    """Refuse offload where its extensions cannot be compiled, which they are at the first use."""
    is_offloaded = config.engine.offload_optimizer != "none" or config.engine.offload_parameters != "none"
    missing = missing_compilers() if is_offloaded else []
    if missing:
        raise DependencyError(
            f"offload needs a compiler for DeepSpeed's extensions, and {' and '.join(missing)} cannot be found; "
            "install them, or leave offload out"
        )


def _check_head(source: Source, kind: LabelKind | None) -> None:
    """Refuse to go on with a head that was trained for labels of another kind."""
    own = own_label_kind(source)
    if own not in (None, kind):
        raise ModelError(
            f"the head of {source.name} was trained for {KIND_WORDS[own]}, and the data's labels are "
            f"{KIND_WORDS[kind]}; draw a new head with --set model.new_head=true, or say --set data.label_kind={own}"
        )


def _check_best_metric(metric: str, kind: LabelKind | None) -> None:
    """Refuse to keep the best model by a figure that these labels do not have."""
    if metric not in KINDS[kind]:
        raise ConfigError(
            f"training.best_metric={metric} is not a score of {KIND_WORDS[kind]}; choose one of "
            f"{', '.join(KINDS[kind])}"
        )
