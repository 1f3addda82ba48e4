"""Put questions about published rows to the traces of their stacks, each stack in a process of its own."""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import stacks
from benchmarks.rows import Row

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "benchmarks"
"""Where the answers are: a file of JSON lines for each question."""
SAID_OF_A_MEASUREMENT = {"id", "value", "value_bytes", "unit", "date", "throughput", "notes"}
"""Fields in which two rows may differ whose runs do alike: they are traced once."""
Answer = dict[str, Any]
"""What is kept of an answer, as JSON; `id` tells it from the others of its question."""


@dataclass(frozen=True)
class Question:
    """What is asked of published rows.

    Attributes:
        name: of the file that keeps its answers.
        page: the page of the documentation.
        judges: who can answer it for a row: the row's stack, or another that traces nothing.
        traced: the row as it is traced.
        key: the `id` of a judge's answer on a row.
        answer: a judge, a row and the trace of it (None of a judge that traces nothing) to the answer, without `id`.
        line: an answer in words, beside what was published.
        table: rows and answers to the page.
    """

    name: str
    page: Path
    judges: Callable[[Row], list[str]]
    traced: Callable[[Row], Row]
    key: Callable[[str, Row], str]
    answer: Callable[[str, Row, Any], Answer]
    line: Callable[[Row, Answer], str]
    table: Callable[[Sequence[Row], Mapping[str, Answer]], str]

    def kept(self, folder: Path) -> Path:
        """Return the file that keeps its answers."""
        return folder / f"{self.name}.jsonl"


def read_answers(path: Path) -> dict[str, Answer]:
    """Return the kept answers by their `id`."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {answer["id"]: answer for answer in map(json.loads, lines)}


def keep(path: Path, answers: Iterable[Answer]) -> None:
    """Put answers in the place of those that were there."""
    known = read_answers(path) | {answer["id"]: answer for answer in answers}
    path.write_text("".join(json.dumps(known[key]) + "\n" for key in sorted(known)), encoding="utf-8")


def answers_of_today(question: Question, rows: Sequence[Row], kept: Mapping[str, Answer]) -> dict[str, Answer]:
    """Return those of the kept answers whose judge still answers for the row.

    A stack that has come to refuse a row, since the row leaves open what decides it, has no answer to show either.
    """
    keys = {question.key(judge, row) for row in rows for judge in question.judges(row)}
    return {key: answer for key, answer in kept.items() if key in keys}


def run_child(question: Question, judge: str, rows: Sequence[Row], folder: Path) -> bool:
    """Answer a question about rows in a process that finds the versions of a stack first.

    Args:
        question: what is asked.
        judge: a stack, or another judge.
        rows: those that it can answer for.
        folder: where answers are kept.

    Returns:
        Whether every row was answered.
    """
    traces = stacks.stack_name(judge) in stacks.names()
    if traces and stacks.pins(judge) and not stacks.folder(judge).is_dir():
        sys.exit(f"the versions of {judge} are not installed; first: python benchmarks/published.py setup ROWS...")
    paths = [*([str(stacks.folder(judge))] if traces else []), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    program = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / "published.py")]
    command = [*program, question.name, "child", judge, "--kept", str(folder)]
    text = "\n".join(map(json.dumps, rows))
    return subprocess.run(command, input=text, text=True, env=environment, check=False).returncode == 0


def answer_all(question: Question, others: Sequence[Question], judge: str, rows: Sequence[Row], folder: Path) -> int:
    """Answer a question about rows, and by the way the others that the same traces answer.

    Args:
        question: what is asked.
        others: further questions.
        judge: a stack, which traces, or another judge.
        rows: those that it can answer for.
        folder: where answers are kept.

    Returns:
        How many rows failed.
    """
    stack = stacks.enter(judge) if stacks.stack_name(judge) in stacks.names() else None
    traces: dict[str, Any] = {}
    failed = 0
    for row in rows:
        traced = question.traced(row)
        run = json.dumps(sorted(item for item in traced.items() if item[0] not in SAID_OF_A_MEASUREMENT))
        try:
            if stack is not None and run not in traces:
                traces[run] = stack.trace_row(traced)
            answer = _answer(question, judge, row, traces.get(run), folder)
            for other in others:
                if _traces(judge, other, row) and other.traced(row) == traced:
                    _answer(other, judge, row, traces.get(run), folder)
        except Exception:  # the other rows are still wanted; the exit status says that one failed
            traceback.print_exc()
            print(f"{row['id']:44} failed", flush=True)
            failed += 1
            continue
        print(f"{row['id']:44} {question.line(row, answer)}", flush=True)
    return failed


def _traces(judge: str, question: Question, row: Row) -> bool:
    """Return whether a judge answers a question for a row.

    Its stack tells: a process that finds the versions that a row names has no others to name.
    """
    return stacks.stack_name(judge) in map(stacks.stack_name, question.judges(row))


def _answer(question: Question, judge: str, row: Row, found: Any, folder: Path) -> Answer:
    answer = {"id": question.key(judge, row), **question.answer(judge, row, found)}
    keep(question.kept(folder), [answer])
    return answer
