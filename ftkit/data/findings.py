"""Findings about data that a user should know of before it trains: how bad each is, and what cures it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

from ftkit.errors import DataError, ExcusableDataError


class Severity(Enum):
    """The severity of a finding."""

    ERROR = "error"
    """Nothing trains."""
    WARNING = "warning"
    """It trains, but on something else than its owner may believe."""
    NOTE = "note"
    """It trains as intended; good to know."""


@dataclass(frozen=True)
class Finding:
    """One thing that was found in the data.

    Attributes:
        severity: how bad it is.
        text: a sentence without its full stop.
        cure: what to do about it, or nothing.
    """

    severity: Severity
    text: str
    cure: str = ""

    def line(self) -> str:
        """Return the finding as one line, such as `warning: 3 rows ...; raise data.max_length`."""
        return f"{self.severity.value}: {self.text}{'; ' if self.cure else ''}{self.cure}"


class RefusedDataError(DataError):
    """Data that cannot be used.

    Attributes:
        findings: what else was found before it was refused.
        way_on: the fields of the data section, and the values with which the rest can be read; empty: it cannot.
    """

    def __init__(self, sentence: str, findings: Sequence[Finding], way_on: Mapping[str, str]) -> None:
        """Keep the sentence, the findings and the way on."""
        super().__init__(sentence)
        self.findings = tuple(findings)
        self.way_on = way_on


@contextmanager
def kept(findings: list[Finding]) -> Iterator[None]:
    """Give an error about data the findings so far."""
    try:
        yield
    except DataError as error:
        way_on = error.way_on if isinstance(error, ExcusableDataError) else {}
        raise RefusedDataError(str(error), findings, way_on) from None


def warning(text: str, cure: str = "") -> Finding:
    """Return a finding that its owner may not expect."""
    return Finding(Severity.WARNING, text, cure)


def note(text: str, cure: str = "") -> Finding:
    """Return a finding that is good to know."""
    return Finding(Severity.NOTE, text, cure)


def by_severity(findings: tuple[Finding, ...]) -> list[Finding]:
    """Return findings with the worst first, otherwise in their order."""
    order = list(Severity)
    return sorted(findings, key=lambda finding: order.index(finding.severity))


def listed(names: Sequence[str]) -> str:
    """Return names in quotes, the first eight of many."""
    rest = f", and {len(names) - 8:,} more" if len(names) > 8 else ""
    return ", ".join(map(repr, names[:8])) + rest
