"""A whole run on a real disk that fills, or that goes away for a while: it waits, goes on, and loses nothing."""

import subprocess
import time

import pytest

from ftkit.errors import DeviceError
from ftkit.machine import disk
from ftkit.records.files import CHECKPOINTS, read_record
from ftkit.training.checkpoints.checkpoint import list_checkpoints, load_checkpoint
from tests.faults.test_memory_that_runs_out import STEPS, train, weights
from tests.helpers import Notes
from tests.machine.test_disk import fill, mount, unmount

OFTEN = ["training.checkpoint_every=1"]


class Breaks(Notes):
    """Breaks the disk after a step, and mends it when the run says that it waits."""

    def __init__(self, breaks, mends):
        super().__init__()
        self.breaks, self.mends = breaks, mends

    def advance(self, step):
        if step == 2:
            self.breaks()

    def note(self, text):
        super().note(text)
        if "the run waits" in text:
            self.mends()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(disk, "_FIRST_WAIT", 0.01)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 4 MiB, which a run of the tiny model does not fill."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount(folder, "4m")
    yield folder
    unmount(folder)


@pytest.fixture(scope="module")
def expected(work, tmp_path_factory):
    """The losses and the weights of the run whose disk is well."""
    folder = tmp_path_factory.mktemp("expected")
    train(work, folder, *OFTEN)
    return result(folder)


def result(folder):
    return [line.loss for line in read_record(folder).steps], {
        name: tensor.tolist() for name, tensor in weights(folder).items()
    }


def test_a_run_whose_disk_fills_waits_for_room_and_ends_as_if_nothing_had_been(work, small_disk, expected):
    notes = Breaks(lambda: fill(small_disk), lambda: (small_disk / "filling").unlink())
    train(work, small_disk / "run", *OFTEN, reporter=notes)
    assert any("No space left on device; the run waits" in text for text in notes.said)
    assert any("of waiting; the run goes on" in text for text in notes.said)
    assert result(small_disk / "run") == expected


def test_a_run_whose_disk_stays_full_ends_with_what_is_whole_and_goes_on_when_there_is_room(work, small_disk, expected):
    folder = small_disk / "run"

    def fills():
        while not list_checkpoints(folder / CHECKPOINTS):  # the first is written while the second step is taken
            time.sleep(0.01)
        fill(small_disk)

    notes = Breaks(fills, lambda: None)
    with pytest.raises(DeviceError, match=r"No space left on device.*; free some space"):
        train(work, folder, *OFTEN, "output.disk_patience=0.05", reporter=notes)
    kept = list_checkpoints(folder / CHECKPOINTS)
    assert [load_checkpoint(path)[0].step for path in kept] == [1]
    assert not list(folder.rglob("*.tmp"))
    (small_disk / "filling").unlink()
    train(work, folder, *OFTEN, resume=True)
    assert result(folder) == expected


def test_a_run_whose_disk_goes_away_waits_until_it_is_back(work, small_disk, tmp_path, expected):
    place = tmp_path / "mounted"
    place.mkdir()

    def come():
        if not place.is_mount():
            subprocess.run(["mount", "--bind", small_disk, place], check=True)

    come()
    notes = Breaks(lambda: unmount(place), come)
    try:
        record = train(work, place / "run", *OFTEN, reporter=notes)
        assert any("No such file or directory; the run waits" in text for text in notes.said), notes.said
        assert record.result.num_steps == STEPS
        assert result(place / "run") == expected
    finally:
        unmount(place)
