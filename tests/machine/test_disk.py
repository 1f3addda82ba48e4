"""Files are written whole or not at all; a disk that is full or gone is waited for, on a real one if we may mount."""

import contextlib
import errno
import os
import subprocess

import pytest
import torch
from safetensors import safe_open

from ftkit.errors import DeviceError
from ftkit.machine import disk
from ftkit.machine.disk import is_of_disk, replace_text, written_aside, written_patiently
from ftkit.records.files import RecordWriter
from ftkit.records.schema import RecoveryLine

LINE = RecoveryLine(step=1, reason="x" * 5000, before="a", after="b")


def test_what_torch_says_of_a_file_that_it_cannot_map_is_the_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError), disk.system_errors():
        torch.UntypedStorage.from_file(str(tmp_path / "gone"), False, 8)
    with pytest.raises(RuntimeError, match="another"), disk.system_errors():
        raise RuntimeError("another mistake (2)")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount(folder)
    yield folder
    unmount(folder)


def mount(folder, size="256k"):
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    with contextlib.suppress(FileNotFoundError):
        if subprocess.run(command, check=False, capture_output=True).returncode == 0:
            return
    pytest.skip("this user cannot mount")


def unmount(folder):
    subprocess.run(["umount", "-l", folder], check=False, capture_output=True)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(disk, "_FIRST_WAIT", 0.01)


def fill(folder):
    """Fill a disk to the last byte; returns the file that fills it."""
    filling = folder / "filling"
    with filling.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"0" * 4096)
    return filling


def test_a_write_waits_until_a_full_disk_has_room(small_disk):
    filling, told = fill(small_disk), []

    def make_room(sentence):
        told.append(sentence)
        filling.unlink(missing_ok=True)

    def write():
        with written_aside(small_disk / "checkpoint", "choose another") as aside:
            (aside / "weights").write_bytes(b"1" * 8192)

    written_patiently(write, small_disk / "checkpoint", 60, make_room)
    assert (small_disk / "checkpoint" / "weights").stat().st_size == 8192
    assert "No space left on device; the run waits and tries again for up to 1 min 00 s" in told[0]
    assert "of waiting; the run goes on" in told[1]
    assert len(told) == 2


def test_after_the_stated_time_the_error_is_raised_and_nothing_of_the_attempt_is_left(small_disk):
    fill(small_disk)

    def write():
        with written_aside(small_disk / "checkpoint", "choose another") as aside:
            (aside / "weights").write_bytes(b"1" * 8192)

    with pytest.raises(DeviceError, match="No space left on device; free some space or choose another"):
        written_patiently(write, small_disk / "checkpoint", 0.05, lambda _: None)
    assert [path.name for path in small_disk.iterdir()] == ["filling"]


def test_a_line_of_the_record_that_a_full_disk_refused_is_there_once_and_whole(small_disk):
    path = small_disk / "record.jsonl"
    with RecordWriter(path) as record:
        record.write(LINE)
        filling = fill(small_disk)
        written_patiently(lambda: record.write(LINE), path, 60, lambda _: filling.unlink(missing_ok=True))
        record.write(LINE)
    assert path.read_text().splitlines() == [LINE.model_dump_json()] * 3


def test_a_write_waits_until_a_disk_that_vanished_is_back(small_disk, tmp_path):
    folder = small_disk / "run"
    folder.mkdir()
    with RecordWriter(folder / "record.jsonl") as record:
        record.write(LINE)
        unmount(small_disk)

        def write():
            replace_text(folder / "note", "whole")

        def bring_back(_):
            if not folder.exists():
                mount(small_disk)
                folder.mkdir()

        written_patiently(write, folder / "note", 60, bring_back)
    assert (folder / "note").read_text() == "whole"


def test_what_waiting_cannot_help_is_raised_at_once(tmp_path):
    def write():
        raise PermissionError(errno.EACCES, "Permission denied")

    with pytest.raises(PermissionError):
        written_patiently(write, tmp_path, 1e9, pytest.fail)


def test_a_file_system_that_cannot_flush_is_written_all_the_same(tmp_path, monkeypatch):
    def refuse(_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    with written_aside(tmp_path / "folder", "") as aside:
        (aside / "weights").write_bytes(b"1")
    replace_text(tmp_path / "note", "whole")
    assert ((tmp_path / "folder" / "weights").read_bytes(), (tmp_path / "note").read_text()) == (b"1", "whole")


def test_a_file_that_is_gone_when_safetensors_opens_it_is_the_disks_matter(tmp_path):
    with pytest.raises(FileNotFoundError) as raised, safe_open(tmp_path / "gone.safetensors", "pt"):
        pass
    assert is_of_disk(raised.value)
