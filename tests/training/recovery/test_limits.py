"""After memory ran out, limits shrink step by step down to one sequence with every layer recomputed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftkit.config.recompute import Recompute
from ftkit.config.tree import BatchConfig
from ftkit.data.batching import cut
from ftkit.training.recovery.limits import Limits


def all_smaller(limits: Limits, longest: int) -> list[Limits]:
    smaller = limits.smaller(longest)
    return [] if smaller is None else [smaller, *all_smaller(smaller, longest)]


def test_micro_batches_shrink_first_and_then_more_layers_recompute():
    limits = Limits(BatchConfig(micro_batch_size=4), Recompute())
    assert [(step.batch.micro_batch_size, str(step.recompute)) for step in all_smaller(limits, 30)] == [
        (2, "none"), (1, "none"), (1, "cheap"), (1, "{cheap: 0.5, layer: 0.5}"), (1, "layer")
    ]  # fmt: skip


def test_a_limit_in_tokens_never_falls_below_the_longest_sequence():
    limits = Limits(BatchConfig(micro_batch_tokens=1000), Recompute(layer=1.0))
    assert [step.batch.token_limit for step in all_smaller(limits, 300)] == [500, 300]


def test_the_default_cut_shrinks_too():
    smaller = Limits(BatchConfig(), Recompute()).smaller(30)
    assert smaller.batch.token_limit == BatchConfig.default_micro_batch_tokens // 2


def test_limits_are_said_as_flags_that_train_takes():
    limits = Limits(BatchConfig(micro_batch_size=2), Recompute(layer=0.5))
    assert str(limits) == "--micro-batch-size 2 --set 'model.recompute={layer: 0.5}'"


@given(
    st.lists(st.integers(2, 200), min_size=1, max_size=60),
    st.integers(200, 5000),
    st.integers(1, 3),
)
def test_smaller_limits_cut_the_same_sequences(lengths, tokens, world_size):
    limits = Limits(BatchConfig(micro_batch_tokens=tokens), Recompute(layer=1.0))
    for smaller in all_smaller(limits, max(lengths)):
        ranks = cut(np.array(lengths), smaller.batch, world_size)
        assert sorted(place for rank in ranks for chunk in rank for place in chunk) == list(range(len(lengths)))
        assert len({len(rank) for rank in ranks}) == 1


@pytest.mark.parametrize("asked", [Recompute(), Recompute(layer=0.25), Recompute(cheap=1.0), Recompute(layer=0.5)])
def test_layers_only_keep_less_and_less(asked):
    tried = [step.recompute for step in all_smaller(Limits(BatchConfig(micro_batch_size=1), asked), 10)]
    savings = [one.saving for one in tried]
    assert savings == sorted(savings)
    assert all(later > asked.saving for later in savings)
    assert tried[-1] == Recompute(layer=1.0)
