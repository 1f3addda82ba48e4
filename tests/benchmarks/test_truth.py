import pytest

from benchmarks import stacks, truth_table
from benchmarks.stacks import facts
from tests.benchmarks.stated_rows import STATED


def _pair(name, measured, predicted, group="g", dup=None):
    row = {
        "id": name,
        "group": group,
        "dup_group": dup,
        "confidence": "high",
        "value_bytes": measured,
        "metric_class": "allocated_peak",
        "model_id": "org/model",
        "method": "full",
        "micro_batch": 1,
        "seq_len": 8,
        "n_gpus": 1,
        "offload": "none",
        "source": {"repo": "org/repo", "file": "table.md"},
    }
    return row, {"id": name, "predicted_bytes": predicted, "versions": {}}


def _nothing(_):
    return None


def test_a_measurement_that_is_printed_twice_counts_once_and_with_its_worst_error():
    pairs = [_pair("a", 100, 101, dup="same"), _pair("b", 100, 103, dup="same"), _pair("c", 100, 90)]
    assert sorted(truth_table.counted_once(pairs)) == pytest.approx([0.03, 0.10])


def test_the_percentile_lies_between_the_neighbours_that_its_share_falls_between():
    assert truth_table.percentile([4.0, 0.0, 1.0, 3.0, 2.0], 0.95) == pytest.approx(3.8)
    assert truth_table.percentile([7.0], 0.95) == 7.0


def test_the_page_names_each_groups_worst_row_and_every_row_that_is_missing_with_its_reason():
    pairs = [_pair("a", 100, 101), _pair("b", 100, 80), _pair("c", 100, 100, group="h")]
    lost, _ = _pair("d", 100, 100)
    rows = [row for row, _ in pairs] + [lost]
    page = truth_table.page(rows, {row["id"]: found for row, found in pairs}, lambda _: "no such library", _nothing)
    assert "| g | 2 | max_memory_allocated | 10.50% | 19.05% | 20.00% | median, 95th percentile, worst | b |" in page
    assert "| over the groups, each by its worst row | 10.00% | 19.00% |" in page
    assert "| no such library | d |" in page


def test_a_row_of_which_a_deciding_fact_is_not_published_counts_for_no_group_and_has_the_fact_beside_it():
    pairs = [_pair("a", 100, 101), _pair("b", 100, 80)]
    found = {row["id"]: answer for row, answer in pairs}
    page = truth_table.page(
        [row for row, _ in pairs], found, _nothing, lambda row: "its length is open" if row["id"] == "b" else None
    )
    assert "| g | 1 | max_memory_allocated | 1.00% | 1.00% | 1.00% |" in page
    assert page.index("Of medium confidence") < page.index("| b |") < page.index("b: its length is open.")


@pytest.mark.parametrize(("fact", "is_open"), [({}, True), ({"n_gpus": 1}, False), ({"method": "full"}, False)])
def test_litgpts_adapters_on_several_gpus_leave_the_length_open_that_decides(fact, is_open):
    row = STATED | {"group": "litgpt/resource-tables", "seq_len": 1000, "n_gpus": 2} | fact
    assert (stacks.open_fact(row) is not None) is is_open
    assert stacks.open_fact(STATED) is None


def test_a_usual_sample_is_between_the_longest_and_a_later_one():
    row = STATED | {"seq_len": 1000, "n_gpus": 2}
    assert [tokens for tokens, _ in stacks.load("litgpt").iterations(row)] == [1000, 256, 500]


def test_a_row_of_a_stack_that_nobody_wrote_down_has_a_reason():
    assert "in Fortran" in stacks.reason_not_traced(STATED | {"framework": "in Fortran"})


def test_every_stack_says_its_groups_its_facts_its_exact_versions_and_reasons_without_its_libraries():
    assert stacks.names()
    for name in stacks.names():
        stack = stacks.load(name)
        assert all(pin.count("==") == 1 for pin in stack.REQUIREMENTS)
        assert stack.GROUPS
        assert stack.FACTS.keys() == facts.WORDS.keys()
        assert callable(stack.reason_not_traced)
        assert callable(stack.trace_row)


def test_the_page_sets_reserved_bytes_and_another_tools_error_beside_where_a_row_has_them():
    row, found = _pair("a", 1000, 1001)
    row |= {"extra_metrics": {"reserved_peak_bytes": 2000}, "their_prediction_bytes": 1028}
    page = truth_table.page([row], {"a": found | {"reserved_bytes": 2010}}, _nothing, _nothing)
    assert "| +0.10% | +0.50% | +2.80% |" in page
