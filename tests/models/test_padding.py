"""The side that a model may be padded on is found by running two sequences alone and together."""

import numpy as np
import pytest
import torch

from ftkit.config.tree import BatchConfig
from ftkit.data.arrays import TokenSplit
from ftkit.machine.process import ProcessContext
from ftkit.models.padding import find_side, tolerance_of, unequal_pairs
from tests.helpers import build, ragged_split, save_tiny_model

CPU = torch.device("cpu")


def of_lengths(*lengths):
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    return TokenSplit(np.full(offsets[-1], 7, np.int32), offsets, np.zeros(len(lengths), np.int64))


def pair_lengths(split, dtype=torch.float32, **cut):
    return [split.lengths[pair].tolist() for pair in unequal_pairs(split, BatchConfig(**cut), dtype)]


def test_the_pair_is_the_shortest_and_a_longer_one_that_fits_beside_it():
    split = of_lengths(9, 4, 120, 6, 400)
    assert pair_lengths(split, micro_batch_size=8) == [[4, 120]]  # 400 tokens would tell no more
    assert pair_lengths(split, micro_batch_tokens=20) == [[4, 9]]
    assert pair_lengths(of_lengths(300, 200), micro_batch_size=8) == [[200, 300]]
    assert pair_lengths(split, torch.bfloat16, micro_batch_size=8) == [[4, 120], [6, 120], [9, 120]]


def test_where_nothing_is_ever_padded_there_is_no_pair():
    split = of_lengths(9, 4, 6)
    assert pair_lengths(split, micro_batch_size=1) == []
    assert pair_lengths(split, micro_batch_tokens=11) == []  # two of 6 do not fit
    assert pair_lengths(of_lengths(5, 5, 5), micro_batch_size=8) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["bert", "qwen3", "mixtral"])
def test_rounding_is_not_taken_for_a_fault_in_any_precision(family, dtype, tmp_path):
    save_tiny_model(tmp_path, family)
    engine = build(["method.name=full"], tmp_path, dtype, ProcessContext())[1]
    assert found(engine, dtype).side == "right"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("reads", "side"), [("the last place", "left"), ("every place", None), ("the first", "right")])
def test_code_that_reads_padding_is_found_in_every_precision(reads, side, dtype):
    table = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    read = {
        "the last place": lambda out: out[:, -1],
        "every place": lambda out: out.mean(1),
        "the first": lambda out: out[:, 0],
    }
    split = ragged_split("sequence-classification")
    pairs = unequal_pairs(split, BatchConfig(micro_batch_size=8), dtype)

    def logits(micro_batch):
        return read[reads](table[micro_batch.input_ids])

    assert find_side(logits, split, pairs, 1, CPU, tolerance_of(dtype, 2)).side == side


def test_the_side_is_found_through_adapters_over_weights_in_4_bits(tmp_path):
    save_tiny_model(tmp_path, "llama")
    engine = build(["method.name=qlora"], tmp_path, torch.bfloat16, ProcessContext())[1]
    assert found(engine, torch.bfloat16).side == "right"


def found(engine, dtype):
    split = ragged_split("sequence-classification")
    pairs = unequal_pairs(split, BatchConfig(micro_batch_size=8), dtype)
    engine.model.eval()
    with torch.no_grad():
        return find_side(engine.logits, split, pairs, 1, CPU, tolerance_of(dtype, 2))


def test_logits_that_are_no_numbers_agree_with_nothing():
    split = ragged_split("sequence-classification")

    def broken(micro_batch):
        return torch.full((len(micro_batch.input_ids), 3), float("nan"))

    pairs = unequal_pairs(split, BatchConfig(micro_batch_size=8), torch.float32)
    assert find_side(broken, split, pairs, 1, CPU, 1e-6).side is None
