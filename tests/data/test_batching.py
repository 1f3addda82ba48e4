import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftkit.config.tree import BatchConfig
from ftkit.data.batching import check_cut, collate, count_steps, cut, global_batches
from ftkit.errors import ConfigError
from tests.helpers import PADDING, ragged_split

lengths_of = st.lists(st.integers(1, 64), min_size=1, max_size=80).map(lambda values: np.array(values, dtype=np.int64))


@given(lengths=lengths_of, tokens=st.integers(64, 512), world_size=st.integers(1, 5))
def test_a_cut_by_tokens_keeps_every_sequence_once_within_the_limit_and_gives_each_rank_as_many(
    lengths, tokens, world_size
):
    ranks = cut(lengths, BatchConfig(micro_batch_tokens=tokens), world_size)
    assert len(ranks) == world_size
    assert len({len(rank) for rank in ranks}) == 1
    everything = np.concatenate([chunk for rank in ranks for chunk in rank])
    assert sorted(everything) == list(range(len(lengths)))
    for chunk in (chunk for rank in ranks for chunk in rank if len(chunk)):
        assert len(chunk) * lengths[chunk].max() <= tokens


@given(lengths=lengths_of, size=st.integers(1, 20), world_size=st.integers(1, 5))
def test_a_cut_by_sequences_keeps_every_sequence_once_within_the_limit_and_gives_each_rank_as_many(
    lengths, size, world_size
):
    ranks = cut(lengths, BatchConfig(micro_batch_size=size), world_size)
    assert len({len(rank) for rank in ranks}) == 1
    chunks = [chunk for rank in ranks for chunk in rank]
    assert sorted(np.concatenate(chunks)) == list(range(len(lengths)))
    assert max(len(chunk) for chunk in chunks) <= size


@given(lengths=lengths_of, tokens=st.integers(64, 512))
def test_a_cut_takes_as_few_micro_batches_as_greedy_packing_of_sorted_sequences(lengths, tokens):
    remaining, count = sorted(lengths, reverse=True), 0
    while remaining:
        remaining = remaining[max(1, tokens // remaining[0]) :]
        count += 1
    assert len(cut(lengths, BatchConfig(micro_batch_tokens=tokens), 1)[0]) == count


def test_sorting_inside_a_global_batch_leaves_little_padding():
    lengths = np.random.default_rng(0).integers(5, 100, size=128)
    chunks = cut(lengths, BatchConfig(micro_batch_tokens=1024), 1)[0]
    padded = sum(len(chunk) * lengths[chunk].max() for chunk in chunks)
    assert padded / lengths.sum() < 1.2


@given(
    num_samples=st.integers(1, 50),
    size=st.integers(1, 20),
    seed=st.integers(0, 3),
    epochs=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_each_epoch_draws_every_sequence_once_in_an_order_of_the_seed(num_samples, size, seed, epochs):
    num_steps = count_steps(num_samples, size, epochs, None)
    batches = list(global_batches(num_samples, size, seed, num_steps))
    assert [batch.step for batch in batches] == list(range(1, num_steps + 1))
    first = [batch for batch in batches if batch.epoch <= 1]
    if epochs >= 1:
        assert sorted(np.concatenate([batch.indices for batch in first])) == list(range(num_samples))
        assert first[-1].ends_epoch
    again = list(global_batches(num_samples, size, seed, num_steps))
    assert all((one.indices == other.indices).all() for one, other in zip(batches, again, strict=True))


def test_a_run_that_starts_later_draws_the_same_batches():
    whole = list(global_batches(23, 4, 5, 14))
    late = list(global_batches(23, 4, 5, 14, first=9))
    assert all((one.indices == other.indices).all() for one, other in zip(whole[8:], late, strict=True))


def test_another_seed_draws_another_order():
    one, other = (next(iter(global_batches(50, 50, seed, 1))).indices for seed in (0, 1))
    assert (one != other).any()


def test_a_sequence_longer_than_the_micro_batch_is_refused_with_both_numbers():
    with pytest.raises(ConfigError, match=r"micro_batch_tokens=64 .* 65 tokens"):
        check_cut(BatchConfig(micro_batch_tokens=64), 65)
    check_cut(BatchConfig(micro_batch_tokens=64), 64)
    check_cut(BatchConfig(micro_batch_size=1), 10**6)


def test_collate_pads_on_the_right_and_puts_labels_where_the_targets_are():
    split = ragged_split("causal-lm")
    rows = np.array([3, 0, 7])
    batch = collate(split, rows, PADDING, torch.device("cpu"))
    width = int(split.lengths[rows].max())
    assert batch.input_ids.shape == batch.labels.shape == batch.attention_mask.shape == (3, width)
    for place, row in enumerate(rows):
        start, length = split.offsets[row], split.lengths[row]
        tokens = torch.as_tensor(split.tokens[start : start + length], dtype=torch.int64)
        targets = torch.as_tensor(split.labels[start : start + length])
        assert (batch.input_ids[place, :length] == tokens).all()
        assert (batch.input_ids[place, length:] == 1).all()
        assert batch.attention_mask[place].sum() == length
        assert (batch.labels[place, :length][targets] == tokens[targets]).all()
        assert (batch.labels[place, :length][~targets] == -100).all()
        assert (batch.labels[place, length:] == -100).all()


def test_collate_gives_no_mask_where_nothing_is_padded():
    split = ragged_split("sequence-classification")
    assert collate(split, np.array([2]), PADDING, torch.device("cpu")).attention_mask is None


@pytest.mark.parametrize("task", ["sequence-classification", "causal-lm"])
def test_an_empty_share_becomes_a_sequence_without_loss(task):
    batch = collate(ragged_split(task), np.array([], dtype=np.int64), PADDING, torch.device("cpu"))
    assert len(batch.input_ids) == 1
    assert (batch.labels == -100).all()


def test_a_step_of_fewer_sequences_than_ranks_gives_every_rank_one_micro_batch():
    ranks = cut(np.array([9, 4]), BatchConfig(), 3)
    assert [len(rank) for rank in ranks] == [1, 1, 1]
    assert sorted(len(rank[0]) for rank in ranks) == [0, 1, 1]
