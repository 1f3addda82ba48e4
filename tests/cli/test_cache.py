"""`ftkit cache` lists, verifies and removes what frozen layers have computed."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from ftkit.cli import main
from ftkit.machine.kept_arrays import KeptArrays
from ftkit.models.trunk import entries
from ftkit.models.trunk.rows import Rows
from ftkit.models.trunk.store import write_shard


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path))
    for name in ("abc", "xyz"):
        rows = Rows(3, 4, torch.float32)
        rows.put(0, torch.ones(3, 4))
        write_shard(tmp_path / "trunk" / name, 0, rows)
    entries.finish(tmp_path / "trunk" / "abc", entries.About("m", "train of d", "score", "float32", 3, 3, 48))
    KeptArrays("tokens", 2**20).put("0123", {"tokens": np.arange(5)})
    return tmp_path / "trunk"


def run(*words):
    return CliRunner().invoke(main, ["cache", *words])


def test_entries_are_listed_with_what_they_are():
    assert "m, below score: train of d, 3 sequences, float32" in run("list").output
    assert "unfinished" in run("list").output
    found = {line["name"]: line["is_finished"] for line in map(json.loads, run("list", "--json").output.splitlines())}
    assert found == {"abc": True, "xyz": False}
    assert "of tokens in " in run("list").output


def test_a_damaged_file_is_named_and_the_exit_code_says_so(cache):
    assert run("verify").exit_code == 0
    shard = entries.find_shard(cache / "abc", 0)
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    done = run("verify", "abc")
    assert done.exit_code == 7
    assert str(shard) in done.output.replace("\n", "")
    assert run("verify", "xyz").exit_code == 0


def test_a_damaged_file_of_tokens_is_named(cache):
    (file,) = KeptArrays("tokens", 2**20).kept.files()
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    done = run("verify")
    assert done.exit_code == 7
    assert str(file) in done.output.replace("\n", "")


def test_what_is_named_is_removed_and_all_only_when_asked(cache):
    assert run("remove").exit_code == 2
    assert run("remove", "ab").exit_code == 0
    assert [found.path.name for found in entries.list_entries()] == ["xyz"]
    assert run("remove", "--all").exit_code == 0
    assert entries.list_entries() == []
    assert KeptArrays("tokens", 2**20).kept.files() == []
