"""Texts that are nearly the same as an earlier one: found without comparing all, as if all had been compared."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftkit.data.near.pairs import COMMON_LEAST, MOST_COMPARED, nearest
from ftkit.data.near.shingles import ROWS, shingles


def sets_of(texts):
    return shingles([pa.table({"first": pa.array(texts, pa.large_string())})])


def one_split(texts, least=0.8):
    return nearest(sets_of(texts), np.zeros(len(texts), np.int8), least)


def by_comparing_all(sets, splits, least):
    """Return whether a text that is near stands earlier in each split, bool [splits, N]."""
    elements = [set(sets.of(row).tolist()) for row in range(len(splits))]
    near = np.zeros((int(splits.max()) + 1, len(splits)), np.bool_)
    for row, own in enumerate(elements):
        for earlier, other in enumerate(elements[:row]):
            if own | other and len(own & other) >= least * len(own | other) - 1e-9:
                near[splits[earlier], row] = True
    return near


WORDS = st.lists(st.sampled_from("abcdefghijklmnopqrst"), max_size=30)


@st.composite
def edited_texts(draw):
    """Draw texts, many of them another one with a few words changed."""
    texts = draw(st.lists(WORDS, min_size=1, max_size=12))
    for _ in range(draw(st.integers(0, 12))):
        words = list(draw(st.sampled_from(texts)))
        for _ in range(draw(st.integers(0, 2)) if words else 0):
            words[draw(st.integers(0, len(words) - 1))] = draw(st.sampled_from("abz"))
        texts.append(words)
    return [" ".join(words) for words in draw(st.permutations(texts))]


@settings(max_examples=60, deadline=None)
@given(edited_texts(), st.sampled_from([0.5, 0.6, 0.75, 0.8, 0.9, 1.0]), st.data())
def test_what_is_found_is_what_a_comparison_of_all_texts_finds(texts, least, data):
    splits = np.sort(data.draw(st.lists(st.integers(0, 2), min_size=len(texts), max_size=len(texts)))).astype(np.int8)
    sets = sets_of(texts)
    found = nearest(sets, splits, least)
    assert found.is_whole.all()
    assert ((found.partner >= 0) == by_comparing_all(sets, splits, least)).all()
    for split, row in zip(*np.nonzero(found.partner >= 0), strict=True):
        partner = found.partner[split, row]
        one, other = set(sets.of(row).tolist()), set(sets.of(partner).tolist())
        assert partner < row
        assert splits[partner] == split
        assert found.similarity[split, row] == pytest.approx(len(one & other) / len(one | other))


def made(rng, count, num_words=40):
    return [" ".join(f"w{word}" for word in rng.integers(0, 2000, num_words)) for _ in range(count)]


def test_planted_texts_are_found_among_thousands_and_no_other():
    rng = np.random.default_rng(0)
    texts = made(rng, ROWS + 500)  # more than are looked at together
    planted = {
        len(texts) + place: int(source) for place, source in enumerate(rng.choice(len(texts), 50, replace=False))
    }
    texts += [texts[source].rsplit(" ", 1)[0] + " changed" for source in planted.values()]
    partner = one_split(texts).partner[0]
    assert {int(row): int(partner[row]) for row in np.flatnonzero(partner >= 0)} == planted


def test_texts_of_one_form_are_all_told_after_the_first_however_many_there_are():
    rng = np.random.default_rng(0)
    form = [f"w{word}" for word in range(60)]
    texts = [" ".join([*form[:30], f"number{row}", *form[31:]]) for row in range(3 * MOST_COMPARED)]
    found = one_split(texts + made(rng, len(texts)))
    assert (found.partner[0] >= 0).sum() == len(texts) - 1


def test_what_nearly_all_texts_say_does_not_make_them_alike():
    prompt = " ".join(f"say{word}" for word in range(100))
    texts = [f"{prompt} {text}" for text in made(np.random.default_rng(0), COMMON_LEAST, num_words=6)]
    assert (one_split(texts).partner < 0).all()
    assert (one_split(texts[:20]).partner >= 0).sum() == 19  # of so few nobody knows what is a form


def test_a_text_that_was_not_compared_with_all_is_not_called_whole():
    # Each has the one rare pair `x y` and words of its own, which are rarer still: too short to be told apart by them.
    texts = [f"x y a{row} b{row}" for row in range(MOST_COMPARED + 2)]
    found = one_split(texts, least=0.5)
    assert (found.partner < 0).all()
    assert not found.is_whole.any()


def test_no_texts_and_texts_without_words_are_near_to_nothing():
    assert one_split([]).partner.shape == (0, 0)
    assert (one_split(["", "...", " \n", ""]).partner < 0).all()
