"""One line of what `ftkit doctor` says of this machine."""

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """The state of something on this machine."""

    OK = "ok"
    MISSING = "missing"
    """Not there; what needs it cannot be used, all else can."""
    PROBLEM = "problem"
    """There, and not as training wants it."""


@dataclass(frozen=True)
class Finding:
    """Something about this machine that training depends on.

    Attributes:
        name: what was looked at, in a word or two.
        state: how it is.
        fact: what was seen.
        cure: what to install or to set, and what that is good for; None where all is well.
        is_blocking: whether nothing can be trained as it is.
    """

    name: str
    state: State
    fact: str
    cure: str | None = None
    is_blocking: bool = False


def ok(name: str, fact: str) -> Finding:
    """Return a finding that nothing needs to be done about."""
    return Finding(name, State.OK, fact)


def missing(name: str, fact: str, cure: str) -> Finding:
    """Return a finding of something that is not there and that some runs could do without."""
    return Finding(name, State.MISSING, fact, cure)


def problem(name: str, fact: str, cure: str, *, is_blocking: bool = False) -> Finding:
    """Return a finding of something that is not as training wants it."""
    return Finding(name, State.PROBLEM, fact, cure, is_blocking)
