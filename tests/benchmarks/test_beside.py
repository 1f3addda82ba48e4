"""Two programs side by side: what is counted, and the table that is made of the runs."""

from dataclasses import replace

import torch

from benchmarks.beside import PAGE, ROOT, filled, read_runs, table
from benchmarks.contestants import Trainer
from benchmarks.job import Job
from benchmarks.live_bytes import LiveBytes


def test_tensors_count_from_when_they_are_first_used_until_nothing_refers_to_them():
    weight = torch.ones(1000)
    with LiveBytes() as counter:
        product = weight * 2
        assert counter.live == 8000
        del product
        assert counter.live == 4000
        view = weight[:10]
        assert counter.live == 4000
        total = view.sum()
        torch.empty(10**6, device="meta").add_(1)
    assert counter.peak == 8000
    assert total == 10


def test_gradients_and_moments_count_until_the_optimizer_is_gone():
    weight = torch.ones(1000, requires_grad=True)
    with LiveBytes() as counter:
        optimizer = torch.optim.AdamW([weight], foreach=False)
        (weight * 2).sum().backward()
        optimizer.step()
        held = counter.live
        assert 4 * 4000 <= held < 4 * 4000 + 100  # weight, gradient, two moments; a step count and scalars
        optimizer.zero_grad()
        assert counter.live == held - 4000


def test_a_ratio_is_taken_within_a_round():
    def run(name, number, seconds):
        times = {"train_seconds": seconds, "seconds": seconds + 5, "resident_bytes": 10**9, "score": 0.5}
        return {"name": name, "round": number, "counted": False, "tokens": 660, **times}

    runs = [run("ftkit", 0, 10), run("hf:fp32:random", 0, 20), run("ftkit", 1, 30), run("hf:fp32:random", 1, 90)]
    runs.append({"name": "ftkit", "round": -1, "counted": True, "counted_bytes": 5 * 10**6})
    assert (
        "| hf:fp32:random | 55.0 | 20 | 2.50 (2.00 to 3.00) | 60.0 |  | 1,000 | 0.5000 (0.5000 to 0.5000) |"
        in table(runs)
    )
    assert "| ftkit | 20.0 | 44 |  | 25.0 | 5 |" in table(runs)


def test_the_name_of_a_contestant_spells_its_settings():
    assert Trainer.named("hf:amp:group_by_length:recompute") == Trainer("amp", "group_by_length", True)
    assert Trainer.named("hf:bf16") == Trainer("bf16", "random", False)


def test_the_micro_batch_of_a_small_global_batch_is_the_whole_batch():
    job = Job("causal-lm", "", "", 1, 256, 4, 1e-4)
    assert job.micro_batch_size == 4
    assert replace(job, global_batch_size=128).micro_batch_size == 16


def test_the_page_has_the_tables_of_the_runs_that_are_kept():
    page, tasks = PAGE.read_text(encoding="utf-8"), read_runs(ROOT / "benchmarks")
    assert tasks
    assert filled(page, tasks) == page


def test_a_table_takes_the_place_of_the_one_behind_its_comment():
    run = {"name": "ftkit", "round": 0, "counted": False, "tokens": 10, "train_seconds": 2.0, "seconds": 3.0}
    runs = {"reviews": [{**run, "resident_bytes": 10**6, "score": 0.5}]}
    page = "one\n\n<!-- reviews -->\n\n{}\n\n| another |\n|---|\n"
    new = filled(page.format("| old |\n|---|"), runs)
    assert new == page.format(table(runs["reviews"]))
    assert filled(new, runs) == new
