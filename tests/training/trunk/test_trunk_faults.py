"""Whatever happens while the cache of hidden states is filled, what it holds is what a run alone would have written."""

import multiprocessing
import os
import random
import signal
import time

import pytest
import torch

from ftkit.machine.process import ProcessContext
from ftkit.machine.sealed import SUFFIX
from ftkit.models.trunk import entries, store
from tests.helpers import build_cached, ragged_split, save_tiny_model

SETTINGS = ["method.name=lora", "method.top_layers=1", "batch.global_batch_size=8", "batch.micro_batch_size=1"]
NUM_SHARDS = 8
SPLIT = ragged_split("sequence-classification", 160, longest=60)
KILLED_AFTER_SHARDS = [0, 2, 5]
"""In ordinary tests; a kill comes at a random moment of the shard after so many."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model") / "bert", "bert")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "trunk"


def fill(model):
    build_cached(SETTINGS, model, ProcessContext(), SPLIT)


def in_a_process(work, *arguments):
    """Start a copy of this process, which has all that it needs loaded."""

    def run():
        torch.set_num_threads(1)  # threads do not come along into a copy
        work(*arguments)

    process = multiprocessing.get_context("fork").Process(target=run, daemon=True)
    process.start()
    return process


def shards(folder):
    return {path.name: path.stat().st_ino for path in folder.glob(f"*/*{SUFFIX}")}


def kill_while_filling(model, folder, num_shards, delay):
    """Kill a run that fills the cache once so many shards are there and a moment has passed."""
    process = in_a_process(fill, model)
    while len(shards(folder)) < num_shards and process.is_alive():
        time.sleep(0.0005)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def check_that_it_goes_on(model, folder, expected):
    kept = shards(folder)
    fill(model)
    after = shards(folder)
    assert after.keys() == expected
    assert kept.items() <= after.items()  # the very files: what was whole was not written again
    (entry,) = entries.list_entries()
    assert entry.about is not None
    assert entries.damaged_shards(entry.path) == []
    assert not list(folder.glob("*/*.tmp"))


@pytest.fixture(scope="module")
def expected(model, tmp_path_factory):
    """The shards of a run that nobody disturbed; the name of each has the digest of its content."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTKIT_CACHE", str(folder))
        fill(model)
    return shards(folder / "trunk").keys()


@pytest.mark.parametrize("num_shards", KILLED_AFTER_SHARDS)
def test_a_run_that_is_killed_while_it_fills_the_cache_leaves_what_the_next_one_goes_on_from(
    num_shards, model, cache, expected
):
    kill_while_filling(model, cache, num_shards, random.Random(num_shards).uniform(0, 0.01))
    assert len(shards(cache)) >= num_shards
    check_that_it_goes_on(model, cache, expected)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_so_it_does_at_ten_random_moments(seed, model, cache, expected):
    draw = random.Random(seed)
    kill_while_filling(model, cache, draw.randrange(NUM_SHARDS), draw.uniform(0, 0.03))
    check_that_it_goes_on(model, cache, expected)


def test_a_flipped_byte_is_found_and_its_shard_alone_written_again(model, cache, expected):
    fill(model)
    before = shards(cache)
    damaged = sorted(cache.glob(f"*/*{SUFFIX}"))[3]
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 4
    damaged.write_bytes(content)
    fill(model)
    after = shards(cache)
    assert after.keys() == before.keys() == expected
    assert entries.damaged_shards(damaged.parent) == []
    assert {name for name in after if after[name] != before[name]} <= {damaged.name}


def test_two_runs_at_once_fill_the_cache_once(model, cache, expected, tmp_path, monkeypatch):
    written = tmp_path / "written"
    written.mkdir()
    write = store.write_shard

    def count(path, number, hidden):
        (written / f"{number}-{os.getpid()}").touch()
        write(path, number, hidden)

    monkeypatch.setattr("ftkit.models.trunk.build.write_shard", count)
    for process in [in_a_process(fill, model), in_a_process(fill, model)]:
        process.join(120)
        assert process.exitcode == 0
    assert shards(cache).keys() == expected
    assert len(list(written.iterdir())) == len(expected)
