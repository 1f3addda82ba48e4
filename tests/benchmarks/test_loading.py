"""Loading onto a card: other tensors pass through the allocator than those that stay."""

import pytest

from benchmarks.stacks import hf_any, loops, stated
from tests.benchmarks.stated_rows import PACKED, STATED

GROUPS = ("fitcheck/t4 transformers 5.0.0", "canifinetune/rtx4080 transformers 5.8.1")
ON_THE_CARD = {"framework": f"{STATED['framework']}; {loops.PACKED}"}
HIDDEN, INTERMEDIATE = STATED["arch"]["hidden"], STATED["arch"]["intermediate"]


@pytest.fixture(scope="module")
def tapes():
    """Tapes of a row with 4-bit weights: read onto the card, and as if they had been there packed."""
    row = STATED | PACKED | {"arch": STATED["arch"] | {"layers": 1}}
    return hf_any.trace_row(row | ON_THE_CARD), hf_any.trace_row(row)


def loaded(tape):
    """The births of a tape up to the end of loading."""
    return [tape.births[storage] for storage, is_birth, _ in tape.walk(0, tape.marks[0][0]) if is_birth]


def test_loading_leaves_the_tensors_that_are_there_without_it(tapes):
    after, without = (tape.at_marks()[0][1] for tape in tapes)
    assert after == without
    assert tapes[0].peak_bytes() == tapes[1].peak_bytes()


def test_loading_begins_with_one_block_as_large_as_all_weights_packed_or_in_half_precision(tapes):
    births = loaded(tapes[0])
    layer = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * HIDDEN // 2 + 3 * HIDDEN * INTERMEDIATE  # four heads, two of keys
    embedding_and_head, norms = 2 * STATED["arch"]["vocab"] * HIDDEN, 3 * HIDDEN
    assert births[0].size == layer // 2 + 2 * (embedding_and_head + norms)


def test_each_weight_comes_in_half_precision_before_it_is_packed_or_widened(tapes):
    births = loaded(tapes[0])
    halves = [birth.shape for birth in births[1:] if birth.dtype == "bfloat16"]
    assert halves.count((INTERMEDIATE, HIDDEN)) == 2  # gate and up
    assert halves.count((STATED["arch"]["vocab"], HIDDEN)) == 2  # head and embedding
    packed = [place for place, birth in enumerate(births) if birth.module.endswith("down_proj.weight")]
    assert births[packed[0] - 1].shape == (HIDDEN, INTERMEDIATE)
    assert all(birth.dtype != "bfloat16" for birth in loaded(tapes[1]))


@pytest.mark.parametrize("group", GROUPS)
def test_the_loops_that_were_read_pack_weights_on_the_card(group):
    assert stated.loads_onto_card(loops.completed(STATED | PACKED | {"group": group}))
    assert not stated.loads_onto_card(loops.completed(STATED | {"group": group}))
    assert not stated.loads_onto_card(STATED | PACKED)
