import pytest

from benchmarks import stacks, truth_table


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
    page = truth_table.page(rows, {row["id"]: found for row, found in pairs}, lambda _: "no such library")
    assert "| g | 2 | max_memory_allocated | 10.50% | 19.05% | 20.00% | b |" in page
    assert "| over the groups, each by its worst row | 10.00% | 19.00% |" in page
    assert "| no such library | d |" in page


def test_a_row_of_a_stack_that_nobody_wrote_down_has_a_reason():
    assert "not written down" in stacks.reason_not_traced({"group": "somebody/else", "framework": "in Fortran"})


def test_every_stack_says_its_groups_its_exact_versions_and_reasons_without_its_libraries():
    assert stacks.names()
    for name in stacks.names():
        stack = stacks.load(name)
        assert all(pin.count("==") == 1 for pin in stack.REQUIREMENTS)
        assert stack.GROUPS
        assert callable(stack.reason_not_traced)
        assert callable(stack.trace_row)


RUN = {
    "group": "somebody/else", "framework": "transformers Trainer", "framework_version": None, "n_gpus": 1,
    "parallel": "none", "offload": "none", "method": "lora", "lora_r": 8, "torch_compile": False,
    "grad_checkpointing": False, "fused_kernels": "none", "quant": None, "optimizer": "AdamW",
    "arch": {"arch_class": "LlamaForCausalLM", "vocab": 32000},
}  # fmt: skip


@pytest.mark.parametrize(
    ("fact", "reason"),
    [
        ({}, None),
        ({"method": "ia3"}, "method"),
        ({"method": "vera"}, "method"),
        ({"method": "oft"}, "method"),
        ({"method": "prompt tuning"}, "method"),
        ({"method": "dora"}, "method"),
        ({"lora_r": None}, "rank"),
        ({"method": "full"}, "full fine-tuning, and a rank"),
        ({"framework": "transformers Trainer, use_reentrant=True"}, "reentrant"),
        ({"framework_version": "torch 2.3.0, transformers 4.41.2"}, "transformers 4.41"),
        ({"quant": "GPTQ, groups of 32"}, "GPTQ, groups of 32"),
        ({"parallel": None}, "shared among devices"),
    ],
)
def test_a_row_whose_facts_are_not_those_that_would_be_traced_is_refused(fact, reason):
    said = stacks.reason_not_traced(RUN | fact)
    assert (said is None) if reason is None else (reason in said)


@pytest.mark.parametrize(
    ("fact", "reason"),
    [
        ({}, None),
        ({"lora_target_modules": "all-linear"}, "all-linear"),
        ({"method": "ia3"}, "method"),
        ({"quant": "GPTQ"}, "GPTQ"),
        ({"gpu": "a card of mine"}, "a card of mine"),
        ({"optimizer": "Lion"}, "Lion"),
    ],
)
def test_a_loop_written_by_hand_states_every_fact_or_is_refused(fact, reason):
    row = RUN | {
        "group": "canifinetune/rtx4080 transformers 5.8.1", "gpu": "RTX 4080 16 GB (15.99 GiB), Windows",
        "lora_target_modules": "q_proj v_proj", "optimizer": "torch.optim.AdamW, fp32 states",
    }  # fmt: skip
    said = stacks.reason_not_traced(row | fact)
    assert (said is None) if reason is None else (reason in said)


def test_the_page_sets_reserved_bytes_and_another_tools_error_beside_where_a_row_has_them():
    row, found = _pair("a", 1000, 1001)
    row |= {"extra_metrics": {"reserved_peak_bytes": 2000}, "their_prediction_bytes": 1028}
    page = truth_table.page([row], {"a": found | {"reserved_bytes": 2010}}, lambda _: None)
    assert "| +0.10% | +0.50% | +2.80% |" in page
