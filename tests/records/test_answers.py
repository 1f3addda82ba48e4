"""The answers of a run are read back as they were written, and refused where they are not whole."""

import numpy as np
import pytest

from ftkit.errors import DataError
from ftkit.records.answers import Answers, Shown, answers_file, as_lines, read_answers

HOSTILE = "</script>\u2028\r\n\x00 'text'"


def answers(kind):
    draw = np.random.default_rng(0)
    labels = {"single": draw.integers(0, 2, 5), "multi": draw.integers(0, 2, (5, 2)).astype(np.int8)}
    labels["regression"] = draw.standard_normal(5)
    shares = None if kind == "regression" else draw.random((5, 2))
    names = ("n",) if kind == "regression" else ("a", HOSTILE)
    texts = tuple(f"{place:016x}" for place in range(5))
    return Answers(
        "test", 3, kind, names, texts, labels[kind], labels[kind][::-1], shares, {2: Shown(HOSTILE, "a.csv")}
    )


@pytest.mark.parametrize("kind", ["single", "multi", "regression"])
def test_answers_are_read_back_to_the_last_digit(kind, tmp_path):
    wrote = answers(kind)
    path = answers_file(tmp_path, "test")
    path.parent.mkdir()
    path.write_text(as_lines(wrote), encoding="utf-8")
    read = read_answers(path)
    for field in ("labels", "answers", "probabilities"):
        one, other = getattr(read, field), getattr(wrote, field)
        assert (one is None) == (other is None)
        if one is not None:
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
    assert (read.split, read.step, read.names, read.texts, read.shown) == (
        "test",
        3,
        wrote.names,
        wrote.texts,
        wrote.shown,
    )


@pytest.mark.parametrize("content", ["", "{}", '{"split": "test"}\n{"text": ', "\x00"])
def test_a_file_of_answers_that_is_not_whole_is_named(content, tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"test\.jsonl.*damaged"):
        read_answers(path)
