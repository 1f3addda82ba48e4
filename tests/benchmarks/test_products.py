"""The bare matrix products of a step: what is collected, what runs again, and which line an operator belongs to."""

import torch

from benchmarks.products import Products, kind, run_all


def test_products_run_again_on_operands_of_their_own():
    weight, x = torch.ones(4, 3), torch.ones(2, 3)
    with Products() as products:
        total = (x @ weight.T).relu().sum()
    assert len(products.found) == 1
    (product,) = products.found
    again = product.args
    assert [(one.shape, one.stride()) for one in again] == [((2, 3), (3, 1)), ((3, 4), (1, 3))]
    run_all(products.found)
    assert total == 24
    assert weight.eq(1).all()


def test_a_product_with_a_side_of_the_rank_is_told_from_the_others():
    assert kind("aten::mm", [[400, 384], [384, 8]]) == "products of rank 8"
    assert kind("aten::addmm", [[1536], [400, 384], [384, 1536], [], []]) == "products of the layers"
    assert kind("aten::bmm", [[12, 32, 32], [12, 32, 32]]) == "products of attention"
    assert kind("aten::copy_", [[4], [4]]) == "copy_"
