"""The runs that we measured ourselves: they state what a trace needs, and the page shows them beside the published."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import stacks, truth, truth_table
from benchmarks.rows import is_own, read_rows
from tests.benchmarks.stated_rows import STATED

OWN = read_rows([Path(truth.__file__).parent / "own_rows.jsonl"])


def test_every_run_of_our_own_states_all_that_its_trace_needs_and_what_was_foretold():
    assert OWN
    for row in OWN:
        assert is_own(row)
        assert truth.judges(row), stacks.reason_not_traced(row)
        assert row["foretold_bytes"] > 0


def test_runs_of_our_own_have_a_section_of_the_page_and_count_for_none_of_the_published():
    row = next(row for row in OWN if row["extra_metrics"])
    published = row | {"id": "theirs", "group": "theirs", "value_bytes": 1000}
    answers = {one: {"id": one, "versions": {}, "predicted_bytes": 1010} for one in ("theirs", row["id"])}
    foretold = row | {"value_bytes": 1000, "foretold_bytes": 900}
    page = truth_table.page([published, foretold], answers, lambda _: None, lambda _: None)
    assert "| over all 1 rows | 1.00% | 1.00% |" in page
    assert page.index("| theirs | 1 |") < page.index("## Runs of our own") < page.index(f"| {row['group']} | 1 |")
    assert "Before the run: median 10.00%" in page


@pytest.mark.parametrize(("fact", "is_open"), [({}, True), ({"method": "full"}, False), ({"framework": "own"}, False)])
def test_the_settings_of_torchtunes_published_adapters_are_open_and_those_of_our_own_runs_are_not(fact, is_open):
    row = next(row for row in OWN if row["id"] == "own_torchtune_lora_compile")
    published = row | {"group": "torchtune/README_flags", "framework": "torchtune"} | fact
    if fact.get("framework") == "own":
        published = row
    assert (stacks.open_fact(published) is not None) is is_open


@pytest.mark.slow
def test_the_program_that_measures_trains_what_a_row_says_and_writes_the_row_anew(tmp_path):
    row = STATED | {"framework": "HF Trainer + PEFT", "optimizer": "adamw_torch_fused", "value_bytes": 1}
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row | {"id": name}) for name in ("one", "other")))
    paths = ["--rows", tmp_path / "rows.jsonl", "--out", tmp_path / "out.jsonl", "--models", tmp_path]
    program = [sys.executable, "-m", "benchmarks.stacks_on_a_gpu", "one", *map(str, paths)]
    # Without a card, where the training is the same and there is nothing to measure.
    done = subprocess.run(
        program, capture_output=True, text=True, check=False, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    )
    assert done.returncode == 0, done.stderr
    (found,) = read_rows([tmp_path / "out.jsonl"])
    assert found["id"] == "one"
    assert found["value_bytes"] is None
    assert found["framework_version"].startswith("transformers ")
