"""What ranks send one another in a step, and how long that takes.

Between GPUs a message takes its bytes at the rate of their link. Ranks on a CPU go through gloo, which copies each
message several times, sums with one thread, and has to be waited for: what it takes is timed between as many processes
of this machine as there are ranks, and kept beside the calibrations.
"""

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from ftkit.plan.seconds.calibration import source_words
from ftkit.plan.seconds.kept import find_kept, keep_tree, kept_file
from ftkit.plan.seconds.timed import Law, Timed, law_of, seconds_of

ASSUMED_RATE = 10e9
"""Bytes per second between two processes of a CPU, which share its memory, where nobody has timed them."""
_PROGRAM = "ftkit.plan.seconds.between"
_MOST_WAITED = 0.1
"""Of a moment of computing, for a core, if what was timed is to be kept."""
_MOST_SECONDS = 60.0
"""That timing may take; it takes about four where the ranks have a core each, most of it for their imports."""


class Collective(StrEnum):
    """A way in which all ranks exchange parts of a tensor."""

    SUM = "all_reduce"
    """All have the sum of all tensors."""
    GATHER = "all_gather_into_tensor"
    """All have the parts of all, one behind the other."""
    SCATTER = "reduce_scatter_tensor"
    """Each has its part of the sum."""


@dataclass(frozen=True)
class Message:
    """One exchange of a step.

    Attributes:
        collective: how.
        num_bytes: of the whole tensor: that is summed, is gathered, or is summed and scattered.
    """

    collective: Collective
    num_bytes: int

    def sent_bytes(self, ranks: int) -> float:
        """Return the bytes that each rank of a ring sends: a sum is scattered and gathered."""
        return (2 if self.collective is Collective.SUM else 1) * (ranks - 1) / ranks * self.num_bytes


@dataclass(frozen=True)
class Wire:
    """The way between the ranks of a job.

    Attributes:
        ranks: how many there are.
        rate: bytes per second that one sends to another, where nothing is timed.
        timed: collective to how long it took in several sizes; empty where nothing is timed.
        source: where the figures are from, in words.
    """

    ranks: int
    rate: float
    timed: Mapping[str, Sequence[Timed]] = field(default_factory=dict)
    source: str = ""

    @functools.cached_property
    def _laws(self) -> Mapping[str, Law]:
        return {collective: law_of(timed) for collective, timed in self.timed.items()}

    def seconds(self, message: Message) -> float:
        """Return how long a message takes all ranks; one alone sends none."""
        if self.ranks == 1:
            return 0.0
        if not (timed := self.timed.get(message.collective)):
            return message.sent_bytes(self.ranks) / self.rate
        law = self._laws[message.collective]
        found = seconds_of(timed, law, 0, message.num_bytes)
        return law.seconds(0, message.num_bytes) if found is None else found


def assumed_wire(ranks: int) -> Wire:
    """Return what is taken of ranks on a CPU that nobody has timed."""
    return Wire(ranks, ASSUMED_RATE, source="taken to come at 10 GB/s without delay, which nobody has measured")


def find_wire(ranks: int) -> Wire | None:
    """Return what so many processes of this machine were timed to send one another, if that still holds."""
    return find_kept(_file(ranks), 1, _from_tree)


def time_wire(ranks: int, date: str) -> Wire | None:
    """Time messages between as many processes as there are ranks.

    What was seen is kept for later plans, unless other programs made the processes wait for a core.

    Args:
        ranks: how many.
        date: of today.

    Returns:
        What was seen; None where such processes cannot talk to each other, as where sockets are forbidden.
    """
    try:
        heard = _talk(ranks)
        tree = {"date": date, "ranks": ranks, "seconds": heard["seen"]}
        wire = _from_tree(tree)
    except (OSError, subprocess.SubprocessError, ValueError, LookupError):
        return None
    if heard["waited"] < _MOST_WAITED:
        keep_tree(_file(ranks), 1, tree)
    return wire


def _talk(ranks: int) -> dict[str, Any]:
    """Have processes send each other messages; return what the first of them says."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="ftkit-messages-") as folder, contextlib.ExitStack() as at_the_end:
        talking = []
        for rank in range(ranks):
            command = [sys.executable, "-m", _PROGRAM, str(rank), str(ranks), str(Path(folder, "store"))]
            process = subprocess.Popen(
                command, env=environment, text=True, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            talking.append(at_the_end.enter_context(process))
            at_the_end.callback(process.kill)  # nothing where it has ended
        heard = [process.communicate(timeout=_MOST_SECONDS)[0] for process in talking]
    if any(process.returncode for process in talking):
        raise ValueError("a process that should talk to others failed")
    said: dict[str, Any] = json.loads(heard[0].splitlines()[-1])
    return said


def _file(ranks: int) -> Path:
    return kept_file(f"messages-{ranks}")


def _from_tree(tree: Mapping[str, Any]) -> Wire:
    timed: dict[str, list[Timed]] = defaultdict(list)
    for collective, size, seconds in tree["seconds"]:
        timed[Collective(collective)].append(Timed(0, size, seconds))
    return Wire(tree["ranks"], ASSUMED_RATE, dict(timed), source_words(tree["date"]))
