"""What operators compute and move."""

import pytest
import torch

from ftkit.models.kernels.foreign import DispatchMode
from ftkit.observe.operators import op_key


class Keys(DispatchMode):
    """Keeps what each operator costs."""

    def __init__(self):
        super().__init__()
        self.keys = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.keys.append(op_key(func.__name__, args, out))
        return out


def flops_of(work):
    with Keys() as seen:
        work()
    return [flops for _, flops, _, _ in seen.keys if flops]


LEFT, RIGHT, TOTAL = torch.ones(5, 7), torch.ones(7, 3), torch.ones(5, 3)
MANY_LEFT, MANY_RIGHT, MANY_TOTAL = (one.expand(4, -1, -1).clone() for one in (LEFT, RIGHT, TOTAL))


@pytest.mark.parametrize(
    ("work", "products"),
    [
        pytest.param(lambda: LEFT @ RIGHT, 1, id="mm"),
        pytest.param(lambda: torch.addmm(TOTAL, LEFT, RIGHT), 1, id="addmm"),
        pytest.param(lambda: TOTAL.clone().addmm_(LEFT, RIGHT), 1, id="addmm_"),
        pytest.param(lambda: MANY_LEFT @ MANY_RIGHT, 4, id="bmm"),
        pytest.param(lambda: torch.baddbmm(MANY_TOTAL, MANY_LEFT, MANY_RIGHT), 4, id="baddbmm"),
        pytest.param(lambda: MANY_TOTAL.clone().baddbmm_(MANY_LEFT, MANY_RIGHT), 4, id="baddbmm_"),
    ],
)
def test_a_product_of_matrices_computes_as_much_where_it_is_added_and_where_that_is_done_in_place(work, products):
    assert flops_of(work) == [products * 2 * 5 * 7 * 3]


TOKENS, EXPERTS, WIDE, NARROW = 32, 4, 16, 8


@pytest.mark.parametrize(
    ("left", "right"),
    [
        pytest.param((TOKENS, WIDE), (EXPERTS, WIDE, NARROW), id="tokens by their expert's weights"),
        pytest.param((WIDE, TOKENS), (TOKENS, NARROW), id="the gradient of weights: a sum over an expert's tokens"),
        pytest.param((EXPERTS, NARROW, WIDE), (WIDE, TOKENS), id="an expert's weights by its tokens"),
    ],
)
def test_the_products_of_experts_compute_as_much_as_if_one_expert_had_all_tokens(left, right):
    tensors = torch.empty(left, device="meta"), torch.empty(right, device="meta")
    assert op_key("_grouped_mm.default", tensors, None)[1] == 2 * TOKENS * WIDE * NARROW


@pytest.mark.parametrize(
    ("work", "elements"),
    [
        pytest.param(lambda table, rows: torch.nn.functional.embedding(rows, table), 2 * 3 * 8, id="embedding"),
        pytest.param(lambda table, rows: table.index_select(0, rows), 2 * 3 * 8, id="index_select"),
        pytest.param(lambda table, rows: table[rows], 2 * 3 * 8, id="index"),
        pytest.param(lambda table, rows: table.gather(1, rows[:, None]), 2 * 3, id="gather"),
        pytest.param(lambda table, rows: table.index_fill_(0, rows, 0.0), 2 * 3 * 8, id="index_fill_"),
        pytest.param(lambda table, rows: table.index_fill_(1, rows, 0.0), 2 * 3 * 1000, id="index_fill_, columns"),
        pytest.param(lambda table, rows: table.index_add_(0, rows, torch.ones(3, 8)), 3 * 3 * 8, id="index_add_"),
    ],
)
def test_of_a_table_the_rows_that_are_asked_for_are_moved(work, elements):
    table, rows = torch.zeros(1000, 8), torch.tensor([5, 1, 7])
    with Keys() as seen:
        work(table, rows)
    assert [moved for *_, moved, _ in seen.keys][-1] == elements * table.itemsize + rows.nbytes
