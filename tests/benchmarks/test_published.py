"""The program as a reader of the documentation runs it."""

import json
import re
import subprocess
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path

import pytest

from benchmarks import published, speed, truth, verdicts
from benchmarks.runner import answer_all, keep, read_answers
from ftkit.machine.hardware import recognize_gpu
from ftkit.observe.tape import Tape
from ftkit.plan.seconds.speed import gpu_device
from ftkit.step.observer import Phase
from tests.benchmarks.stated_rows import FULL, SMALL, STATED

ROOT = Path(__file__).resolve().parents[2]
ROW = STATED | FULL | {"id": "small", "group": "somebody", "throughput": {"tokens_per_s": 1000}}
ROW |= {"arch": SMALL | {"arch_class": "LlamaForCausalLM", "layers": 1, "kv_heads": 4}, "grad_checkpointing": False}


def run(*arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / "published.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_one_trace_answers_every_question_and_each_page_shows_it(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n" + json.dumps(ROW | {"id": "unknown", "arch": None}))
    done = run("truth", "trace", tmp_path / "rows.jsonl", "--kept", tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["small"]
    answers = {name: read_answers(tmp_path / f"{name}.jsonl") for name in published.QUESTIONS}
    assert {name: list(kept) for name, kept in answers.items()} == {
        "truth": ["small"], "verdicts": ["small hf_any"], "speed": ["small"]
    }  # fmt: skip
    assert answers["verdicts"]["small hf_any"]["fits"]
    rows = [ROW, ROW | {"id": "unknown", "arch": None}]
    pages = {name: question.table(rows, answers[name]) for name, question in published.QUESTIONS.items()}
    assert "| small | body, full, 2 x 16 | 0.020 |" in pages["truth"]
    assert "| the sizes of its model are not known | unknown |" in pages["truth"]
    assert "| somebody | 2 | 1 | 1 | 0 | 0 | 1 |" in pages["verdicts"]
    assert "| small | body | full, 2 x 16 | 0.032 |" in pages["speed"]


def test_a_trace_by_the_versions_that_a_row_names_answers_the_other_questions_too(tmp_path):
    named = f"hf_any peft=={metadata.version('peft')}"  # which this process has, as its own would
    rows = [ROW]
    assert answer_all(truth.QUESTION, [verdicts.QUESTION], named, rows, tmp_path) == 0
    assert list(read_answers(tmp_path / "verdicts.jsonl")) == ["small hf_any"]


def test_a_row_that_cannot_be_traced_to_its_end_is_told_and_the_others_are_answered(tmp_path):
    broken = STATED | {"id": "broken", "arch": STATED["arch"] | {"kv_heads": 3}}  # under four of the query
    (tmp_path / "rows.jsonl").write_text(json.dumps(broken) + "\n" + json.dumps(ROW))
    done = run("truth", "trace", tmp_path / "rows.jsonl", "--kept", tmp_path)
    assert done.returncode == 1
    assert re.search("broken +failed", done.stdout)
    assert "Traceback" in done.stderr
    assert list(read_answers(tmp_path / "truth.jsonl")) == ["small"]


def test_an_answer_takes_the_place_of_the_one_that_was_there(tmp_path):
    keep(tmp_path / "truth.jsonl", [{"id": "b", "predicted_bytes": 1}, {"id": "a", "predicted_bytes": 2}])
    keep(tmp_path / "truth.jsonl", [{"id": "b", "predicted_bytes": 3}])
    assert [(one["id"], one["predicted_bytes"]) for one in read_answers(tmp_path / "truth.jsonl").values()] == [
        ("a", 2), ("b", 3)
    ]  # fmt: skip


def test_a_page_does_not_show_what_a_stack_said_of_a_row_before_it_refused_it(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n" + json.dumps(ROW | {"id": "unknown", "arch": None}))
    said = {"reserved_bytes": 2**30, "fits": True, "fits_grown": True}
    keep(tmp_path / "verdicts.jsonl", [said | {"id": "small hf_any"}, said | {"id": "unknown hf_any"}])
    done = run("verdicts", "table", tmp_path / "rows.jsonl", "--kept", tmp_path, "--out", tmp_path / "page.md")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.md").read_text()
    assert "| somebody | 2 | 1 | 1 | 0 | 0 | 1 |" in page
    assert "the sizes of its model are not known" in page


def test_a_speed_is_that_of_the_usual_sample_where_minutes_for_iterations_are_published():
    row = ROW | {"throughput": {"minutes_per_1k_iterations": 3.0}}
    assert speed.usual(row)["seq_len"] == speed.ALPACA_TOKENS
    assert speed.seconds_published(row) == 0.18
    assert speed.usual(ROW) is ROW
    assert speed.seconds_published(ROW) == 0.032


@pytest.mark.parametrize(
    ("row", "forwards", "numbers"),
    [
        # A forward waits for the host to ask for it, and for two lists of 2 x 4096 numbers; 200 more forwards in 1000
        # iterations evaluate.
        ({"method": "lora", "lora_target_modules": "query,value"}, 1.2, 4 * 4096),
        ({"method": "llama_adapter_v1", "lora_target_modules": None}, 1.102, 0),
    ],
)
def test_an_iteration_of_litgpt_has_its_part_of_the_evaluation_and_the_lists_that_the_host_makes(
    row, forwards, numbers
):
    row = ROW | row | {"arch": {"layers": 2, "hidden": 4096}}
    costs = {(phase, 1, None): Counter([("mm", 0, 8, "")]) for phase in (Phase.FORWARD, Phase.BACKWARD)}
    costs[Phase.OPTIMIZER, 1, None] = Counter({("mm", 0, 10**12, ""): 1})
    device = gpu_device(recognize_gpu("A100-SXM4-40GB"), "bf16")
    asked = device.host_seconds
    expected = forwards * (asked + numbers * 0.15e-6) + asked
    assert speed.iteration_seconds(row, Tape(costs=costs), device) == pytest.approx(expected)
