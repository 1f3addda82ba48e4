"""Settings that were changed and do nothing in the run at hand: each is told in one sentence, and none is refused.

A setting counts as changed where it is not the default. What decides whether it has an effect may be known late (the
steps of a run when its data has been read), so a setting is told only where everything that decides is known.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from math import ceil
from typing import Any

from ftkit.config.tree import RunConfig
from ftkit.units import counted


@dataclass(frozen=True)
class KnownOfRun:
    """What is known of a run; None: not yet.

    Attributes:
        config: as it was asked for.
        num_steps: optimizer steps.
        epoch_steps: those of one pass over the training split.
        validates: whether there is a validation split.
        device_type: `cuda`, `cpu` or another.
        world_size: ranks.
        zero_stage: what is partitioned, 0 under the plain engine.
    """

    config: RunConfig
    num_steps: int | None = None
    epoch_steps: int | None = None
    validates: bool | None = None
    device_type: str | None = None
    world_size: int | None = None
    zero_stage: int | None = None

    @property
    def is_stepwise(self) -> bool:
        """Whether the head is trained step by step, as all is but a head that is solved for."""
        return not self.config.method.fits_at_once

    @property
    def num_validations(self) -> int | None:
        """Validations, the one at the end included."""
        if self.num_steps is None or (every := self.config.training.eval_every or self.epoch_steps) is None:
            return None
        return ceil(self.num_steps / every)

    @property
    def epochs_end(self) -> int | None:
        """The step after which the epochs end."""
        epochs = self.config.training.epochs
        return None if epochs is None or self.epoch_steps is None else ceil(round(epochs * self.epoch_steps, 6))

    def ends_before(self, steps: int | None) -> bool:
        """Whether the run is known to end before so many steps."""
        return self.is_stepwise and None not in (self.num_steps, steps) and (self.num_steps or 0) < (steps or 0)


@dataclass(frozen=True)
class Idle:
    """Settings that do nothing, or no more than a smaller number would, where something is so.

    Attributes:
        keys: of the settings, dotted.
        applies: whether it is so.
        words: what becomes of each and why, after `key=value`; with attributes of `known`, and `steps`, in braces.
    """

    keys: tuple[str, ...]
    applies: Callable[[KnownOfRun], bool]
    words: str


def _keys(section: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{section}.{name}" for name in names)


IDLE = (
    Idle(
        ("batch.micro_batch_size",),
        lambda known: (
            (known.config.batch.micro_batch_size or 0) > known.config.batch.global_batch_size
            and known.config.data.long_texts == "cut"  # a text in windows is several sequences
        ),
        "does what {known.config.batch.global_batch_size} would: a micro-batch is cut from the global batch",
    ),
    Idle(
        ("schedule.warmup_ratio",),
        lambda known: known.config.schedule.warmup_steps is not None,
        "has no effect: schedule.warmup_steps says how many steps warm up",
    ),
    Idle(
        ("training.max_steps",),
        lambda known: (
            known.is_stepwise
            and known.epochs_end is not None
            and (known.config.training.max_steps or 0) > known.epochs_end
        ),
        "has no effect: the epochs end at step {known.epochs_end}",
    ),
    Idle(
        ("training.epochs",),
        lambda known: known.num_steps is not None and known.ends_before(known.epochs_end),
        "has no effect: training.max_steps ends the run before they do, after {known.num_steps}",
    ),
    Idle(
        _keys("training", "eval_every", "early_stopping_patience", "best_metric", "keep_best"),
        lambda known: known.validates is False and known.is_stepwise,
        "has no effect: there is no validation split",
    ),
    Idle(
        ("training.log_every",),
        lambda known: known.ends_before(known.config.training.log_every),
        "is never reached: the run has {steps}",
    ),
    Idle(
        ("training.eval_every",),
        lambda known: known.ends_before(known.config.training.eval_every),
        "is never reached: the run has {steps}, and validates at its end alone",
    ),
    Idle(
        ("training.checkpoint_every",),
        lambda known: known.ends_before(known.config.training.checkpoint_every),
        "is never reached: the run has {steps}, and writes a checkpoint at its end alone",
    ),
    Idle(
        ("training.early_stopping_patience",),
        # The last validation is at the end, and the first is the best so far.
        lambda known: (
            known.is_stepwise
            and known.num_validations is not None
            and known.num_validations < 2 + (known.config.training.early_stopping_patience or 0)
        ),
        "has no effect: the run validates too few times for it, {known.num_validations} with the one at its end",
    ),
    Idle(
        (
            *_keys("optimizer", "name", "learning_rate", "betas", "epsilon", "weight_decay", "max_grad_norm"),
            *_keys("schedule", "name", "warmup_ratio", "warmup_steps"),
            *_keys("training", "epochs", "max_steps", "log_every", "eval_every", "checkpoint_every"),
            "training.early_stopping_patience",
        ),
        lambda known: not known.is_stepwise,
        "has no effect: method.head=logistic takes no steps",
    ),
    Idle(
        ("model.new_head",),
        lambda known: known.config.task == "causal-lm",
        "has no effect: a language model has no head for classes",
    ),
    Idle(
        ("engine.nvme_path",),
        lambda known: (
            known.config.engine.ds_config is None
            and "nvme" not in (known.config.engine.offload_optimizer, known.config.engine.offload_parameters)
            and not known.config.engine.fit
        ),
        "has no effect: nothing is offloaded to nvme",
    ),
    Idle(
        ("engine.memory_budget",),
        lambda known: not known.config.training.plan_first,
        "has no effect: it is the budget of the plan, which training.plan_first=false leaves out",
    ),
    Idle(
        (*_keys("engine", "expandable_segments"), *_keys("output", "memory_snapshot")),
        lambda known: known.device_type == "cpu",
        "has no effect: it is for the allocator of a GPU, and this run is on a CPU",
    ),
    Idle(
        ("engine.peer_timeout",),
        lambda known: known.world_size == 1,
        "has no effect: there is one rank alone",
    ),
    Idle(
        ("training.checkpoint_shards",),
        lambda known: known.zero_stage not in (None, 3) and not known.config.engine.fit,  # which may choose the stage
        "has no effect: only ZeRO-3 shares what a checkpoint holds out over the ranks",
    ),
    Idle(
        ("cache.dtype",),
        lambda known: known.config.cache.trunk == "off",
        "has no effect: cache.trunk=off keeps nothing of the frozen layers",
    ),
)
"""In the order in which they are told."""


def idle_settings(known: KnownOfRun) -> list[str]:
    """Return a sentence for each setting that was changed and does nothing.

    Args:
        known: the run.
    """
    usual, told = RunConfig(), dict[str, str]()
    steps = counted(known.num_steps or 0, "step")
    for idle in IDLE:
        for key in idle.keys:
            value = _value(known.config, key)
            if value != _value(usual, key) and idle.applies(known):
                told.setdefault(key, f"{key}={value} {idle.words.format(known=known, steps=steps)}")
    return list(told.values())


def _value(config: RunConfig, key: str) -> Any:
    """Return the value of a dotted key."""
    return reduce(getattr, key.split("."), config)
