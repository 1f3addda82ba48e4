"""The page on models larger than the memory has the tables of the runs that are kept."""

import pytest

from benchmarks.beside import ROOT
from benchmarks.larger_than_memory import FTKIT, read_runs, table


def test_the_page_has_the_tables_of_the_runs_that_are_kept():
    page = (ROOT / "docs" / "guide" / "larger-than-memory.md").read_text(encoding="utf-8")
    models = read_runs(ROOT / "benchmarks")
    assert models
    for runs in models.values():
        assert table(runs) in page


def test_the_first_step_is_left_out_a_ratio_is_taken_within_a_round_and_counted_runs_are_not_timed():
    def run(name, number, *steps):
        sizes = {"resident_bytes": 10**9, "imported_bytes": 4 * 10**8}
        return {"name": name, "round": number, "step_seconds": [9, *steps], **sizes}

    runs = [run(FTKIT, 0, 1, 1), run("deepspeed:cpu", 0, 2, 4), run(FTKIT, 1, 2, 2), run("deepspeed:cpu", 1, 8, 8)]
    counted = {**run("deepspeed:cpu", 0, 50, 50), "tensor_bytes": 7 * 10**8, "resident_bytes": 9 * 10**9}
    row = "| deepspeed:cpu | 5.50 | 2.00 | 3.50 (3.00 to 4.00) | 1,000 | 1.00 | 600 | 1.00 | 700 |"
    assert row in table([*runs, counted])
    with pytest.raises(SystemExit, match="go into two tables"):
        table([*runs, {**run(FTKIT, 2, 1, 1), "sets_heap": True}])
