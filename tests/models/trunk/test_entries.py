"""The cache of hidden states: whole or absent, checked, bounded."""

import os

import numpy as np
import pytest
import torch

from ftkit.errors import ConfigError, DeviceError
from ftkit.models.trunk import entries
from ftkit.models.trunk.rows import Rows
from ftkit.models.trunk.store import Hidden, Layout, missing_shards, write_shard

LENGTHS = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path))
    return tmp_path / "trunk"


def layout(dtype=torch.float32, *, is_pooled=False):
    return Layout.of(LENGTHS, 4, dtype, is_pooled=is_pooled)


def fill(path, made, numbers=None):
    """Write shards in which each sequence's vectors hold its number; finish where all are there."""
    for number in range(len(made.shards)) if numbers is None else numbers:
        sequences = np.repeat(made.shards[number], made.num_rows[made.shards[number]])
        rows = Rows(len(sequences), made.width, made.dtype)
        rows.put(0, torch.from_numpy(sequences).float()[:, None].expand(-1, made.width))
        write_shard(path, number, rows)
    if not missing_shards(path, range(len(made.shards))):
        num_rows = int(made.num_rows.sum())
        entries.finish(path, entries.About("m", "train of d", "head", "float32", len(LENGTHS), num_rows, num_rows * 16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_pooled", [False, True])
def test_what_was_written_is_read_where_it_lies(dtype, is_pooled, cache):
    made = layout(dtype, is_pooled=is_pooled)
    fill(cache / "a", made)
    hidden = Hidden(cache / "a", made, is_pooled=is_pooled)
    for number, states in enumerate(hidden.states(np.arange(len(LENGTHS)))):
        assert states.shape == (1 if is_pooled else LENGTHS[number], 4)
        assert states.dtype == dtype
        assert (states == number).all()


def test_an_open_entry_outlives_its_removal(cache):
    fill(cache / "a", layout())
    hidden = Hidden(cache / "a", layout(), is_pooled=False)
    assert entries.remove_entry(cache / "a")
    assert entries.list_entries() == []
    assert (hidden.states(np.array([5]))[0] == 5).all()


def test_shards_that_are_whole_are_kept_and_those_that_are_not_are_written_again(cache):
    fill(cache / "a", layout(), [0, 2])
    (cache / "a" / "1-99.tmp").write_bytes(b"what a killed run left")
    assert missing_shards(cache / "a", range(4)) == [1, 3]
    assert entries.list_entries()[0].about is None


def test_a_flipped_byte_is_found(cache):
    fill(cache / "a", layout())
    shard = entries.find_shard(cache / "a", 3)
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert entries.damaged_shards(cache / "a") == [shard]
    assert missing_shards(cache / "a", range(len(layout().shards))) == [3]
    assert not shard.exists()


def test_what_was_not_used_for_longest_makes_room(cache):
    for age, name in enumerate("abc"):
        fill(cache / name, layout())
        os.utime(cache / name / entries.ENTRY, (1e9 - age, 1e9 - age))
    held = sum(found.num_bytes for found in entries.list_entries())
    assert [path.name for path in entries.make_room(1, held, [cache / "c"])] == ["b"]
    assert {found.path.name for found in entries.list_entries()} == {"a", "c"}


def test_what_does_not_fit_is_refused_before_anything_is_written_or_removed(cache):
    fill(cache / "a", layout())
    with pytest.raises(DeviceError, match=r"take 2\.00 TiB .* cache\.limit is 1\.00 GiB; raise --cache-limit"):
        entries.make_room(2**41, 2**30, [])
    with pytest.raises(DeviceError, match=r"take 1\.00 EiB|take .* and the disk of .* free; set FTKIT_CACHE"):
        entries.make_room(2**60, 2**61, [])


def test_an_entry_is_named_by_its_first_letters(cache):
    for name in ("ab1", "ab2"):
        fill(cache / name, layout())
    assert entries.find_entry("ab1") == cache / "ab1"
    with pytest.raises(ConfigError, match="2 entries begin with 'ab'"):
        entries.find_entry("ab")
    with pytest.raises(ConfigError, match="no entry begins with 'x'"):
        entries.find_entry("x")
