"""The set of a text: each word with the one before it."""

import pyarrow as pa

from ftkit.data.near.shingles import shingles


def sets(*texts):
    found = shingles([pa.table({"first": pa.array(texts, pa.large_string())})])
    return [frozenset(found.of(row).tolist()) for row in range(len(texts))]


def test_case_and_punctuation_make_no_difference_and_the_order_of_words_does():
    one, same, other = sets("The cat, the dog.", "the CAT -- the_dog", "the dog the cat")
    assert one == same
    assert len(one) == 4
    assert one != other


def test_a_text_of_one_word_has_one_pair_and_a_text_without_words_none():
    one, same, none = sets("Good!", "good", "?! ...")
    assert one == same
    assert len(one) == 1
    assert none == frozenset()


def test_where_words_are_written_without_spaces_each_character_is_one():
    one, other = sets("今日は天気がいいです。", "今日は天気が悪いです")
    assert len(one) == 10
    assert len(one & other) == 8
    (thai,) = sets("สวัสดี hello")
    assert len(thai) > 2


def test_both_texts_of_a_row_and_all_messages_of_a_chat_count():
    pair = pa.table({"first": pa.array(["a b"], pa.large_string()), "second": pa.array(["c d"], pa.large_string())})
    chat = pa.table({"first": [[{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c d"}]]})
    both = shingles([pair, chat])
    assert both.sizes.tolist() == [4, 4]
    assert both.of(0).tolist() == both.of(1).tolist()


def test_a_text_that_repeats_itself_for_long_is_a_small_set():
    assert [len(one) for one in sets("again and again " * 100_000)] == [4]
