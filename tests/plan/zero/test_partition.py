"""The numbers that stages compute with."""

import pytest

from ftkit.engine.ds_config import Sizes
from ftkit.observe.tape import Birth, Role, Tape
from ftkit.plan.zero.heap import FP32
from ftkit.plan.zero.partition import Partition
from ftkit.step.observer import Phase


def partition(shapes, ranks):
    tape = Tape()
    for shape in shapes:
        rows, columns = (*shape, 1)[:2]
        tape.add(Birth(FP32 * rows * columns, Phase.LOAD, 0, 0, "", None, role=Role.TRAINABLE, shape=shape))
    return Partition(tape, {"zero_optimization": {"stage": 2}}, FP32, ranks, Sizes(0, 0, 0), "cpu")


@pytest.mark.parametrize(
    ("shapes", "ranks", "touched"),
    [
        # The first rank owns 50 of the table's 60; the second has its other 10, and all that comes behind it.
        ([(6, 10), (2, 10), (2, 10)], 2, 100),
        ([(5, 10), (3, 10), (2, 10)], 2, 50),  # the cut lies between two tensors
        ([(6, 10), (4, 10)], 4, 100),  # the third rank, from 50 to 75, has a part of both
        ([(6, 10), (4, 10), (8,)], 2, 108),  # what does not decay is a group of its own, cut by itself
    ],
)
def test_a_rank_touches_each_tensor_that_its_part_begins_ends_or_lies_in(shapes, ranks, touched):
    assert partition(shapes, ranks).touched == touched
