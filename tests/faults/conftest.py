"""What breaks here are the runs of a user; they start from the same things."""

from tests.e2e.conftest import work

__all__ = ["work"]
