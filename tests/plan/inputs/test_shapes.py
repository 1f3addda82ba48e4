"""How the data is cut, at worst and usually."""

import numpy as np
import pytest

from ftkit.config.tree import BatchConfig, RunConfig
from ftkit.data.batching import cut
from ftkit.plan.inputs.shapes import (
    Sequences,
    Usual,
    fresh_shapes,
    fresh_share,
    largest_drawn,
    packed_rows,
    padded_rows,
    plan_shape,
    usual_step,
)

CONFIG = RunConfig(batch=BatchConfig(global_batch_size=32, micro_batch_tokens=512))


def data(lengths, longest=128):
    return Sequences(len(lengths), longest, are_equal=False, lengths=tuple(lengths))


def test_a_usual_step_has_the_micro_batches_that_the_cut_makes_of_the_data():
    lengths = np.random.default_rng(1).integers(5, 63, 32)  # no more than one global batch, so each draw is the same
    chunks = [lengths[chunk] for chunk in cut(lengths, CONFIG.batch, 1)[0]]
    found = usual_step(CONFIG, 1, data(lengths.tolist()))
    assert found.num_micro_batches == len(chunks)
    assert found.sequences == 32 / len(chunks)
    assert found.tokens == pytest.approx(sum(len(one) * one.max() for one in chunks) / len(chunks))


def test_without_padding_a_usual_step_has_its_tokens_and_few_shapes():
    ragged = data(np.random.default_rng(1).integers(5, 63, 4096).tolist())
    padded, packed = (usual_step(CONFIG, 1, ragged, rows) for rows in (padded_rows, packed_rows))
    assert packed.num_micro_batches == padded.num_micro_batches
    assert packed.tokens < padded.tokens
    assert (packed.scores, packed.places) == (padded.scores, padded.places)
    many, few = (fresh_shapes(CONFIG, 1, ragged, 1000, 10_000, rows) for rows in (padded_rows, packed_rows))
    assert few < many / 2


def test_without_padding_the_largest_micro_batch_has_its_tokens_and_is_laid_out_to_its_places():
    lengths = np.random.default_rng(1).integers(5, 63, 32)  # no more than one global batch, so each draw is the same
    chunks = [lengths[chunk] for chunk in cut(lengths, CONFIG.batch, 1)[0]]
    found = largest_drawn(CONFIG, 1, data(lengths.tolist()), None, packed_rows)
    rows = max(packed_rows(one) for one in chunks)
    places, scores = (max(len(one) * one.max() ** power for one in chunks) for power in (1, 2))
    assert found == (rows, places, scores)
    assert rows < places


def test_ranks_share_the_micro_batches_of_a_usual_step():
    assert usual_step(CONFIG, 2, data([32] * 100)) == Usual(
        1, sequences=16, tokens=16 * 32, places=16 * 32, scores=16 * 32**2
    )


def test_a_usual_step_is_the_worst_one_where_no_lengths_are_known():
    unknown = Sequences.unseen(CONFIG, 1000)
    shape = plan_shape(CONFIG, 1, unknown)
    tokens = shape.batch * shape.length
    assert usual_step(CONFIG, 1, unknown) == Usual(
        shape.num_micro_batches, shape.batch, tokens, tokens, scores=tokens * shape.length
    )


def test_a_usual_step_has_a_whole_global_batch_where_fewer_lengths_than_that_are_kept():
    config = RunConfig(batch=BatchConfig(global_batch_size=4096, micro_batch_tokens=512))
    kept = Sequences(4097, 128, are_equal=False, lengths=(32,) * 2049)
    assert usual_step(config, 1, kept) == Usual(4096 * 32 / 512, sequences=16, tokens=512, places=512, scores=512 * 32)


def test_a_shape_is_new_once_while_it_stays_known_and_each_time_where_none_does():
    alike, ragged = data([32] * 100), data(np.random.default_rng(1).integers(5, 63, 400).tolist())
    assert fresh_shapes(CONFIG, 1, alike, num_steps=1000, num_kept=1) == 1
    met = usual_step(CONFIG, 1, ragged).num_micro_batches * 1000
    kept, forgotten = (fresh_shapes(CONFIG, 1, ragged, num_steps=1000, num_kept=number) for number in (10_000, 1))
    assert 1 < kept < met / 2
    assert forgotten == pytest.approx(met, rel=0.1)  # on average two micro-batches of a step differ
    assert fresh_shapes(CONFIG, 1, Sequences.unseen(CONFIG, 1000), num_steps=1000, num_kept=1) == 1


def test_the_first_steps_meet_more_new_shapes_than_later_ones():
    ragged = data(np.random.default_rng(1).integers(5, 63, 400).tolist())
    few, more = (fresh_shapes(CONFIG, 1, ragged, num_steps=number, num_kept=10_000) for number in (10, 20))
    assert few < more < 2 * few


def test_texts_of_an_evaluation_that_are_alike_have_one_shape_and_ragged_ones_many():
    ragged = data(np.random.default_rng(1).integers(5, 63, 4096).tolist())
    assert fresh_share(CONFIG, 1, Sequences.unseen(CONFIG, 1000)) == 0
    assert fresh_share(CONFIG, 1, data([32] * 100)) == 1 / (1024 * 32 / 512)  # 16 sequences in each micro-batch
    assert 0.25 < fresh_share(CONFIG, 1, ragged) <= 1
