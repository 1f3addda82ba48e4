"""rasbt/pytorch-memory-optim: DistilBERT and a vision transformer fine-tuned with Lightning Fabric, July 2023.

Source: rasbt/pytorch-memory-optim, bonus_distilbert-before.py, bonus_distilbert-after.py, requirements.txt; Lightning
Fabric, strategies/deepspeed.py, strategies/fsdp.py. Under FSDP Fabric had no mixed precision for "bf16-true" yet
(pull request 17807) and made the model on the host (17510).

The rows of DistilBERT are 0.50 and 0.15 GB above their traces. Under autocast they would be 4.32 and 1.22 GB for 3.99
and 1.15, and neither of their plugins had it (plugins/precision/deepspeed.py and half.py of July 2023).
"""

from functools import partial
from typing import Any

import torch

from benchmarks.rows import Row, card, num_micro_batches
from benchmarks.stacks import facts, fsdp, hf, own_models, traced, vit, zero2
from ftkit.observe.recorder import Recorder
from ftkit.observe.tape import Role
from ftkit.step.observer import Phase

GROUPS = ("rasbt/pytorch-memory-optim",)
REQUIREMENTS = ("transformers==4.30.2", "huggingface_hub==0.16.4", "torchvision==0.15.2", "pillow==9.5.0")
HIDDEN = ("tokenizers",)
"""Transformers 4.30 refuses tokenizers of today, and does without."""
FABRIC_BUCKET = 200_000_000
"""Elements of a bucket that Fabric asks DeepSpeed for (strategies/deepspeed.py, reduce_bucket_size)."""


FACTS = facts.PLAIN | {
    "method": "full",
    "lora_r": "None",
    "lora_target_modules": "None",
    "trainable_notes": "None",
    "base_dtype": "float32|bfloat16",
    "quant": "None",
    "compute_dtype": "fp32|16-mixed|bf16-true",
    "optimizer": r"torch\.optim\.Adam|Adam \(lr 5e-5\)",
    "grad_accum": r"\d+",
    "seq_kind": "fixed 224x224 image, patch 16|fixed 512 .*",
    "grad_checkpointing": "False|activation_checkpointing=EncoderBlock",
    "attn_impl": r"eager|torch nn\.MultiheadAttention \(torchvision; need_weights=False\)",
    "loss_head": r"(?:2|10)-way classification",
    "fused_kernels": "none|None",
    "torch_compile": "False|None",
    "parallel": "none|FSDP1(?: full_shard, wrap EncoderBlock)?|DeepSpeed ZeRO-2",
    "offload": "none|FSDP CPU offload.*",
    "gpu": "None",
    "framework": r"torch|(?:torch \+ )?Lightning Fabric|torch ",
}


def reason_not_traced(row: Row) -> str | None:
    """Return why a row cannot be reproduced, or None."""
    is_built_by_name = "vit" in row["model_id"]
    return facts.reason_unknown(row, FACTS) or (own_models.reason_of_another_model(row) if is_built_by_name else None)


def trace_row(row: Row) -> traced.Found:
    """Trace two steps."""
    if "vit" in row["model_id"]:
        return vit.trace_row(row) if row["n_gpus"] == 1 else vit.trace_shards(row, shard)
    return partitioned(row) if "ZeRO-2" in row["parallel"] else trace_shards(row)


def trace_shards(row: Row) -> traced.Found:
    """Trace wrapping and two steps of FSDP."""
    model = hf.build(row, torch.bfloat16, None)
    model.to(torch.bfloat16)
    with fsdp.recording(model, row["n_gpus"]) as (device, recorder):
        block = type(next(module for module in model.modules() if type(module).__name__ == "TransformerBlock"))
        model = shard(row, model, block)
        traced.see_workspaces(recorder, row)
        recorder.mark(Phase.LOAD)
        steps(row, model, recorder, device)
    return device.allocator_events(recorder.tape)


def partitioned(row: Row) -> traced.Found:
    """Trace two steps under DeepSpeed's stage 2, with the buckets that Fabric asks for."""
    model = hf.build(row, torch.float16, None).to(torch.float16)
    with traced.recording(card(row)) as recorder:
        traced.fake(model)
        traced.see_workspaces(recorder, row)
        recorder.see(model.named_buffers(), Role.BUFFER)
        engine = zero2.Stage2(model, recorder, ranks=row["n_gpus"], bucket_elements=FABRIC_BUCKET, lr=5e-5)
        recorder.mark(Phase.LOAD)
        traced.two_steps(recorder, lambda: loss_of(row, model, recorder), engine.step, backward=engine.backward)
    return fsdp.Device().allocator_events(recorder.tape)


def loss_of(row: Row, model: Any, recorder: Recorder) -> torch.Tensor:
    """Return the loss of a batch."""
    ids = traced.token_ids(recorder, row)
    mask, labels = torch.ones_like(ids), torch.zeros(row["micro_batch"], dtype=torch.int64)
    loss: torch.Tensor = model(ids, attention_mask=mask, labels=labels).loss
    return loss


def shard(row: Row, model: Any, block: type[Any]) -> Any:
    """Wrap each block of the transformer, as Fabric does."""
    from torch.distributed.fsdp import CPUOffload, FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    return FullyShardedDataParallel(
        model,
        auto_wrap_policy=partial(transformer_auto_wrap_policy, transformer_layer_cls={block}),
        cpu_offload=CPUOffload(offload_params=row["offload"] != "none"),
        use_orig_params=True,
        limit_all_gathers=False,  # torch's default before 2.1; the logs name 2.1.0.dev20230623
        device_id=fsdp.CPU,
    )


def steps(row: Row, model: Any, recorder: Recorder, device: fsdp.Device) -> None:
    """Run two steps; the optimizer, its parameters offloaded, runs on the host."""
    parameters = list(model.parameters())

    def share() -> torch.Tensor:
        return loss_of(row, model, recorder) / num_micro_batches(row)

    def update() -> None:
        device.synchronize()
        for parameter in parameters:
            parameter.grad = None

    traced.two_steps(recorder, share, update, micro_batches=num_micro_batches(row))
