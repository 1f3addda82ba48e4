"""Search for the best settings of a training, with Optuna; the only importer of optuna.

Each trial is a training in a process of its own. What the planner says does not fit, or would not end in time, is
never started; what is bad at a validation, compared with the others, is stopped there (successive halving: Li et al.
2018, as Optuna has it). All that is known is in a journal in the folder, so that a search that was killed goes on, and
the run that it was in the middle of from its checkpoint.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from ftkit.config.tree import RunConfig
from ftkit.errors import ConfigError, DependencyError, FtkitError
from ftkit.records.schema import RunRecord
from ftkit.report.metrics import METRICS
from ftkit.report.pages.tuned import Tried, best_first
from ftkit.sweep.attend import Attended, Start, attend
from ftkit.sweep.space import Space
from ftkit.sweep.sweep import record_of

JOURNAL = "tuning.journal"
_NAME = "ftkit"
_RUNGS = 4
"""Validations of a run whose configuration does not say how many, so that bad ones are known early."""
_FACTOR = 3
"""Of the runs at a validation, one of so many goes on."""

Verdict = Callable[[RunConfig, int | None], tuple[str | None, float | None]]
"""A configuration and the number of training sequences, to why it cannot run (None: it can) and its planned seconds."""


@dataclass(frozen=True)
class Budget:
    """What a search may take.

    Attributes:
        trials: configurations that are tried, those that never start among them; one that was killed and tried again
            counts once.
        seconds: from the start of this call; None: no limit.
    """

    trials: int
    seconds: float | None = None


@dataclass
class Tuning:
    """A search and all that it knows.

    Attributes:
        space: what varies.
        folder: gets a folder for each trial, and the journal.
        verdict: asks the planner.
        start: starts a training.
        tell: told of each trial when it begins and when it ends.
    """

    space: Space
    folder: Path
    verdict: Verdict
    start: Start
    tell: Callable[[Tried], None] = lambda _: None
    _study: Any = field(init=False)
    _num_samples: int | None = field(init=False, default=None)
    _slowness: list[float] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        """Open the journal, and take up again what was running when it ended."""
        optuna = _library()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / JOURNAL).touch()
        except OSError as error:
            raise ConfigError(f"cannot write to {self.folder}: {error.strerror}; name another with --output") from None
        journal = optuna.storages.journal.JournalFileBackend(str(self.folder / JOURNAL))
        storage = optuna.storages.JournalStorage(journal)
        self._study = optuna.create_study(
            storage=storage,
            study_name=_NAME,
            direction="minimize" if METRICS[self.metric].best is min else "maximize",
            pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=_FACTOR),
            load_if_exists=True,
        )
        self._check_same()
        # Another seed after every start: the same one would draw what was drawn before.
        seed = self.space.base.training.seed + len(self._study.trials)
        self._study.sampler = optuna.samplers.TPESampler(seed=seed)
        self._take_up()

    @property
    def metric(self) -> str:
        """The figure of the validations that is searched for."""
        return self.space.base.training.best_metric

    def tried(self) -> list[Tried]:
        """Return all trials, in the order in which they were chosen."""
        trials = self._study.trials
        again = {one.user_attrs["before"]: one.number for one in trials if "before" in one.user_attrs}
        return [_tried(one, self.folder, again.get(one.number)) for one in trials if one.state.name != "WAITING"]

    def best(self) -> Tried | None:
        """Return the trial with the best validation, at its end or when it was stopped; None where there was none."""
        ordered = best_first(self.tried(), self.metric)
        return ordered[0] if ordered and ordered[0].may_win else None

    def importances(self) -> dict[str, float]:
        """Return the share of each key in how the figure varies; empty where there are too few trials to tell."""
        optuna = _library()
        done = [one for one in self._study.trials if one.state.name == "COMPLETE"]
        if len(done) < 4:
            return {}
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        return dict(optuna.importance.get_param_importances(self._study, evaluator=evaluator))

    def run(self, budget: Budget) -> None:
        """Try configurations until the budget is spent.

        Args:
            budget: trials of all calls together, and seconds of this one.

        Raises:
            InterruptedRunError: somebody stopped it; the same call goes on.
        """
        deadline = None if budget.seconds is None else time.monotonic() + budget.seconds
        while self._num_tried() < budget.trials and (deadline is None or time.monotonic() < deadline):
            self._try_one(deadline)

    def _num_tried(self) -> int:
        return sum(one.state != "killed" for one in self.tried())

    def _try_one(self, deadline: float | None) -> None:
        trial = self._study.ask()
        settings = self.space.choose(trial)
        trial.set_user_attr("settings", settings)
        place = self.folder / trial.user_attrs.get("folder", f"trial-{trial.number:03}")
        try:
            config = self._for_trial(self.space.config(settings), place)
            reason, planned = self.verdict(config, self._num_samples)
        except FtkitError as error:
            reason, planned, config = str(error), None, None
        if reason is None and planned is not None and deadline is not None:
            reason = self._too_long(planned, deadline)
        if reason is not None or config is None:
            self._end(trial, "never started", reason)
            return
        trial.set_user_attr("folder", place.name)
        self.tell(self._told(trial))
        ended = attend(config, place, self.metric, self.start, partial(self._watch, trial, deadline))
        self._learn(ended.record)
        if planned and ended.stopped is None and ended.failure is None:
            self._slowness.append(ended.seconds / planned)
        self._end(trial, _state(ended), ended.stopped or ended.failure, ended)

    def _for_trial(self, config: RunConfig, place: Path) -> RunConfig:
        """Return the configuration of a trial: planned already, validated often enough, never tested."""
        training: dict[str, Any] = {"plan_first": False, "score_test": False}
        steps = self._num_steps(config)
        if config.training.eval_every is None and steps is not None:
            training["eval_every"] = max(1, int(steps / _RUNGS))
        output = {"folder": str(place), "resume": "auto", "overwrite": False, "reopen": False}
        return config.model_copy(
            update={
                "training": config.training.model_copy(update=training),
                "data": config.data.model_copy(update={"split_seed": config.data_seed}),
                "output": config.output.model_copy(update=output),
            }
        )

    def _num_steps(self, config: RunConfig) -> float | None:
        """Return about how many steps a run has; None before anything is known of the data."""
        if config.training.max_steps is not None:
            return config.training.max_steps
        if self._num_samples is None or config.training.epochs is None:
            return None
        return config.training.epochs * self._num_samples / config.batch.global_batch_size

    def _too_long(self, planned: float, deadline: float) -> str | None:
        """Say why a run would not end in time, by what earlier ones took of what was planned for them."""
        left, expected = deadline - time.monotonic(), planned * (median(self._slowness) if self._slowness else 1.0)
        return f"would take about {expected:.0f} s of the {left:.0f} s that are left" if expected > left else None

    def _watch(self, trial: Any, deadline: float | None, values: Sequence[float]) -> str | None:
        """Tell Optuna of validations; say why a run is to be stopped."""
        if deadline is not None and time.monotonic() > deadline:
            return "the time was spent"
        known = len(self._study.trials[trial.number].intermediate_values)
        for rung in range(known + 1, len(values) + 1):
            # The best so far, as that is what a trial is worth in the end: a validation alone goes up and down.
            trial.report(METRICS[self.metric].best(values[:rung]), rung)
            if trial.should_prune():
                return f"worse than others at validation {rung}"
        return None

    def _learn(self, record: RunRecord | None) -> None:
        """Take from a record how many sequences train, which the planner needs for times."""
        config = record.run.config if record is not None else None
        if record is not None and config and record.run.num_steps and config["training"]["max_steps"] is None:
            per_epoch = record.run.num_steps / config["training"]["epochs"]
            self._num_samples = round(per_epoch * config["batch"]["global_batch_size"])

    def _end(self, trial: Any, state: str, reason: str | None, ended: Attended | None = None) -> None:
        """Write down how a trial ended."""
        best = METRICS[self.metric].best(ended.values) if ended and ended.values else None
        told = {"state": state, "reason": reason, "value": best, "seconds": ended.seconds if ended else None}
        for name, one in told.items():
            trial.set_user_attr(name, one)
        states = _library().trial.TrialState
        kinds = {"complete": states.COMPLETE, "failed": states.FAIL}
        self._study.tell(trial, best if state == "complete" else None, kinds.get(state, states.PRUNED))
        self.tell(self._told(trial))

    def _told(self, trial: Any) -> Tried:
        return _tried(self._study.trials[trial.number], self.folder)

    def _check_same(self) -> None:
        """Refuse a journal of another search; remember this one's."""
        described = {axis.key: str(axis) for axis in self.space.axes} | {"metric": self.metric}
        known = self._study.user_attrs.get("search")
        if known is None:
            self._study.set_user_attr("search", described)
        elif known != described:
            other = next(key for key in {*known, *described} if known.get(key) != described.get(key))
            raise ConfigError(
                f"{self.folder} holds another search ({other} differs); give the same command, or another --output"
            )

    def _take_up(self) -> None:
        """Begin with the configuration as it was given; or again with what was running when a search was killed."""
        states = _library().trial.TrialState
        for one in self._study.trials:
            if "folder" in one.user_attrs:
                self._learn(record_of(self.folder / one.user_attrs["folder"]))
            if one.state == states.RUNNING:
                self._study.tell(one.number, state=states.FAIL)
                known = {name: place for name, place in one.user_attrs.items() if name == "folder"}
                self._study.enqueue_trial(one.params, user_attrs=known | {"before": one.number})
                self.tell(self.tried()[one.number])
        if not self._study.trials:
            self._study.enqueue_trial(self.space.first())


def _state(ended: Attended) -> str:
    return "stopped" if ended.stopped else "failed" if ended.failure else "complete"


def _tried(frozen: Any, folder: Path, again: int | None = None) -> Tried:
    """Return what is known of an Optuna trial; `again` is the number of the one that it became when it was killed."""
    known = frozen.user_attrs
    place = known.get("folder")
    return Tried(
        number=frozen.number,
        settings=known.get("settings", {}),
        state=known.get("state", "running" if frozen.state.name == "RUNNING" else "killed"),
        value=known.get("value"),
        seconds=known.get("seconds"),
        reason=known.get("reason") if again is None else f"tried again as trial {again}",
        folder=None if place is None else folder / place,
    )


def _library() -> Any:
    try:
        import optuna
    except ImportError:
        raise DependencyError("a search needs the package optuna: pip install 'ftkit[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
