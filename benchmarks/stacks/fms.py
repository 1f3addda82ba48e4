"""fms-acceleration's benchmarks: transformers' Trainer, TRL and PEFT on packed sequences.

Sources, in foundation-model-stack/fms-acceleration: scripts/benchmarks (scenarios.yaml, defaults.yaml, accelerate.yaml,
refs/requirements.txt), plugins/accelerated-peft (framework_plugin_bnb.py, framework_plugin_autogptq.py).
"""

import re
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import nn

from benchmarks.rows import Row, rank_of
from benchmarks.stacks import autocast, facts, fourbit, fsdp, hf, traced
from ftkit.observe.recorder import Recorder
from ftkit.observe.tape import Tape

GROUPS = ("fms-acceleration/",)
REQUIREMENTS = (
    "transformers==4.48.1",
    "peft==0.13.2",
    "bitsandbytes==0.43.3",
    "accelerate==0.34.2",  # the stack had 1.0.1; what is used of it, utils/operations.py, is the same there
    "tokenizers==0.21.0",
    "huggingface_hub==0.27.1",
)
GPTQ_GROUPS = {"mistralai/Mistral-7B-v0.1": 128}
"""Rows that share a scale in the checkpoint that a scenario has for a model, TheBloke's (scenarios.yaml,
accelerated-peft-gptq; its quantize_config.json); of other models' a row says it."""
FACTS = facts.PLAIN | {
    "method": "full|lora|qlora|gptq_lora",
    "lora_target_modules": rf"None|{facts.words('[qkvo]_proj', 'c_attn')}",
    "trainable_notes": r"all parameters|lora_alpha \d+, dropout 0\.1, bias none",
    "base_dtype": "b?float16",
    "quant": r"None|bnb nf4(?:, plugin path| via plain HF/PEFT path) \(.*\)|GPTQ int4 \(auto-gptq triton v2\)"
    r"(?:,? groups? (?:size |of )?-?\d+)?",
    "compute_dtype": r"no autocast \(pure b?float16\)|autocast (?:bf|fp)16 \(--(?:bf|fp)16\)",
    "optimizer": r"adamw_torch \(HF Trainer default; eps 1e-4 set\)",
    "grad_accum": "1",
    "seq_kind": r"fixed \(packed;.*",
    "grad_checkpointing": "True",
    "attn_impl": "flash_attention_2",
    "loss_head": "HF CausalLM CE, logits upcast to fp32",
    "parallel": "none|FSDP1 FULL_SHARD, transformer wrap, BACKWARD_PRE, no offload",
    "framework": r"fms-hf-tuning \(HF Trainer/TRL\) \+ fms-acceleration",
}


def reason_not_traced(row: Row) -> str | None:
    """Return why a row cannot be reproduced, or None."""
    if row["arch"] and row["arch"]["arch_class"].startswith("Mixtral"):
        return "experts that are chosen by value"
    if "GPTQ" in (row["quant"] or "") and gptq_group(row) is None:
        return f"the groups of its quantized layers are not stated ({row['quant']})"
    return facts.reason_unknown(row, FACTS) or hf.reason_unstated(row)


def trace_row(row: Row) -> Tape:
    """Trace two steps."""
    with ExitStack() as stack:
        model = build(row)
        for context in (traced.computing(), autocast.cuda_lists(), fourbit.unpacking()):
            stack.enter_context(context)
        stack.enter_context(hf.use_flash_attention(model))
        traced.fake(model)
        device = None
        if row["n_gpus"] > 1:
            device = stack.enter_context(fsdp.rank_of(row["n_gpus"]))
            model = shard(row, model)
        recorder = stack.enter_context(traced.recorder())
        if device is not None:
            stack.enter_context(device.told_to(recorder))
        traced.see(recorder, row, model)
        steps(row, model, recorder)
    return recorder.tape


