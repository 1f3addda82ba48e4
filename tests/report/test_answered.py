"""The page and the terminal of one run show what it answered, its surest mistakes first, as text whatever they hold."""

import io

import numpy as np
import pytest
from rich.console import Console

from ftkit.records.answers import Answers, Shown, answers_file, as_lines
from ftkit.report import text
from ftkit.report.answered import answers_section, as_plain, mistakes
from ftkit.report.collect import Run
from ftkit.report.pages.page import html_page
from tests.report.test_scores import HOSTILE, scored

SHARES = np.array([[0.6, 0.4], [0.1, 0.9], [0.7, 0.3], [0.95, 0.05]])


def kept(folder, split, labels):
    labels = np.array(labels)
    shown = {
        place: Shown(f"{HOSTILE}\x1b[31m {place}", "a.csv, line 2") for place in np.flatnonzero(labels == 1).tolist()
    }
    answers = Answers(split, 1, "single", ("ham", HOSTILE), tuple("abcd"), labels, SHARES.argmax(axis=1), SHARES, shown)
    path = answers_file(folder, split)
    path.parent.mkdir(exist_ok=True)
    path.write_text(as_lines(answers), encoding="utf-8")


@pytest.fixture
def run(tmp_path):
    kept(tmp_path, "validation", [0, 1, 0, 0])
    kept(tmp_path, "test", [1, 0, 1, 1])
    return Run("single", scored("single").record, tmp_path)


def test_the_surest_mistakes_come_first(run):
    assert [one.confidence for one in mistakes(run)] == ["95.0 %", "70.0 %", "60.0 %"]
    assert [mistake["answer"] for mistake in as_plain(run)["mistakes"]] == ["ham"] * 3


def test_a_page_of_one_run_begins_with_its_scores_and_shows_hostile_texts_as_text(run):
    page = html_page([run])
    order = [page.index(f'id="{part}"') for part in ("answers", "calibration", "mistakes", "configurations")]
    assert order == sorted(order)
    assert HOSTILE not in page
    assert "always the same answer" in page
    assert 'data-chart="tradeoff"' not in page, "a point by itself"
    assert 'data-chart="prediction"' not in page


def test_the_terminal_shows_the_same_without_what_a_terminal_would_obey(run):
    out = io.StringIO()
    text.print_table([run], Console(file=out, width=300))
    said = out.getvalue()
    order = [said.index(part) for part in ("Accuracy", "Expected calibration error on the test split", "Method")]
    assert order == sorted(order), "what its owner looks for first"
    assert "The best threshold" in out.getvalue()
    assert "95.0 %: labelled" in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_answers_that_cannot_be_read_are_said_and_the_rest_is_shown(run):
    answers_file(run.folder, "test").write_text("{")
    with pytest.warns(UserWarning, match="damaged"):
        assert set(run.answers) == {"validation"}
    assert answers_section(run).labels


def test_of_many_classes_the_most_confused_pairs_are_shown():
    names = [f"class {number}" for number in range(21)]
    matrix = np.diag([5] * 21)
    matrix[3, 7] = 4
    record = scored("single").record
    (line,) = record.evaluations
    per_label = tuple(line.per_label[0].model_copy(update={"name": name}) for name in names)
    line = line.model_copy(update={"per_label": per_label, "confusion": matrix.tolist()})
    section = answers_section(Run("many", record.model_copy(update={"evaluations": (line,)})))
    assert (section.confusion, section.pairs) == ([], [("class 3", "class 7", "4")])
