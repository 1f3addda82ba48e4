"""Note which step each rank has reached, so that the others can name the rank that stopped answering.

Every rank of a job keeps one small file below `ranks/` in the result folder, which all of them see. A collective that
fails says only that a peer is gone; these files say which one, and how far it came.
"""

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ftkit.errors import PeerLostError
from ftkit.machine.process import ProcessContext, says_peer_lost
from ftkit.records.files import RANKS, resume_flag
from ftkit.units import format_seconds

_EVERY_SECONDS = 1.0
"""A file on a network disk is not written more often than this, however quick the steps are."""


@dataclass(frozen=True)
class Beat:
    """The last sign of life of a rank.

    Attributes:
        rank: in the job.
        step: the last step that it began.
        age_seconds: since it said so.
    """

    rank: int
    step: int
    age_seconds: float


class Heartbeat:
    """Writes this rank's file."""

    def __init__(self, folder: Path, process: ProcessContext) -> None:
        """Begin; a process alone writes nothing, since no other would read it.

        Args:
            folder: the result folder, which all ranks see.
            process: the place of this process.
        """
        self._file = _file(folder, process) if process.world_size > 1 else None
        self._written = float("-inf")
        if self._file is not None:
            self._file.parent.mkdir(exist_ok=True)

    def beat(self, step: int) -> None:
        """Say that this rank begins a step; called in each, written once a second.

        Args:
            step: its number.
        """
        now = time.monotonic()
        if self._file is not None and now - self._written >= _EVERY_SECONDS:
            self._written = now
            with contextlib.suppress(OSError):  # a disk that is full for a moment must not end the run over this
                self._file.write_text(str(step), encoding="utf-8")


def _file(folder: Path, process: ProcessContext) -> Path:
    return folder / RANKS / f"rank-{process.rank}"


def last_beats(folder: Path) -> list[Beat]:
    """Return the last sign of life of each rank, the one that has been silent for longest first.

    Args:
        folder: the result folder.
    """
    files = list((folder / RANKS).glob("rank-*"))
    beats = [
        Beat(
            rank=int(file.name.removeprefix("rank-")),
            step=int(file.read_text(encoding="utf-8") or 0),
            age_seconds=time.time() - file.stat().st_mtime,
        )
        for file in files
    ]
    return sorted(beats, key=lambda beat: -beat.age_seconds)


@contextmanager
def named_silence(folder: Path, process: ProcessContext) -> Iterator[None]:
    """Name the rank that has been silent for longest where a collective fails because a rank is gone.

    A rank that ends with an error takes its sign of life away, so one that is still there tells of a death or a hang.

    Args:
        folder: the result folder.
        process: the place of this process.

    Raises:
        PeerLostError: a rank ended, or did not answer in time, while this one worked with it.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, RuntimeError) or not says_peer_lost(str(error)):
            _file(folder, process).unlink(missing_ok=True)  # this rank says by itself why it ends
            raise
        silence = describe_silence(folder, process)
        raise PeerLostError(
            "another rank of this job ended early or stopped answering; its own message says why"
            if not silence
            else f"another rank of this job was lost or stopped answering: {silence}. The last checkpoint is whole: "
            f"{resume_flag(folder)} goes on from there",
            is_unexplained=bool(silence),
        ) from error


def describe_silence(folder: Path, process: ProcessContext) -> str:
    """Return a sentence that names the rank that has been silent for longest, or an empty text where none is known.

    Args:
        folder: the result folder.
        process: the rank that asks; it knows that it is alive.
    """
    others = [beat for beat in last_beats(folder) if beat.rank != process.rank]
    if not others:
        return ""
    lost = others[0]
    return f"rank {lost.rank} was last heard of {format_seconds(lost.age_seconds)} ago, at step {lost.step}"
