"""Arrays that can be made again: whole or absent, checked, bounded, and never a reason for a run to end."""

import os

import numpy as np
import pytest

from ftkit.machine.kept_arrays import KeptArrays

ARRAYS = {"tokens": np.arange(1000, dtype=np.int32), "lengths": np.array([400, 600])}


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path))
    return KeptArrays("tokens", 10_000)


def test_what_was_kept_is_found_by_another_process_too(kept):
    assert kept.get("ab12") is None
    kept.put("ab12", ARRAYS)
    found = KeptArrays("tokens", 10_000).get("ab12")
    assert found is not None
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        assert (found[name] == array).all()
    assert kept.kept.num_bytes() > sum(array.nbytes for array in ARRAYS.values())


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[:-1] + b"x", lambda content: content[:50], lambda _: b""],
    ids=["bit", "half", "empty"],
)
def test_a_damaged_file_is_as_none_and_goes(damage, kept):
    kept.put("ab12", ARRAYS)
    (file,) = kept.kept.files()
    file.write_bytes(damage(file.read_bytes()))
    assert kept.get("ab12") is None
    assert kept.kept.files() == []


def test_what_was_not_used_for_longest_makes_room(kept):
    for moment, key in enumerate(("aa1", "bb2")):  # of 4,8 kB each
        kept.put(key, ARRAYS)
        (file,) = (file for file in kept.kept.files() if file.name.startswith(key))
        os.utime(file, (moment, moment))
    kept.get("aa1")
    kept.put("cc3", ARRAYS)
    assert kept.get("bb2") is None
    assert kept.get("aa1") is not None
    assert kept.get("cc3") is not None


def test_a_folder_that_cannot_be_written_keeps_nothing_and_ends_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("FTKIT_CACHE", "/proc/nowhere")  # which root cannot write either
    kept = KeptArrays("tokens", 10_000)
    kept.put("ab12", ARRAYS)
    assert kept.get("ab12") is None
