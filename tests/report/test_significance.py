"""Differences have the interval and the p of scipy and statsmodels, and the interval covers the truth."""

import io

import numpy as np
import pytest
from rich.console import Console
from scipy import stats
from statsmodels.stats import contingency_tables
from statsmodels.stats.multitest import multipletests

from ftkit.records.answers import Answers, answers_file, as_lines
from ftkit.report import text
from ftkit.report.collect import Run
from ftkit.report.pages.page import html_page
from ftkit.report.significance import bootstrap, compare_groups, holm, mcnemar, sign_flips
from tests.report.test_scores import scored


@pytest.mark.parametrize(("first", "second"), [(0, 0), (3, 3), (1, 9), (40, 12), (700, 500)])
def test_mcnemar_is_the_exact_binomial_test_of_scipy(first, second):
    wanted = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("values", ["thirds", "numbers"])
def test_the_interval_and_the_sign_flips_are_those_of_scipy_within_the_error_of_the_draws(values):
    draw = np.random.default_rng(1)
    found = draw.choice([-1.0, -1 / 3, 0.0, 1 / 3, 1.0], size=200) if values == "thirds" else draw.standard_normal(200)
    found += 0.1
    wanted = stats.bootstrap((found,), np.mean, method="percentile", n_resamples=9999, rng=2).confidence_interval
    # A quantile of 10,000 draws is off by sqrt(0.025 * 0.975 / 10,000) / density: 0.027 deviations of the mean
    assert bootstrap(found) == pytest.approx(tuple(wanted), abs=6 * 0.027 * found.std() / 200**0.5)
    flipped = stats.permutation_test((found,), np.mean, permutation_type="samples", n_resamples=9999, rng=3).pvalue
    assert sign_flips(found) == pytest.approx(flipped, abs=6 * (flipped / 10_000) ** 0.5 + 1e-3)


def test_the_interval_covers_the_truth_in_ninety_five_of_a_hundred_simulated_test_sets():
    draw = np.random.default_rng(4)
    shares, num_trials = np.array([0.07, 0.83, 0.10]), 1000  # second alone right, alike, first alone right
    covered = 0
    for trial in range(num_trials):
        low, high = bootstrap(draw.choice([-1.0, 0.0, 1.0], size=400, p=shares), seed=trial)
        covered += low <= 0.03 <= high
    assert 0.93 <= covered / num_trials <= 0.97


@pytest.mark.parametrize("p_values", [[0.01, 0.04, 0.03], [0.9, 0.5], [0.02, 0.02, 0.001, 0.3, 0.04]])
def test_holm_corrects_as_statsmodels_does(p_values):
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist(), rel=1e-12)


def test_the_same_answers_have_the_p_of_statsmodels_and_the_interval_of_scipy(tmp_path):
    draw = np.random.default_rng(5)
    mine, theirs = draw.random(300) < 0.85, draw.random(300) < 0.75
    (found,) = compare_groups({"a": [run(tmp_path, "a", mine)], "b": [run(tmp_path, "b", theirs)]})
    table = [[int(((mine == x) & (theirs == y)).sum()) for y in (True, False)] for x in (True, False)]
    assert found.p == pytest.approx(contingency_tables.mcnemar(table, exact=True).pvalue, rel=1e-9)
    differences = mine.astype(float) - theirs
    wanted = stats.bootstrap((differences,), np.mean, method="percentile", n_resamples=9999, rng=6).confidence_interval
    within = 6 * 0.027 * differences.std() / 300**0.5  # as above; a mean of 300 texts moves by steps of 1/300 besides
    assert (found.low, found.high) == pytest.approx(tuple(wanted), abs=within + 1 / 300)


def run(folder, name, is_right, texts=None, seed=0, kind="single"):
    """A run that answered a question right or not."""
    is_right = np.asarray(is_right)
    labels = np.zeros(len(is_right), dtype=np.int64)
    answered = (~is_right.astype(bool)).astype(np.int64)
    if kind == "regression":
        labels, answered = labels.astype(float), is_right.astype(float)
    shares = None if kind == "regression" else np.stack([1 - answered, answered], axis=1).astype(float)
    texts = tuple(texts or (f"{place:016x}" for place in range(len(is_right))))
    path = answers_file(folder / name, "test")
    path.parent.mkdir(parents=True)
    path.write_text(as_lines(Answers("test", 1, kind, ("a", "b"), texts, labels, answered, shares, {})))
    record = scored("single").record
    config = {"method": {"name": name.partition("-")[0]}, "training": {"seed": seed}}
    return Run(name, record.model_copy(update={"run": record.run.model_copy(update={"config": config})}), folder / name)


