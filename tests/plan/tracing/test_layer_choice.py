"""Which layers are traced: one of every kind, whatever tells the kinds apart."""

import pytest
import torch
from transformers import AutoConfig

from ftkit.config.tree import DataConfig, ModelConfig, RunConfig
from ftkit.errors import ModelError
from ftkit.models.build import build_empty_model
from ftkit.models.methods.full import Full
from ftkit.models.methods.lora import Lora
from ftkit.plan.inputs.target import find_target
from ftkit.plan.predict import predict
from ftkit.plan.tracing.layer_choice import choose_layers

SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "pad_token_id": 0}
DENSE_FIRST = {
    "num_hidden_layers": 12, "num_key_value_heads": 2, "first_k_dense_replace": 3, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16, "kv_lora_rank": 8,
    "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
}  # fmt: skip


def run(task="causal-lm", method=None, **model):
    return RunConfig(
        task=task,
        model=ModelConfig(name="x", **model),
        method=method or Full(),
        data=DataConfig(max_length=16),
    )


def architecture(kind, **fields):
    return AutoConfig.for_model(kind, **SMALL | fields, use_cache=False)


@pytest.mark.parametrize(
    ("kind", "fields", "is_whole"),
    [
        ("llama", {"num_hidden_layers": 12, "num_key_value_heads": 2}, False),
        ("gemma3_text", {"num_hidden_layers": 12, "num_key_value_heads": 2, "head_dim": 16}, False),
        ("deepseek_v3", DENSE_FIRST, False),  # its code counts the dense layers from the first
        ("mamba", {"num_hidden_layers": 12, "state_size": 4}, False),  # works out the types of its layers itself
    ],
)
def test_a_plan_counts_the_weights_that_the_model_has(kind, fields, is_whole):
    deep = architecture(kind, **fields)
    prediction = predict(run(), find_target("a100-40gb"), deep)

    chosen = choose_layers(run(), deep)
    assert (len(chosen.kept) == deep.num_hidden_layers) is is_whole
    assert prediction.num_parameters == sum(
        parameter.numel() for parameter in build_empty_model(run(), deep, torch.bfloat16).parameters()
    )


def test_lists_in_a_configuration_tell_layers_apart_and_are_shortened_with_them():
    without = [1, 1, 0, 1] * 3
    deep = architecture("smollm3", num_hidden_layers=12, num_key_value_heads=2, no_rope_layers=without)
    chosen = choose_layers(run(), deep)

    assert chosen.architecture.no_rope_layers == [without[number] for number in chosen.kept]
    assert set(chosen.architecture.no_rope_layers) == {0, 1}


def test_modules_that_peft_refuses_are_named():
    with pytest.raises(ModelError, match=r"PEFT refuses method\.targets: .*out_proj"):
        predict(run(method=Lora()), find_target("t4"), architecture("mamba", num_hidden_layers=2, state_size=4))


def test_adapters_on_some_layers_are_named_by_the_places_of_those_layers_in_the_shallow_model():
    deep = architecture("llama", num_hidden_layers=12, num_key_value_heads=2)
    chosen = choose_layers(run(method=Lora(layers=(10, 11))), deep)

    method = chosen.config.method
    assert isinstance(method, Lora)
    assert method.layers is not None
    adapted = [number for place, number in enumerate(chosen.kept) if place in method.layers]
    assert adapted == [10, 11]
    assert len(chosen.kept) < 12


def test_a_model_that_transformers_has_not_for_a_task_is_refused():
    with pytest.raises(ModelError, match="no albert model for causal-lm"):
        predict(run(), find_target("t4"), architecture("albert"))


def test_a_model_whose_own_code_computes_in_fp32_alone_says_so():
    fields = {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64}
    deep = AutoConfig.for_model("xlnet", vocab_size=64, pad_token_id=0, use_cache=False, **fields)
    with pytest.raises(ModelError, match=r"XLNetLMHeadModel does not compute in bfloat16 .*--precision fp32"):
        predict(run(precision="bf16"), find_target("a100-40gb"), deep)
    assert predict(run(precision="fp32"), find_target("a100-40gb"), deep).fits
