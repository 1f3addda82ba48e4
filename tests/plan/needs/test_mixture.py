"""Mixtures of experts whose router is made to share tokens out evenly, and to send all to the same experts."""

from types import SimpleNamespace

import torch
from transformers.models.mixtral import modeling_mixtral

from ftkit.config.tree import ModelConfig, RunConfig
from ftkit.data.batching import Shape
from ftkit.machine.hardware import find_gpu
from ftkit.models.methods.full import Full
from ftkit.plan.inputs.target import Target
from ftkit.plan.needs.fallback import activation_bytes
from ftkit.plan.needs.mixture import find_mixture, routing_words
from ftkit.plan.predict import predict
from ftkit.plan.predicted import FormulaPrediction
from ftkit.plan.tracing.trace import trace
from ftkit.records.schema import Verdict
from tests.plan import models

SIZES = Shape(2, 32, 1)
CHOSEN, EXPERTS = 2, 4


def routed(monkeypatch, places):
    """Send the tokens of every layer to the experts that `places` says, [T] to [T, k]."""
    seen = []
    original = modeling_mixtral.MixtralTopKRouter.forward

    def forward(self, hidden_states):
        logits, scores, indices = original(self, hidden_states)
        chosen = places(indices.shape[0]).to(indices.dtype)
        seen.append(torch.bincount(chosen.flatten(), minlength=EXPERTS).tolist())
        return logits, scores, chosen

    monkeypatch.setattr(modeling_mixtral.MixtralTopKRouter, "forward", forward)
    return seen


def balanced(num_tokens):
    return (torch.arange(num_tokens * CHOSEN) % EXPERTS).view(num_tokens, CHOSEN)


def collapsed(num_tokens):
    return torch.arange(CHOSEN).expand(num_tokens, CHOSEN)


def run_of():
    model = ModelConfig(name="mixtral", recompute="none")
    return RunConfig(task="causal-lm", model=model, method=Full())


def mixture(implementation=None):
    _, architecture = models.other("mixtral")
    architecture._experts_implementation = implementation
    return architecture


def measured(monkeypatch, places, architecture):
    """Return the tape of a real step on the CPU, and how many rows each expert had in each forward."""
    with monkeypatch.context() as patch:
        seen = routed(patch, places)
        return models.measure(run_of(), architecture, torch.bfloat16, SIZES), seen


def test_a_mixtures_plan_is_what_a_real_step_holds_in_balance_and_in_the_worst_case(monkeypatch):
    planned = trace(run_of(), mixture(), torch.bfloat16, SIZES, device_type="cpu")
    rows = SIZES.batch * SIZES.length
    for places, counts in ((balanced, [rows // 2] * 4), (collapsed, [rows, rows, 0, 0])):
        real, seen = measured(monkeypatch, places, mixture())
        assert set(map(tuple, seen)) == {tuple(counts)}
        assert planned.peak_bytes() == real.peak_bytes()
        assert planned.at_marks() == real.at_marks()


def test_where_one_expert_computes_after_another_the_worst_case_holds_more_and_no_more_than_the_range(monkeypatch):
    wide = mixture("eager")
    wide.intermediate_size = 256  # so that the peak is among the experts, and not at the end of a backward
    even, uneven = (measured(monkeypatch, places, wide)[0].peak_bytes() for places in (balanced, collapsed))
    most = find_mixture(wide).uneven_values(SIZES.batch * SIZES.length) * torch.bfloat16.itemsize
    assert 0 < uneven - even <= most


def predicted(architecture, memory_bytes=None):
    gpu = find_gpu("a100-40gb")
    config = run_of().model_copy(update={"data": run_of().data.model_copy(update={"max_length": 32})})
    return predict(config, Target(gpu.name, "cuda", gpu, memory_bytes or gpu.memory_bytes), architecture)


def test_a_mixture_whose_sizes_depend_on_the_routing_may_not_fit_where_balance_alone_does():
    architecture = mixture("eager")
    found = predicted(architecture)
    assert isinstance(found, FormulaPrediction)
    assert found.verdict is Verdict.FITS
    num_tokens = found.micro_batch_size * found.sequence_length
    uneven = find_mixture(architecture).uneven_values(num_tokens) * torch.bfloat16.itemsize
    assert uneven > 0
    needed = int(found.peak_active_bytes * 1.025) + found.context_bytes
    tight = predicted(architecture, needed + uneven // 2)
    assert tight.verdict is Verdict.MAY_NOT_FIT
    assert "tokens that all go to the same experts" in tight.verdict_by
    assert tight.process_high_bytes - int(tight.peak_active_bytes * 1.075) - tight.context_bytes == uneven


def test_the_experts_of_a_layer_are_found_by_the_names_that_types_have_for_them():
    names = {"hidden_size": 64, "n_routed_experts": 8, "moe_topk": 2, "expert_ffn_hidden_size": 32}
    found = find_mixture(SimpleNamespace(**names))
    assert (found.num_experts, found.num_chosen, found.hidden, found.inner) == (8, 2, 64, 32)
    assert find_mixture(models.architecture("llama")) is None
    assert find_mixture(SimpleNamespace(**names | {"n_routed_experts": 1})) is None


def test_a_formulas_mixture_keeps_what_its_chosen_experts_keep():
    dense = SimpleNamespace(hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=128)
    sparse = SimpleNamespace(**vars(dense), num_local_experts=4, num_experts_per_tok=2)
    recompute = run_of().model.recompute
    more = activation_bytes(sparse, 2, 32, 2, recompute) - activation_bytes(dense, 2, 32, 2, recompute)
    assert more == 64 * (2 * (2 * 64 + 4 * 128) * 2 - 19 * 64)


def test_a_plan_says_whether_its_peak_depends_on_the_routing():
    found = find_mixture(mixture())
    assert routing_words(found, None).startswith("4, 2 for each token; no size depends on the routing")
    assert "has 2.00 KiB more for all tokens at the same 2" in routing_words(found, 2048)
