"""answerdotai/fsdp_qlora: a training loop of its own around transformers, PEFT, bitsandbytes and torch's FSDP.

Source: AnswerDotAI/fsdp_qlora, train.py; its README asks for transformers before 4.38 or after 4.39.
"""

from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.rows import Row, rank_of
from benchmarks.stacks import facts, fourbit, fsdp, hf, traced
from ftkit.observe.recorder import Recorder
from ftkit.step.observer import Phase

GROUPS = ("answerdotai/fsdp_qlora",)
REQUIREMENTS = (
    "transformers==4.37.2",
    "peft==0.9.0",
    "bitsandbytes==0.43.0",
    "accelerate==0.27.2",
    "tokenizers==0.15.2",
    "huggingface_hub==0.21.4",
)


FACTS = facts.PLAIN | {
    "method": "lora|qlora",
    "lora_target_modules": rf"{facts.words('[qkvo]_proj', '(?:up|down|gate)_proj')}(?:train\.py:1159.*)?",
    "trainable_notes": r"alpha 16, dropout 0\.1 \(script defaults\)",
    "base_dtype": r"bfloat16|bnb nf4 \+ double quant, quant_storage bf16 \(script\)",
    "quant": "None|nf4",
    "compute_dtype": r"bf16 \(precision=bf16: pure bf16 params\)",
    "optimizer": r"torch\.optim\.AdamW \(script default; LoRA params bf16\)",
    "grad_accum": "1",
    "seq_kind": r"fixed \(dummy dataset, context_length\)",
    "grad_checkpointing": "True",
    "attn_impl": "sdpa",
    "loss_head": "HF CE on full fp32 logits",
    "parallel": r"FSDP1 full_shard, per-decoder-layer wrap, backward prefetch|FSDP NO_SHARD \(.ddp.\)",
    "offload": r"none|FSDP CPU offload of params\+grads\+optimizer step",
    "framework": r"fsdp_qlora train\.py \(transformers/torch 2\.2\)",
}


def reason_not_traced(row: Row) -> str | None:
    """Return why a row cannot be reproduced, or None."""
    return facts.reason_unknown(row, FACTS) or hf.reason_unstated(row)


def trace_row(row: Row) -> traced.Found:
    """Trace loading, wrapping and two steps."""
    model = build(row)
    with fourbit.unpacking(), fsdp.recording(model, row["n_gpus"]) as (device, recorder):
        model = shard(row, model)
        traced.see_workspaces(recorder, row)
        recorder.mark(Phase.LOAD)
        steps(row, model, recorder, device)
    return device.allocator_events(recorder.tape)


def build(row: Row) -> Any:
    """Build the model on `meta`, quantized, with adapters in the model's dtype."""
    import peft

    # Quantized models are built in fp32 and their weights loaded in bf16: buffers stay in fp32.
    model = hf.build(row, torch.float32 if row["quant"] else torch.bfloat16, "sdpa")
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    if row["quant"]:
        options: dict[str, Any] = {
            "compute_dtype": torch.bfloat16,
            "quant_type": "nf4",
            "quant_storage": torch.bfloat16,
        }
        fourbit.quantize(model, **options)
    with torch.device("meta"):
        config = peft.LoraConfig(
            r=rank_of(row),
            lora_alpha=16,
            lora_dropout=0.1,
            target_modules=hf.adapted(row, model),
            task_type="CAUSAL_LM",
        )
        adapted = peft.get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    return adapted.train()


def shard(row: Row, model: Any) -> Any:
    """Wrap each decoder layer and each adapter's matrix, then checkpoint the layers (train.py, get_wrapping_policy)."""
    from peft.utils.other import fsdp_auto_wrap_policy
    from torch.distributed.algorithms._checkpoint import checkpoint_wrapper as wrapper
    from torch.distributed.fsdp import CPUOffload, FullyShardedDataParallel, ShardingStrategy

    layer = type(next(module for module in model.modules() if type(module).__name__.endswith("DecoderLayer")))
    strategy = ShardingStrategy.NO_SHARD if "NO_SHARD" in row["parallel"] else ShardingStrategy.FULL_SHARD
    wrapped = FullyShardedDataParallel(
        model,
        sharding_strategy=strategy,
        auto_wrap_policy=fsdp_auto_wrap_policy(model),
        use_orig_params=False,
        cpu_offload=CPUOffload(offload_params=offloads(row)),
        limit_all_gathers=True,
        device_id=fsdp.CPU,
        sync_module_states=True,
    )
    wrapped.enable_input_require_grads()
    reentrant = partial(wrapper.checkpoint_wrapper, checkpoint_impl=wrapper.CheckpointImpl.REENTRANT)
    wrapper.apply_activation_checkpointing(
        wrapped, checkpoint_wrapper_fn=reentrant, check_fn=lambda module: isinstance(module, layer)
    )
    return wrapped


def offloads(row: Row) -> bool:
    """Return whether a row keeps its weights on the host."""
    return "CPU offload" in (row["offload"] or "")


def steps(row: Row, model: nn.Module, recorder: Recorder, device: fsdp.Device) -> None:
    """Run two steps of train.py's loop, which keeps the model's output until the step is over."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.1)
    kept: list[Any] = []

    def loss_of() -> torch.Tensor:
        ids = traced.token_ids(recorder, row)
        labels = torch.ones_like(ids)
        output = model(ids, labels=labels, attention_mask=None)
        loss: torch.Tensor = output.loss / 1
        kept.extend((output, loss))
        return loss

    def update() -> None:
        device.synchronize()  # the loss is read
        if not offloads(row):
            optimizer.step()
        optimizer.zero_grad()
        kept.clear()

    traced.two_steps(recorder, loss_of, update)
