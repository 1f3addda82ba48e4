"""The facts that a question to the planner starts from."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ftkit.errors import ConfigError

if TYPE_CHECKING:
    from ftkit.config.tree import RunConfig
    from ftkit.plan.predict import Tapes
    from ftkit.plan.shapes import Sequences
    from ftkit.plan.target import Target


class Asked(NamedTuple):
    """What was asked for, with what has been found of it so far."""

    config: "RunConfig"
    target: "Target"
    architecture: Any
    sequences: "Sequences | None"
    tapes: "Tapes"

    @classmethod
    def of(cls, config: "RunConfig", target: "Target", samples: int | None) -> "Asked":
        """Return a configuration at a target, with its model's architecture found and what the planner chooses settled.

        Raises:
            ModelError: nobody knows the model.
            DoesNotFitError: what fits is asked for, and nothing does.
        """
        from ftkit.plan.architectures import find_architecture
        from ftkit.plan.fit import fit
        from ftkit.plan.predict import Tapes
        from ftkit.plan.search import options_at, settled
        from ftkit.plan.shapes import Sequences

        sequences = None if samples is None else Sequences.unseen(config, samples)
        architecture, tapes = find_architecture(config), Tapes()
        if config.engine.fit:
            chosen = fit(config, options_at(config, target, architecture, sequences, tapes)).run.config
        else:
            chosen = settled(config, target, architecture, sequences, tapes)
        return cls(chosen, target, architecture, sequences, tapes)


def check_questions(asked: Mapping[str, bool]) -> None:
    """Refuse flags together of which one alone would be heard.

    Args:
        asked: flag to whether it was given.

    Raises:
        ConfigError: more than one was.
    """
    given = [flag for flag, is_given in asked.items() if is_given]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} do not go together; ask one at a time")
