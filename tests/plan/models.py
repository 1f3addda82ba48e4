"""Tiny models for the planner's tests, and a real step under the same recorder; nothing here asserts anything."""

import gc
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import nn

from ftkit.config.tree import ModelConfig, RunConfig
from ftkit.data.batching import Shape
from ftkit.engine.plain import PlainEngine
from ftkit.models.build import build_empty_model, set_training
from ftkit.models.objective import objective_of
from ftkit.models.trunk.closed import close
from ftkit.models.trunk.cut import Cut, find_cut
from ftkit.observe.recorded import (
    Given,
    batch_tensors,
    layer_names,
    make_batches,
    record_steps,
    record_trunk,
    see_model,
)
from ftkit.observe.recorder import Recorder
from ftkit.observe.tape import Role, Tape
from ftkit.plan.tracing.trace import LocalProcess
from ftkit.step.observer import Phase

NUM_LAYERS = 4
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TASKS = {"llama": "causal-lm", "gpt2": "sequence-classification", "bert": "sequence-classification"}


def architecture(family: str, num_layers: int = NUM_LAYERS, width: int = 64) -> Any:
    """Return a tiny configuration, with the dropout that the family comes with."""
    if family == "gpt2":
        ends = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
        return transformers.GPT2Config(
            n_embd=width, n_layer=num_layers, n_head=4, vocab_size=500, use_cache=False, **ends
        )
    shape = _shape(width, num_layers)
    if family == "bert":
        return transformers.BertConfig(**shape)
    return transformers.LlamaConfig(num_key_value_heads=2, **shape)


OTHERS: dict[str, dict[str, Any]] = {
    "falcon": {},
    "gpt_neox": {},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 16},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4},
    "deepseek_v3": {
        "num_key_value_heads": 4, "first_k_dense_replace": 1, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16, "kv_lora_rank": 8, "q_lora_rank": 8,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    },
    "llama4_text": {"num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 2, "intermediate_size_mlp": 64},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16},
    "modernbert": {"global_attn_every_n_layers": 2},
    "distilbert": {"dim": 64, "n_layers": NUM_LAYERS, "n_heads": 4, "hidden_dim": 128},
}  # fmt: skip
"""Other types of transformers, and what makes them tiny beside what `architecture` says of all."""
CLASSIFIERS = ("deberta-v2", "modernbert", "distilbert")


def other(kind: str) -> tuple[str, Any]:
    """Return the task and the tiny configuration of one of `OTHERS`."""
    made = transformers.AutoConfig.for_model(kind, **_shape(64, NUM_LAYERS) | OTHERS[kind])
    return "sequence-classification" if kind in CLASSIFIERS else "causal-lm", made


def _shape(width: int, num_layers: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "vocab_size": 512,
        "pad_token_id": 0,
        "use_cache": False,
    }


def run_config(family: str, method: Any, recompute: Any = "none", **sections: Any) -> RunConfig:
    """Return a configuration of a tiny model."""
    model = ModelConfig.model_validate({"name": family, "recompute": recompute})
    return RunConfig.model_validate({"task": TASKS[family], "model": model, "method": method, **sections})


def shape(family: str) -> Shape:
    """Return two micro-batches; the classifiers' sequences are padded."""
    return Shape(2, 32, 2, is_padded=family != "llama")


def real_model(config: RunConfig, model_config: Any, dtype: torch.dtype) -> nn.Module:
    """Return the module of a configuration with random weights on the CPU."""
    torch.manual_seed(0)
    model = build_empty_model(config, model_config, dtype)
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = made.setdefault(id(parameter), _weight(parameter, module))  # type: ignore[assignment]  # it is a parameter
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)
    return model


def measure(config: RunConfig, model_config: Any, dtype: torch.dtype, sizes: Shape, given: Given | None = None) -> Tape:
    """Run two real steps under a recorder, of a model without its frozen trunk where it is given what crosses."""
    return measure_model(real_model(config, model_config, dtype), config, model_config, dtype, sizes, given)


def measure_model(
    model: nn.Module,
    config: RunConfig,
    model_config: Any,
    dtype: torch.dtype,
    sizes: Shape,
    given: Given | None = None,
) -> Tape:
    """Run two real steps of a model that is there."""
    if given is not None:
        close(model, given.cut)
    recorder, layers = Recorder(), layer_names(model)
    gc.collect()
    gc.disable()
    try:
        with recorder.inside(model, layers):
            see_model(recorder, model, layers)
            engine = PlainEngine(config, model, LocalProcess(), dtype, objective_of(config, model_config, model))
            set_training(model, True)
            recorder.mark(Phase.LOAD)
            micro_batches = make_batches(engine.objective, sizes, given)
            recorder.see(batch_tensors(micro_batches), Role.INPUT)
            return record_steps(engine, micro_batches, recorder)
    finally:
        gc.enable()


def measure_trunk(config: RunConfig, model_config: Any, dtype: torch.dtype, sizes: Shape) -> tuple[Tape, Cut]:
    """Run a real trunk once under a recorder."""
    model = real_model(config, model_config, dtype)
    objective = objective_of(config, model_config, model)
    (micro_batch,) = make_batches(objective, replace(sizes, num_micro_batches=1))
    cut = find_cut(model, micro_batch)
    recorder, layers = Recorder(), layer_names(model)
    gc.collect()
    gc.disable()
    try:
        with recorder.inside(model, layers):
            see_model(recorder, model, layers)
            recorder.mark(Phase.LOAD)
            return record_trunk(model, cut, micro_batch, recorder), cut
    finally:
        gc.enable()


def _weight(parameter: Any, module: nn.Module) -> Any:
    values = torch.randn(parameter.shape, dtype=parameter.dtype) * 0.02
    if type(parameter).__name__ != "Params4bit":
        return nn.Parameter(values, requires_grad=parameter.requires_grad)
    return type(parameter)(
        values,
        requires_grad=False,
        compress_statistics=parameter.compress_statistics,
        quant_type=parameter.quant_type,
        quant_storage=parameter.quant_storage,
        module=module,
    ).to("cpu")
