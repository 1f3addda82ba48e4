"""Texts that are nearly the same stay in one of the splits that are made, where `data.near_duplicates` says so."""

import numpy as np
import pytest

from ftkit.config.files import load_config
from ftkit.config.tree import DataConfig
from ftkit.data.near.pairs import COMMON_LEAST, MOST_COMPARED
from ftkit.data.prepare import prepare_data
from ftkit.errors import ConfigError, DataError
from tests.made_tokenizers import word_piece

ORIGINALS = 40


def text(seed):
    return " ".join(f"w{word}" for word in np.random.default_rng(seed).integers(0, 500, 40))


@pytest.fixture
def reviews(tmp_path):
    """40 texts, and each of them twice more with another word behind it."""
    texts = [text(seed) + end for end in ("", " posted", " again") for seed in range(ORIGINALS)]
    lines = "".join(f"{one},{'bad' if number % 2 else 'good'}\n" for number, one in enumerate(texts))
    path = tmp_path / "reviews.csv"
    path.write_text("text,label\n" + lines)
    return path


def report(path, **settings):
    config = DataConfig(dataset=str(path), **settings)
    return prepare_data(config, "sequence-classification", word_piece(), 0, tells_near=True).report


def shared(told):
    return {(one.later, one.earlier) for one in told.near if one.later != one.earlier}


def test_near_texts_are_in_several_splits_unless_they_are_left_out(reviews):
    kept = report(reviews)
    assert shared(kept) == {("validation", "train"), ("test", "train"), ("test", "validation")}
    assert sum(kept.rows.values()) == 3 * ORIGINALS
    told = next(one for one in kept.near if one.later == "test").finding()
    assert told.cure.startswith("to leave the later ones out: --set data.near_duplicates=drop; or")

    # As the cure says it.
    cured = load_config(settings=[f"data.dataset={reviews}", told.cure.split("--set ")[1].split(";")[0]]).data
    made = prepare_data(cured, "sequence-classification", word_piece(), 0, tells_near=True).report
    assert (made.near, sum(made.rows.values()), made.dropped_near) == ((), ORIGINALS, 2 * ORIGINALS)
    assert f"left out: {2 * ORIGINALS} with nearly the text of an earlier row" in made.lines()


def test_a_refusal_says_how_many_were_left_out(reviews):
    with pytest.raises(DataError, match=r"\(left out: 80 rows nearly repeat one\)"):
        report(reviews, near_duplicates="drop", validation_share=0.01)


def test_a_text_is_left_out_by_the_similarity_that_is_set(reviews):
    # 40 pairs of words, and one more.
    assert report(reviews, near_duplicates="drop", near_duplicate_similarity=0.98).dropped_near == 0
    with pytest.raises(ConfigError, match="near_duplicates=drop needs a near_duplicate_similarity"):
        load_config(settings=["data.near_duplicates=drop", "data.near_duplicate_similarity=null"])


def test_a_form_that_texts_share_leaves_none_of_them_out(tmp_path):
    form = " ".join(f"say{word}" for word in range(100))
    texts = [f"{form} {text(seed)}" for seed in range(COMMON_LEAST)]
    near = [f"{one} posted" for one in texts[:10]]
    path = tmp_path / "forms.csv"
    path.write_text("text,label\n" + "".join(f"{one},{number % 2}\n" for number, one in enumerate([*texts, *near])))
    made = report(path, near_duplicates="drop")
    assert (made.dropped_near, sum(made.rows.values())) == (10, COMMON_LEAST)


def test_it_is_told_where_not_all_were_compared(tmp_path):
    # Each has the one rare pair `x y` and words of its own, which are rarer still.
    texts = [f"x y a{number} b{number}" for number in range(MOST_COMPARED + 2)]
    path = tmp_path / "rare.csv"
    path.write_text("text,label\n" + "".join(f"{one},{number % 2}\n" for number, one in enumerate(texts)))
    made = report(path, near_duplicates="drop", near_duplicate_similarity=0.5)
    assert made.dropped_near == 0
    assert any(line.startswith("note: many texts share the same rare pairs of words") for line in made.lines())
    assert not any("rare pairs" in line for line in report(path, near_duplicate_similarity=0.5).lines())
