"""rasbt/pytorch-memory-optim: DistilBERT fine-tuned with Lightning Fabric, July 2023.

Source: rasbt/pytorch-memory-optim, bonus_distilbert-after.py, requirements.txt; Lightning Fabric, strategies/fsdp.py.
"""

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from benchmarks.stacks import Row, fsdp, hf, traced
from ftkit.plan.tape import LOAD, Recorder

GROUPS = ("rasbt/pytorch-memory-optim",)
REQUIREMENTS = ("transformers==4.30.2", "huggingface_hub==0.16.4")
HIDDEN = ("tokenizers",)
"""Transformers 4.30 refuses tokenizers of today, and does without."""


def reason_not_traced(row: Row) -> str | None:
    """Return why a row cannot be reproduced, or None."""
    if "vit" in row["model_id"]:
        return "an image model"
    if "ZeRO" in row["parallel"]:
        return "DeepSpeed's own optimizer, with its flat copies and buckets, is not traced"
    return None


def trace_row(row: Row) -> int:
    """Trace wrapping and two steps; return what the caching allocator had reserved at the worst moment."""
    model = hf.build(row, torch.bfloat16, None)
    model.to(torch.bfloat16)
    with ExitStack() as stack:
        stack.enter_context(traced.computing())
        traced.fake(model)
        device = stack.enter_context(fsdp.rank_of(row["n_gpus"]))
        recorder = stack.enter_context(traced.recorder())
        stack.enter_context(device.told_to(recorder))
        model = shard(row, model)
        traced.see_workspaces(recorder)
        recorder.mark(LOAD)
        steps(row, model, recorder, device)
    return traced.reserved_peak(row, device.allocator_events(recorder.tape))


def shard(row: Row, model: Any) -> Any:
    """Wrap each block of the transformer, as Fabric does."""
    from torch.distributed.fsdp import CPUOffload, FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    block = type(next(module for module in model.modules() if type(module).__name__ == "TransformerBlock"))
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

    def loss_of() -> torch.Tensor:
        ids = traced.token_ids(recorder, row)
        mask, labels = torch.ones_like(ids), torch.zeros(row["micro_batch"], dtype=torch.int64)
        loss: torch.Tensor = model(ids, attention_mask=mask, labels=labels).loss
        return loss / row["grad_accum"]

    def update() -> None:
        device.synchronize()
        for parameter in parameters:
            parameter.grad = None

    traced.two_steps(recorder, loss_of, update, micro_batches=row["grad_accum"])
