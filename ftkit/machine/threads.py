"""How long the threads of a process wait for one another before they give their cores away."""

import os

_SPINS, _POLICY = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"
"""Variables that GNU's OpenMP, which torch computes with, reads once, as torch is imported (manual of libgomp)."""
_MOST_SPINS = 10_000
"""Looks at a lock. With half as many, two threads lose half of what they gain over one where nothing else runs."""


def wait_briefly() -> None:
    """Let threads that wait for others give their cores away soon; call it before torch is imported.

    By itself GNU's OpenMP looks 300,000 times, on the cores that the others may need: beside one other program that
    computes, two threads then train several times slower than one does. What the user has set of it stays, and
    processes that this one starts have the same.
    """
    if _POLICY not in os.environ:
        os.environ.setdefault(_SPINS, str(_MOST_SPINS))
