"""The page of a search."""

import itertools
import re

from ftkit.report.pages.tuned import Tried, coordinates, tuned_page


def tried(*values):
    return [
        Tried(number, {"optimizer.learning_rate": f"{0.001 * (number + 1)}"}, "complete", value, 1.0)
        for number, value in enumerate(values)
    ]


def test_marks_of_an_axis_are_not_written_over_one_another_and_both_ends_stay():
    axes, _ = coordinates(tried(0.6892, 0.638, 0.4736, 0.4682), "loss")
    texts, heights = zip(*axes[-1].marks, strict=True)
    assert set(texts) == {"0.6892", "0.638", "0.4682"}
    ordered = sorted(heights)
    assert all(below - above >= 13 for above, below in itertools.pairwise(ordered))


def test_one_value_of_an_axis_is_written_once():
    axes, _ = coordinates(tried(0.5, 0.5), "loss")
    assert [text for text, _ in axes[-1].marks] == ["0.5"]


def test_the_first_row_of_the_table_is_the_best():
    page = tuned_page(tried(0.7, 0.4, 0.5), {}, "loss", "a search")
    assert re.findall(r"<strong>(.*?)</strong>", page) == ["0.4000"]
