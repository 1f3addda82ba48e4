"""Vectors in 8 bits: how far off, how large, and what is refused."""

import pytest
import torch

from ftkit.errors import ModelError
from ftkit.models.trunk.rows import BLOCK, KeptRows, Rows, read_dtype, row_bytes

NUM, WIDTH = 6, 100  # a block that is whole, and one that is not


def kept(given_RD):
    rows = Rows(len(given_RD), WIDTH, torch.int8)
    rows.put(0, given_RD[:2])
    rows.put(2, given_RD[2:])
    return KeptRows(rows.tensors())


def test_eight_bits_are_off_by_half_a_step_of_their_block_at_most_and_bf16_rounds_once_more():
    given = torch.randn(NUM, WIDTH, generator=torch.Generator().manual_seed(1))
    found = kept(given)[0:NUM]
    assert found.dtype == read_dtype(torch.int8)
    for start in range(0, WIDTH, BLOCK):
        block = given[:, start : start + BLOCK]
        largest = block.abs().amax(dim=1, keepdim=True)
        # Half of a 127th, and 8 bits of mantissa: half of a 128th of what is rounded.
        assert ((found[:, start : start + BLOCK] - block).abs() <= largest * (0.5 / 127 + 1 / 256)).all()


def test_one_huge_element_coarsens_no_block_but_its_own():
    given = torch.randn(NUM, WIDTH, generator=torch.Generator().manual_seed(1))
    huge = given.clone()
    huge[:, 3] = 1e4
    assert torch.equal(kept(huge)[0:NUM][:, BLOCK:], kept(given)[0:NUM][:, BLOCK:])
    assert (kept(huge)[0:NUM][:, 3] - 1e4).abs().max() <= 1e4 / 256


def test_what_was_lost_is_counted():
    given = torch.randn(NUM, WIDTH, generator=torch.Generator().manual_seed(1))
    rows = kept(given)
    missed, whole = rows.squares.tolist()
    assert whole == pytest.approx(given.double().square().sum().item())
    assert 0 < (missed / whole) ** 0.5 < 0.5 / 127 * 3  # the largest of 64 normal draws is about 2.4 of their scatter


def test_zeros_stay_zeros_and_nothing_is_counted_as_lost():
    rows = kept(torch.zeros(NUM, WIDTH))
    assert (rows[0:NUM] == 0).all()
    assert rows.squares.tolist() == [0, 0]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(wrong):
    given = torch.ones(NUM, WIDTH)
    given[4, 7] = wrong
    with pytest.raises(ModelError, match="not finite"):
        kept(given)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float16, torch.float32])
def test_a_vector_takes_the_bytes_that_are_planned(dtype):
    rows = Rows(NUM, WIDTH, dtype)
    rows.put(0, torch.ones(NUM, WIDTH))
    in_rows = [one.nbytes for name, one in rows.tensors().items() if name != "error"]
    assert sum(in_rows) == NUM * row_bytes(WIDTH, dtype)