def test_the_better_of_two_methods_is_named_with_its_interval_and_p(tmp_path):
    better = run(tmp_path, "lora", [1] * 90 + [0] * 10)
    worse = run(tmp_path, "full", [1] * 70 + [0] * 30)
    (found,) = compare_groups({"full": [worse], "LoRA": [better]})
    assert found.first == "LoRA"
    assert found.difference == pytest.approx(0.2)
    assert found.sentence().startswith("LoRA is better than full by 20.0 points (")
    assert "p < 0.001 on 100 texts" in found.sentence()
    assert "is better than" in html_page([worse, better])
    assert "is better than" in text.markdown([worse, better])
    assert '"difference": 0.2' in text.as_json([worse, better])


def test_methods_that_chance_may_set_apart_are_not_called_better(tmp_path):
    one, other = run(tmp_path, "a", [1] * 52 + [0] * 48), run(tmp_path, "b", [1] * 51 + [0] * 49)
    (found,) = compare_groups({"a": [one], "b": [other]})
    assert "a and b cannot be told apart" in found.sentence()
    assert "leaves 0 out" not in found.sentence()


def test_an_interval_without_0_beside_a_test_that_is_not_sure_is_explained(tmp_path):
    one, other = run(tmp_path, "a", [1] * 5 + [1] * 19), run(tmp_path, "b", [0] * 5 + [1] * 19)
    (found,) = compare_groups({"a": [one], "b": [other]})
    assert found.low > 0
    assert found.p == pytest.approx(2 * 0.5**5)  # McNemar's exact test: five texts, all for the same side
    assert found.sentence().endswith("on 24 texts; the interval leaves 0 out, but the test decides.")


def test_a_page_that_compares_methods_begins_with_the_comparison(tmp_path):
    page = html_page([run(tmp_path, "lora", [1] * 9 + [0]), run(tmp_path, "full", [1] * 7 + [0] * 3)])
    assert page.index('id="methods"') < page.index('id="configurations"')
    assert page.index('href="#methods"') < page.index('href="#configurations"')


def test_runs_are_paired_by_their_texts_in_whatever_order_and_the_rest_is_counted(tmp_path):
    one = run(tmp_path, "a", [1, 0, 1, 1], ["x", "y", "y", "only a"])
    other = run(tmp_path, "b", [0, 1, 0], ["y", "y", "x"])
    (found,) = compare_groups({"a": [one], "b": [other]})
    assert (found.num_texts, found.num_unpaired) == (3, 1)
    assert found.difference == pytest.approx(1 / 3)


def test_several_seeds_are_taken_together_and_several_methods_corrected(tmp_path):
    draw = np.random.default_rng(0)
    groups = {
        name: [run(tmp_path, f"{name}-{seed}", draw.random(300) < share, seed=seed) for seed in range(3)]
        for name, share in (("a", 0.9), ("b", 0.7), ("c", 0.69))
    }
    found = compare_groups(groups)
    assert len(found) == 3
    assert all("after Holm's correction" in one.sentence() for one in found)
    assert {(one.first, one.p < 0.05) for one in found if "a" in (one.first, one.second)} == {("a", True)}


def test_numbers_are_compared_by_how_far_they_are_off(tmp_path):
    near, far = run(tmp_path, "a", [0.1] * 30, kind="regression"), run(tmp_path, "b", [0.5] * 30, kind="regression")
    (found,) = compare_groups({"b": [far], "a": [near]})
    assert found.sentence().startswith("a is better than b by 0.4 of mean absolute error (")


def test_runs_of_other_texts_or_without_answers_are_not_compared(tmp_path):
    one, other = run(tmp_path, "a", [1, 0], ["x", "y"]), run(tmp_path, "b", [1, 0], ["v", "w"])
    assert compare_groups({"a": [one], "b": [other], "c": [scored("single")]}) == []


def test_the_terminal_tells_the_spread_over_seeds(tmp_path):
    out = io.StringIO()
    runs = [run(tmp_path, f"lora-{seed}", [1] * 9 + [0], seed=seed) for seed in range(2)]
    text.print_table(runs, Console(file=out, width=300))
    assert "mean ± standard deviation of 2 runs: Accuracy " in out.getvalue()
    out = io.StringIO()
    text.print_table(runs[:1], Console(file=out, width=300))
    assert "mean ±" not in out.getvalue()
