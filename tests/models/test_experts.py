"""Experts in 4 bits compute what whole ones of the same numbers do, and autograd keeps none of them unpacked."""

import pytest
import torch
import transformers

from ftkit.config.tree import ModelConfig, RunConfig
from ftkit.errors import ModelError
from ftkit.models.bnb import Packing
from ftkit.models.build import build_empty_model, weight_lines
from ftkit.models.experts import expert_parameters, pack_experts, packed_experts
from ftkit.models.methods.lora import Lora, Qlora
from tests.plan import models

TINY = {
    "vocab_size": 32, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 32, "num_experts_per_tok": 2,
}  # fmt: skip
KINDS = {
    "qwen3_moe": {"num_experts": 4, "head_dim": 32, "moe_intermediate_size": 32},
    "mixtral": {"num_local_experts": 4},
    "granitemoe": {"num_local_experts": 4},
}
TOKENS = torch.arange(24).view(2, 12) % 32


def tiny(kind, ways):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **TINY, **KINDS[kind])
    return transformers.AutoModelForCausalLM.from_config(config, experts_implementation=ways).eval()


def packed_and_whole(kind, ways="grouped_mm"):
    """Return a model with experts in 4 bits, and one whose whole experts have the same numbers."""
    packed, whole = tiny(kind, ways), tiny(kind, ways)
    pack_experts(packed.requires_grad_(False), Packing("nf4", True, torch.float32), ())
    whole.requires_grad_(False)
    theirs = list(expert_parameters(whole))
    for (module, name), (other, same) in zip(list(expert_parameters(packed)), theirs, strict=True):
        getattr(other, same).data = getattr(module, name).clone()
    return packed, whole


def gradient(model):
    """Return logits, and the gradient of the table of tokens, which lies below all experts."""
    table = model.get_input_embeddings().weight.requires_grad_(True)
    logits = model(input_ids=TOKENS).logits
    logits.square().sum().backward()
    return logits.detach(), table.grad


@pytest.mark.parametrize("ways", ["grouped_mm", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_are_those_of_whole_experts_with_the_same_numbers(kind, ways):
    packed, whole = packed_and_whole(kind, ways)
    assert packed_experts(packed)
    for found, right in zip(gradient(packed), gradient(whole), strict=True):
        assert torch.equal(found, right)


def test_so_they_are_where_layers_recompute():
    packed, whole = packed_and_whole("qwen3_moe")
    for model in (packed, whole):
        model.train().gradient_checkpointing_enable({"use_reentrant": False})
    for found, right in zip(gradient(packed), gradient(whole), strict=True):
        assert torch.equal(found, right)


def test_autograd_keeps_no_expert_unpacked():
    def kept(model):
        sizes = []

        def note(tensor):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda kept: kept):
            model.get_input_embeddings().weight.requires_grad_(True)
            model(input_ids=TOKENS)
        return sizes

    packed, whole = packed_and_whole("qwen3_moe")
    sizes = {getattr(module, name).numel() for module, name in expert_parameters(whole)}
    assert sizes <= set(kept(whole))
    assert not sizes & set(kept(packed))


def mixture(kind, method):
    task, architecture = models.other(kind)
    config = RunConfig.model_validate({"task": task, "model": ModelConfig(name=kind), "method": method})
    return build_empty_model(config, architecture, torch.bfloat16)


def adapted(model):
    return {name.split(".lora_A")[0].rsplit(".", 1)[-1] for name, _ in model.named_parameters() if ".lora_A" in name}


def test_what_stays_whole_and_without_adapters_is_said():
    share, experts = weight_lines(mixture("mixtral", Qlora()))
    assert "of the frozen weights; whole stay" in share
    assert experts == "no adapter stands beside an expert"
    (line,) = weight_lines(mixture("mixtral", Lora()))
    assert line.endswith("; method.targets=[all-linear,experts] adds them")
    assert not list(weight_lines(mixture("mixtral", Lora(targets=("experts",)))))


def test_adapters_stand_beside_experts_on_request_alone():
    assert adapted(mixture("deepseek_v3", Lora())) == adapted(mixture("deepseek_v3", Lora(targets=("attention",))))
    assert adapted(mixture("deepseek_v3", Lora(targets=("experts",)))) == {"experts", "base_layer"}
    with pytest.raises(ModelError, match="no mlp layers that are linear and can have adapters: its experts are"):
        mixture("mixtral", Lora(targets=("mlp",)))
    with pytest.raises(ModelError, match="PEFT would put the adapters of 'up_proj' beside this model's experts"):
        mixture("deepseek_v3", Lora(targets=("up_proj",)))
    with pytest.raises(ModelError, match="no adapters beside experts in 4 bits; leave experts out"):
        mixture("mixtral", Qlora(targets=("experts",)))
