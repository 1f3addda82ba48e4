"""What breaks here are the runs of a user; they start from the same things."""

import multiprocessing

import pytest

from tests.e2e.conftest import work

__all__ = ["work"]


@pytest.fixture(scope="session")
def processes():
    """A server that has imported what a run imports, so that each process starts in a moment."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.killed", "deepspeed"])
    return context
