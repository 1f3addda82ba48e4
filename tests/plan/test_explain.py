"""A plan says what it rests on, and what it says holds."""

import json

import pytest
from click.testing import CliRunner

from ftkit.cli import main
from ftkit.config.tree import DataConfig
from ftkit.models.methods.full import Full
from ftkit.models.methods.lora import Lora
from ftkit.plan.explain import explain
from ftkit.plan.inputs.target import find_target
from ftkit.plan.predict import predict_with_grounds
from ftkit.plan.tracing.trace import UntraceableModelError
from ftkit.report.planned.explained import explanation_lines
from tests.helpers import save_tiny_model
from tests.plan import models


def explained(family, gpu, method=None, **run):
    method = method or Lora(targets=("all-linear",))
    config = models.run_config(family, method, data=DataConfig(max_length=32), **run)
    grounds = predict_with_grounds(config, find_target(gpu), models.architecture(family))
    return grounds.prediction, explain(grounds)


@pytest.mark.parametrize("gpu", ["t4", "cpu"])
def test_the_groups_that_live_add_up_to_the_peak(gpu):
    prediction, explanation = explained("llama", gpu)
    assert sum(group.num_bytes for group in explanation.live) == prediction.peak_active_bytes
    for kind in ("parameter", "activation"):
        size = sum(group.num_bytes for group in explanation.live if group.kind == kind)
        assert size == getattr(prediction.peak_breakdown, f"{kind}_bytes")


def test_the_kernel_of_attention_is_named_with_the_reasons_against_those_before_it():
    _, old = explained("llama", "t4")
    (attention,) = old.attention
    assert (attention.layers, attention.kernel) == ((0, 1, 2, 3), "efficient")
    assert "key and value repeated for each" in attention.call  # it takes no groups
    assert attention.passed_over == {"flash": ("the card is older than Ampere",)}
    _, recent = explained("llama", "a100-40gb")
    assert [one.kernel for one in recent.attention] == ["flash"]
    assert "4 heads over 2 of the key" in recent.attention[0].call


def test_the_types_follow_the_precision():
    _, explanation = explained("llama", "t4", Full())  # whose `auto` is fp16
    types = {part.part: max(part.num_bytes, key=part.num_bytes.get) for part in explanation.parts}
    assert (types["trained weights"], types["masters"], types["moments"]) == ("float16", "float32", "float32")
    assert explanation.logits.dtype == "float32"  # a chunk of them, for its softmax


def test_a_step_that_was_not_traced_is_explained_without_tensors(monkeypatch):
    def refuse(*_, **__):
        raise UntraceableModelError("its code reads values")

    monkeypatch.setattr("ftkit.plan.predict.trace", refuse)
    _, explanation = explained("llama", "t4")
    assert explanation.live == explanation.attention == explanation.parts == ()
    assert "not traced" in "\n".join(explanation_lines(explanation))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "llama", "llama")


def planned(folder, *flags):
    arguments = ["--model", str(folder), "--task", "causal-lm", "--gpu", "t4", "--max-length", "64", "--json", *flags]
    done = CliRunner().invoke(main, ["plan", *arguments])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_each_change_is_a_flag_that_saves_what_it_says(folder):
    # Long ones, whose activations are more than the allocator's smallest segment.
    base = ("--micro-batch-tokens", "1024", "--max-length", "64")
    before = planned(folder, *base, "--explain")
    knobs = before["explanation"]["knobs"]
    assert knobs == sorted(knobs, key=lambda knob: -knob["saved_bytes"])
    offered = {tuple(knob["changes"]): knob for knob in knobs}  # of the cuts the largest, which lies between two others
    for knob in [offered["batch.micro_batch_tokens",], offered["model.recompute",]]:
        after = planned(folder, *base, *knob["flags"].split())
        assert before["peak_process_bytes"] - after["peak_process_bytes"] == knob["saved_bytes"]


def test_a_cut_that_the_plan_made_smaller_is_told_beside_the_changes(folder):
    roomy = planned(folder, "--explain")
    assert roomy["explanation"]["cut"] == "--micro-batch-tokens 4096"
    tight = planned(folder, "--memory-budget", "174MiB", "--explain")  # of which 141 are the context of a T4
    cut = tight["explanation"]["cut"].split()
    assert int(cut[1]) == 64 * tight["micro_batch_size"] < 2048
    assert planned(folder, *cut)["peak_process_bytes"] == tight["peak_process_bytes"]


def test_what_a_search_would_find_is_not_explained(folder):
    done = CliRunner().invoke(main, ["plan", "--model", str(folder), "--gpu", "t4", "--search", "--explain"])
    assert done.exit_code == 2
    assert "--search and --explain do not go together" in done.output
