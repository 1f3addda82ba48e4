"""The errors that a user can cause, each one a sentence: what was given, what was wanted, what to try.

    FtkitError                what the command line prints without a traceback
    ├── ConfigError           a flag, a YAML key or a value that is not valid
    ├── DataError             a file, a column, a label or a split that is not there or not usable
    │   └── NoLabelError      no column can be the label
    ├── ModelError            a model that cannot be loaded, or not for this task or method
    ├── CheckpointError       a checkpoint that is incomplete, damaged or of another run
    ├── DependencyError       a package that this configuration needs is missing
    ├── DeviceError           this machine cannot do what was asked (precision, accelerator, disk)
    ├── DoesNotFitError       the configuration needs more memory than there is
    ├── DivergedError         the loss became NaN or infinite
    ├── PeerLostError         another rank of the job ended early
    ├── SeveralMistakesError  more than one of these, found before training
    ├── PlannerError          the planner failed, which is our mistake; training without a plan is the way round it
    └── InterruptedRunError   a signal ended the run; the same command with --resume goes on

Anything else that escapes is our own mistake and keeps its traceback.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence


class FtkitError(Exception):
    """A user's mistake; the message is the whole explanation.

    Attributes:
        exit_code: what the process exits with.
    """

    exit_code = 2


class ConfigError(FtkitError):
    """A flag, a key or a value is not valid."""


class DataError(FtkitError):
    """A file, a column, a label or a split is missing or not usable."""

    exit_code = 3


class NoLabelError(DataError):
    """No column of labels is found, or several are."""


class ExcusableDataError(DataError):
    """Rows that are refused unless a key leaves them out, or takes them as they are.

    Attributes:
        way_on: the fields of the data section, and the values with which the rest can be read.
    """

    def __init__(self, sentence: str, way_on: Mapping[str, str]) -> None:
        """Keep the sentence and the way on."""
        super().__init__(sentence)
        self.way_on = way_on


class ModelError(FtkitError):
    """A model that cannot be loaded, or not for this task or method."""

    exit_code = 4


class CheckpointError(FtkitError):
    """A checkpoint that is incomplete, damaged or of another run."""

    exit_code = 5


class DependencyError(FtkitError):
    """A package that this configuration needs is missing."""

    exit_code = 6


class DeviceError(FtkitError):
    """This machine cannot do what was asked."""

    exit_code = 7


class DoesNotFitError(FtkitError):
    """The configuration needs more memory than there is."""

    exit_code = 8


class DivergedError(FtkitError):
    """The loss became NaN or infinite.

    Attributes:
        is_before_updates: whether it was so before any weight had changed.
    """

    exit_code = 9

    def __init__(self, message: str, *, is_before_updates: bool = False) -> None:
        """Take the sentence."""
        super().__init__(message)
        self.is_before_updates = is_before_updates


class PeerLostError(FtkitError):
    """Another rank of the job ended early.

    Attributes:
        is_unexplained: whether that rank had no time to say why, so that nobody but this one tells of it.
    """

    exit_code = 10

    def __init__(self, message: str, *, is_unexplained: bool = False) -> None:
        """Take the sentence."""
        super().__init__(message)
        self.is_unexplained = is_unexplained


class SeveralMistakesError(FtkitError):
    """More than one mistake, each with its own sentence; the exit code is that of the first."""

    def __init__(self, errors: Sequence[FtkitError]) -> None:
        """Put the sentences below one another.

        Args:
            errors: two or more; a sentence that stands twice is said once.
        """
        sentences = list(dict.fromkeys(str(error) for error in errors))
        self.exit_code = errors[0].exit_code
        super().__init__(
            sentences[0]
            if len(sentences) == 1
            else "\n".join([f"{len(sentences)} mistakes:", *(f"  - {sentence}" for sentence in sentences)])
        )


class PlannerError(FtkitError):
    """The planner failed: a mistake of ours, whose traceback is in a file. Training without a plan goes round it."""

    exit_code = 70  # EX_SOFTWARE of sysexits.h: an internal error


class InterruptedRunError(FtkitError):
    """A signal ended the run, and nothing is lost: the same command with --resume goes on where it stopped."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later


def nearest(given: str, known: Iterable[str]) -> str:
    """Return a half-sentence that names the nearest known words.

    Args:
        given: what the user wrote.
        known: every word that would have been accepted.

    Returns:
        `did you mean 'x'?` when something is close, else `known: a, b, c` (at most 12).
    """
    words = list(known)
    close = difflib.get_close_matches(given, words, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(word) for word in close) + "?"
    shown = ", ".join(words[:12]) + (", ..." if len(words) > 12 else "")
    return f"known: {shown}"
