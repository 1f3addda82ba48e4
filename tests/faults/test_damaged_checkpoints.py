"""A checkpoint that is damaged is told by name, and the one before it is taken."""

import pytest

from ftkit.errors import CheckpointError
from ftkit.records.files import CHECKPOINTS
from ftkit.training.checkpoint import STATE, WEIGHTS, list_checkpoints
from tests.faults.test_memory_that_runs_out import train


class Notes:
    """A reporter that keeps what it is told."""

    def __init__(self):
        self.texts = []

    def note(self, text):
        self.texts.append(text)

    def __getattr__(self, name):
        return lambda *_: None


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.fixture
def stopped(work, tmp_path):
    """A run of two checkpoints that could be trained for longer."""
    train(work, tmp_path / "run", "training.checkpoint_every=1", "training.max_steps=3")
    return tmp_path / "run"


@pytest.mark.parametrize("damage", [truncate, flip])
@pytest.mark.parametrize("name", [WEIGHTS, STATE])
def test_the_one_before_a_damaged_checkpoint_is_taken(work, stopped, name, damage):
    older, newest = list_checkpoints(stopped / CHECKPOINTS)
    damage(newest / name)
    notes = Notes()
    record = train(work, stopped, "training.checkpoint_every=1", "training.max_steps=4", resume=True, reporter=notes)
    assert record.result.num_steps == 4
    assert any(str(newest) in text and f"going on from {older}" in text for text in notes.texts)


def test_where_none_is_whole_nothing_is_guessed(work, stopped):
    for path in list_checkpoints(stopped / CHECKPOINTS):
        truncate(path / WEIGHTS)
    with pytest.raises(CheckpointError, match="is not what was written"):
        train(work, stopped, "training.checkpoint_every=1", "training.max_steps=4", resume=True)
