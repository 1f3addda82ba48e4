"""The facts that a question to the planner starts from."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from ftkit.config.idle import KnownOfRun, idle_settings
from ftkit.config.paths import is_there, looks_like_path
from ftkit.config.tree import DEMO
from ftkit.errors import ConfigError
from ftkit.units import counted

if TYPE_CHECKING:
    from ftkit.config.tree import RunConfig
    from ftkit.plan.choices.search import Options
    from ftkit.plan.inputs.shapes import Sequences
    from ftkit.plan.inputs.target import Target


_APART = (
    ("--search", "--solve", "--advise", "--what-fits", "--explain"),
    ("--write", "--advise", "--what-fits"),
    ("--search", "--exact"),
    ("--solve", "--exact"),
    ("--advise", "--exact"),
    ("--what-fits", "--exact"),
    ("--what-fits", "--samples"),
)
"""Flags of which a plan hears one."""


class Asked(NamedTuple):
    """What was asked for: a run, and the model, the data and the target that it has."""

    config: "RunConfig"
    options: "Options"

    @classmethod
    def of(cls, config: "RunConfig", target: "Target", samples: int | None) -> "Asked":
        """Return a configuration at a target, with its model's architecture found and what the planner chooses settled.

        Raises:
            ModelError: nobody knows the model.
            DoesNotFitError: what fits is asked for, and nothing does.
        """
        from ftkit.plan.choices.cut import settle_cut
        from ftkit.plan.choices.fit import fit
        from ftkit.plan.choices.search import options_at
        from ftkit.plan.inputs.shapes import Sequences

        sequences = _read(config) if samples is None else Sequences.unseen(config, samples)
        for sentence in idle_settings(_known(config, target, sequences, is_read=samples is None)):
            click.echo(f"warning: {sentence}", err=True)
        options = options_at(config, target, sequences=sequences)
        if config.engine.fit:
            return cls(fit(config, options).run.config, options)
        settled = settle_cut(config, options, is_named=config.batch.is_named)
        for line in settled.lines:
            click.echo(f"note: {line}", err=True)
        return cls(settled.config, options)


def _known(config: "RunConfig", target: "Target", sequences: "Sequences | None", *, is_read: bool) -> "KnownOfRun":
    """Return what is known of a run before it begins; whether it validates, where its data has been read."""
    from ftkit.engine.resolve import resolve
    from ftkit.plan.inputs.shapes import epoch_steps, num_steps

    num = None if sequences is None else sequences.num
    devices, stage = target.devices, resolve(config, target.devices).zero_stage
    validates = sequences.validation_tokens > 0 if is_read and sequences is not None else None
    epoch = None if num is None else epoch_steps(config, num)
    return KnownOfRun(config, num_steps(config, num), epoch, validates, devices.device_type, devices.world_size, stage)


def _read(config: "RunConfig") -> "Sequences | None":
    """Return the facts about the data where a file or a folder of this machine is named; None where none is.

    Texts have their own lengths where the tokenizer is here too, and are as long as `data.max_length` where it is not.
    """
    data, task, model = config.data, config.task, config.model.name
    if "dataset" not in data.model_fields_set:
        return None
    if not is_there(Path(data.dataset).expanduser()):
        told = f"{data.dataset} is not on this machine, so that the number of its texts and their lengths are not known"
        click.echo(f"note: {told}; give --samples for the whole job", err=True)
        return None
    from ftkit.data.prepare import check_rows, prepare_data  # a fifth of a second that most plans do without
    from ftkit.machine.kept_arrays import kept_tokens
    from ftkit.models.sources.source import load_tokenizer, resolve_source
    from ftkit.plan.inputs.shapes import Sequences

    if model == DEMO or looks_like_path(model):
        tokenizer = load_tokenizer(resolve_source(config.model, task))
        return Sequences.of(prepare_data(data, task, tokenizer, config.data_seed, store=kept_tokens(config.cache)))
    counts = check_rows(data, task, config.data_seed)
    num_texts = counts["train"]
    told = (
        f"note: {counted(num_texts, 'text')} to train on, each taken to have data.max_length={data.max_length} tokens"
    )
    click.echo(f"{told}, since the tokenizer of {model} is not read", err=True)
    return Sequences.unseen(config, num_texts, (counts.get("validation", 0), counts.get("test", 0)))


def check_questions(given: Sequence[str]) -> None:
    """Refuse flags together of which one alone would be heard.

    Args:
        given: the flags of the command line.

    Raises:
        ConfigError: two of them do not go together.
    """
    for flags in _APART:
        check_alone([flag for flag in flags if flag in given])


def check_alone(given: Sequence[str]) -> None:
    """Refuse more than one flag; raises ConfigError."""
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} do not go together; ask one at a time")