def build(row: Row) -> Any:
    """Build the model on `meta`, quantized, with adapters and checkpointing."""
    sharded = row["n_gpus"] > 1
    model = hf.build(row, hf.half(row), "sdpa")
    quant = row["quant"] or ""
    if quant.startswith("bnb"):
        storage = hf.half(row) if sharded else torch.uint8
        fourbit.quantize(model, compute_dtype=hf.half(row), quant_type="nf4", quant_storage=storage)
        if "no_peft_model" in quant and not sharded:
            # TRL leaves it to PEFT, which makes norms fp32; TRL then takes embedding and head back to half precision.
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter.data = parameter.data.float()
    elif quant.startswith("GPTQ"):
        fourbit.quantize_gptq(model, hf.half(row) if sharded else None, group=gptq_group(row) or -1)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    if row["lora_r"] is not None:
        model.enable_input_require_grads()
        model = adapt(row, model)
    return model


def gptq_group(row: Row) -> int | None:
    """Return the rows of a GPTQ layer that share a scale, -1 if all do; None: not known."""
    found = re.search(r"groups? (?:size |of )?(-?\d+)", row["quant"] or "")
    return int(found[1]) if found else GPTQ_GROUPS.get(row["model_id"])


def adapt(row: Row, model: nn.Module, dropout: float = 0.1, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Add a row's adapters, in fp32 as PEFT makes them if nothing else is said."""
    import peft
    from peft.tuners.lora import gptq
    from peft.tuners.lora import model as lora_model

    kind = "SEQ_CLS" if hf.classifies(row) else "CAUSAL_LM"
    config = peft.LoraConfig(
        r=rank_of(row), lora_alpha=16, lora_dropout=dropout, target_modules=hf.adapted(row, model), task_type=kind
    )

    def dispatch(target: nn.Module, adapter_name: str, **kwargs: Any) -> Any:
        return gptq.QuantLinear(target, adapter_name, **kwargs) if isinstance(target, fourbit.GptqLinear) else None

    with torch.device("meta"), mock.patch.object(lora_model, "dispatch_gptq", dispatch):
        adapted: nn.Module = peft.get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    return adapted.train()


def shard(row: Row, model: Any) -> Any:
    """Wrap a model as accelerate does (accelerator.py, prepare_model)."""
    from peft.utils.other import fsdp_auto_wrap_policy
    from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    layer = type(next(module for module in model.modules() if type(module).__name__.endswith("DecoderLayer")))
    policy = partial(transformer_auto_wrap_policy, transformer_layer_cls={layer})
    if row["lora_r"] is not None:
        policy = fsdp_auto_wrap_policy(model)
    dtype = hf.mixed(row)
    precision = None if dtype is None else MixedPrecision(param_dtype=dtype, reduce_dtype=dtype, buffer_dtype=dtype)
    return FullyShardedDataParallel(
        model,
        auto_wrap_policy=policy,
        mixed_precision=precision,
        use_orig_params=True,
        device_id=fsdp.CPU,
    )


def return_fp32(model: Any, casting: Any) -> None:
    """Let a model run under autocast and return fp32, as accelerate does (accelerator.py, prepare_model)."""
    from accelerate.utils.operations import convert_outputs_to_fp32

    vars(model)["forward"] = convert_outputs_to_fp32(casting(model.forward))


def steps(row: Row, model: Any, recorder: Recorder) -> None:
    """Run two steps of the Trainer."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.01, eps=1e-4)
    dtype = hf.mixed(row)
    if dtype is not None:
        return_fp32(model, torch.autocast("cpu", dtype))

    def loss_of() -> torch.Tensor:
        ids = traced.token_ids(recorder, row)
        # The collator gives labels and a mask too; flash attention takes a mask of ones for none.
        labels, mask = torch.ones_like(ids), torch.ones_like(ids)
        loss: torch.Tensor = model(input_ids=ids, labels=labels, use_cache=False).loss
        del mask
        return loss

    def update() -> None:
        clip = getattr(model, "clip_grad_norm_", None)
        clip(1.0) if clip is not None else nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    traced.two_steps(recorder, loss_of, update)
