"""fms-acceleration's benchmarks: transformers' Trainer, TRL and PEFT on packed sequences.

Sources, in foundation-model-stack/fms-acceleration: scripts/benchmarks (scenarios.yaml, defaults.yaml, accelerate.yaml,
refs/requirements.txt), plugins/accelerated-peft (framework_plugin_bnb.py, framework_plugin_autogptq.py).
"""

from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import nn

from benchmarks.rows import Row, arch_of, rank_of
from benchmarks.stacks import autocast, fourbit, fsdp, hf, traced
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


def reason_not_traced(row: Row) -> str | None:
    """Return why a row cannot be reproduced, or None."""
    if row["fused_kernels"] not in (None, "none"):
        return f"fused kernels ({row['fused_kernels']}), which are Triton's and have no form without a GPU"
    if arch_of(row)["arch_class"].startswith("Mixtral"):
        return "experts that are chosen by value"
    return None


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
        traced.see(recorder, model)
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
        model.is_loaded_in_4bit = True
        if "no_peft_model" in quant and not sharded:
            # TRL leaves it to PEFT, which makes norms fp32; TRL then takes embedding and head back to half precision.
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter.data = parameter.data.float()
    elif quant.startswith("GPTQ"):
        fourbit.quantize_gptq(model, hf.half(row) if sharded else None)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    if row["lora_r"] is not None:
        model.enable_input_require_grads()
        model = adapt(row, model)
    return model


def adapt(row: Row, model: nn.Module) -> nn.Module:
    """Add a row's adapters, in fp32 as PEFT makes them."""
    import peft
    from peft.tuners.lora import gptq
    from peft.tuners.lora import model as lora_model

    kind = "SEQ_CLS" if hf.classifies(row) else "CAUSAL_LM"
    config = peft.LoraConfig(
        r=rank_of(row), lora_alpha=16, lora_dropout=0.1, target_modules=hf.adapted(row, model), task_type=kind
    )

    def dispatch(target: nn.Module, adapter_name: str, **kwargs: Any) -> Any:
        return gptq.QuantLinear(target, adapter_name, **kwargs) if isinstance(target, fourbit.GptqLinear) else None

    with torch.device("meta"), mock.patch.object(lora_model, "dispatch_gptq", dispatch):
        adapted: nn.Module = peft.get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
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


def steps(row: Row, model: Any, recorder: Recorder) -> None:
    """Run two steps of the Trainer."""
    from accelerate.utils.operations import convert_outputs_to_fp32

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.01, eps=1e-4)
    dtype = hf.mixed(row)
    forward = model.forward
    if dtype is not None:
        forward = convert_outputs_to_fp32(torch.autocast("cpu", dtype)(forward))
        vars(model)["forward"] = forward

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
