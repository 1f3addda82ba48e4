"""A checkpoint that is damaged is told by name, and the one before it is taken."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file

from ftkit.errors import CheckpointError
from ftkit.records.files import CHECKPOINTS
from ftkit.training.checkpoints.checkpoint import MANIFEST, STATE, WEIGHTS, list_checkpoints
from tests.faults.test_memory_that_runs_out import train
from tests.helpers import Notes
from tests.training.test_resume import change


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
    assert any(str(newest) in text and f"going on from {older}" in text for text in notes.said)


def later(path):
    """As a later ftkit would have written it."""
    change(path / STATE, lambda raw: raw.update(format=99, versions={"ftkit": "9.0"}, more={"unknown": 1}))


def foreign(path):
    """Weights of another model."""
    save_file({"other.weight": torch.zeros(2)}, path / WEIGHTS)
    seals = json.loads((path / MANIFEST).read_text())
    data = (path / WEIGHTS).read_bytes()
    seals[WEIGHTS] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / MANIFEST).write_text(json.dumps(seals))


def half_written(path):
    """A copy that was cut short: what is written last is missing."""
    (path / MANIFEST).unlink()


def emptied(path):
    for file in path.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (later, "was written by a later ftkit (9.0, format 99, and this one reads format 2)"),
        (half_written, "half written or not a checkpoint of ftkit"),
        (emptied, "half written or not a checkpoint of ftkit"),
        (foreign, "is of another model"),
    ],
)
def test_the_one_before_a_checkpoint_that_this_run_cannot_read_is_taken(work, stopped, damage, words):
    older, newest = list_checkpoints(stopped / CHECKPOINTS)
    damage(newest)
    notes = Notes()
    record = train(work, stopped, "training.checkpoint_every=1", "training.max_steps=4", resume=True, reporter=notes)
    assert record.result.num_steps == 4
    assert any(words in text and f"going on from {older}" in text for text in notes.said), notes.said


def test_where_none_is_whole_nothing_is_guessed(work, stopped):
    for path in list_checkpoints(stopped / CHECKPOINTS):
        truncate(path / WEIGHTS)
    with pytest.raises(CheckpointError, match="is not what was written"):
        train(work, stopped, "training.checkpoint_every=1", "training.max_steps=4", resume=True)
