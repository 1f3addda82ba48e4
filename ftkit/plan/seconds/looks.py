"""Looks at this machine's processor, which plans rest on where nobody has calibrated it: files beside a calibration's.

A look is a few steps of one kind of training. What a training finds out as it begins is there for the next one, and for
plans of its kind.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftkit.config.precision import SettledPrecision
from ftkit.engine.resolve import ResolvedRun
from ftkit.plan.seconds.calibration import from_rates, rates_of
from ftkit.plan.seconds.kept import find_kept, keep_tree, kept_file, kept_files
from ftkit.plan.seconds.speed import FROM_STEPS, Device


@dataclass(frozen=True)
class Kind:
    """The trainings that a look tells of.

    Attributes:
        method: by its label.
        is_decoder: whether they train a language model.
        precision: that they compute in.
    """

    method: str
    is_decoder: bool
    precision: SettledPrecision

    @classmethod
    def of(cls, run: ResolvedRun) -> "Kind":
        """Return the kind of a run."""
        return cls(run.config.method.name, run.config.task == "causal-lm", run.precision)

    def __str__(self) -> str:
        """Return it in a few words."""
        return f"{self.method}, {'a decoder' if self.is_decoder else 'an encoder'}, {self.precision}"


@dataclass(frozen=True)
class Look:
    """What was seen of this machine's processor.

    Attributes:
        date: the day, such as 2026-11-26.
        kind: of training.
        device: the speed of one rank.
    """

    date: str
    kind: Kind
    device: Device


def look_words(date: str) -> str:
    """Return where the figures are from, as plans say it."""
    return f"{FROM_STEPS} on {date}"


def find_look(num_threads: int, kind: Kind) -> Look | None:
    """Return what was seen of this machine's processor in a kind of training, if that still holds.

    Args:
        num_threads: of one rank.
        kind: of training.
    """
    return find_kept(_file(num_threads, kind), num_threads, _from_tree)


def kept_looks(num_threads: int) -> list[Look]:
    """Return all that was seen of this machine's processor and still holds, by the names of the files."""
    found = (find_kept(file, num_threads, _from_tree) for file in kept_files(f"look-{num_threads}-*"))
    return [one for one in found if one is not None]


def keep_look(look: Look, num_threads: int) -> None:
    """Write a look into the cache, where that can be written.

    Args:
        look: what was seen.
        num_threads: of one rank.
    """
    kind = look.kind
    tree = {"date": look.date, "kind": [kind.method, kind.is_decoder, kind.precision], **rates_of(look.device)}
    keep_tree(_file(num_threads, kind), num_threads, tree)


def _file(num_threads: int, kind: Kind) -> Path:
    model = "decoder" if kind.is_decoder else "encoder"
    return kept_file(f"look-{num_threads}-{kind.method}-{model}-{kind.precision}")


def _from_tree(tree: Mapping[str, Any]) -> Look:
    date = tree["date"]
    return Look(date, Kind(*tree["kind"]), from_rates(tree, look_words(date)))
