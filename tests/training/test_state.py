"""The best validations are found from all of them."""

from ftkit.training.state import best_step, best_steps, num_without_improvement

LOSSES = {2: 0.5, 4: 0.3, 6: None, 8: 0.3, 10: 0.4}


def test_the_best_comes_first_and_of_equal_ones_the_earlier():
    assert best_steps(LOSSES, "loss") == (4, 8, 10, 2)
    assert best_steps(LOSSES, "accuracy") == (2, 10, 4, 8)


def test_validations_since_the_best_count_also_where_the_figure_was_not_finite():
    assert num_without_improvement(LOSSES, "loss") == 3
    assert num_without_improvement({2: None, 4: None}, "loss") == 2
    assert num_without_improvement({}, "loss") == 0
    assert best_step({2: None}, "loss") is None
