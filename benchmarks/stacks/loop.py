"""Loops written by hand around transformers and PEFT: what two projects that measure memory have in common.

A loop states what moves its peak; the rows state the rest. The model gets random tokens of one length and no mask that
is looked at: transformers drops a mask of ones.
"""

from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.nn import functional

from benchmarks.rows import Row, card, rank_of
from benchmarks.stacks import autocast, fourbit, hf, traced
from ftkit.config.tree import OptimizerConfig
from ftkit.models import bnb

TARGETS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "c_attn"}
"""Layers that the rows of these loops adapt."""


@dataclass(frozen=True)
class Loop:
    """What a loop does that its rows do not say.

    Attributes:
        keeps_outputs: whether a step's logits live until the next ones are there: a variable that outlasts the step.
        repeats_heads: whether key and value are repeated for each head before torch attends.
        keeps_compute_dtype: whether 4-bit layers compute in the dtype that was asked for; else bitsandbytes takes that
            of the first input where it is fp32 or bf16 (nn/modules.py, set_compute_type).
        casts: whether a row's step runs under autocast.
    """

    keeps_outputs: bool
    repeats_heads: bool
    keeps_compute_dtype: bool = False
    casts: bool = False


def reason_not_traced(row: Row) -> str | None:
    """Return why a row cannot be reproduced, or None: a fact that is not known is not guessed."""
    if row["method"] not in ("lora", "qlora"):
        return f"its method is not traced ({row['method']})"
    if not set((row["lora_target_modules"] or "").split()) <= TARGETS or not row["lora_target_modules"]:
        return f"its adapted layers are not known ({row['lora_target_modules']})"
    if row["quant"] is not None and not row["quant"].startswith("bnb nf4"):
        return f"its quantized layers are not traced ({row['quant']})"
    if row["n_gpus"] > 1 or row["torch_compile"] or card(row) is None:
        return f"its device is not traced ({row['n_gpus']} x {row['gpu']})"
    if not any(name in row["optimizer"] for name in ("torch.optim.AdamW", "bnb.optim.PagedAdamW8bit")):
        return f"its optimizer is not traced ({row['optimizer']})"
    return None


def trace_row(row: Row, loop: Loop) -> traced.Found:
    """Trace two steps.

    Args:
        row: the run.
        loop: what its loop does.
    """
    model = build(row)
    with ExitStack() as stack:
        for context in (
            autocast.cuda_lists(),
            fourbit.unpacking(),
            bnb.without_values() if "8bit" in row["optimizer"] else nullcontext(),
            traced.computing(card(row)),
            repeated_heads() if loop.repeats_heads else nullcontext(),
        ):
            stack.enter_context(context)
        traced.fake(model)
        recorder = stack.enter_context(traced.recorder())
        traced.see(recorder, model)
        if loop.keeps_compute_dtype:
            for module in model.modules():
                vars(module)["compute_type_is_set"] = True
        steps(row, model, recorder, loop)
    return recorder.tape


def build(row: Row) -> nn.Module:
    """Build the model on `meta`, quantized, prepared and adapted."""
    import peft

    dtype = getattr(torch, row["base_dtype"])
    model = hf.build(row, dtype, "eager" if row["attn_impl"] == "eager" else "sdpa")
    if model.config.tie_word_embeddings:  # which transformers 5.0 does not do on `meta`
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    if row["quant"]:
        fourbit.quantize(
            model,
            compute_dtype=dtype,
            quant_type="nf4",
            compress_statistics="double" in row["quant"].replace("no double", ""),
        )
        # What `prepare_model_for_kbit_training` does to weights (peft/utils/other.py): those that are not packed.
        for name, parameter in model.named_parameters():
            if not isinstance(parameter, _packed()):
                model.get_parameter(name).data = parameter.data.float()
    names = sorted(set(str(row["lora_target_modules"]).split()))
    config = peft.LoraConfig(
        r=rank_of(row), lora_alpha=16, lora_dropout=0.0, target_modules=names, task_type="CAUSAL_LM"
    )
    with torch.device("meta"):
        adapted: Any = peft.get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:  # fp32, as PEFT makes adapters of half precision (autocast_adapter_dtype)
            parameter.data = parameter.data.float()
    if row["grad_checkpointing"]:
        adapted.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        adapted.enable_input_require_grads()
    trained: nn.Module = adapted.train()
    return trained


def _packed() -> type:
    import bitsandbytes

    kind: type = bitsandbytes.nn.Params4bit
    return kind


def repeated_heads() -> AbstractContextManager[Any]:
    """Repeat key and value before torch attends."""
    attention = functional.scaled_dot_product_attention

    def repeating(query: Any, key: Any, value: Any, *args: Any, **settings: Any) -> Any:
        if (groups := query.shape[-3] // key.shape[-3]) > 1:
            key, value = (one.repeat_interleave(groups, dim=-3) for one in (key, value))
            settings.pop("enable_gqa", None)
        return attention(query, key, value, *args, **settings)

    return mock.patch.object(functional, "scaled_dot_product_attention", repeating)


def steps(row: Row, model: nn.Module, recorder: Any, loop: Loop) -> None:
    """Run two steps."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = optimizer_of(row, trained)
    casting = partial(torch.autocast, "cpu", hf.half(row), enabled=loop.casts)
    kept: list[Any] = []

    def loss_of() -> torch.Tensor:
        ids = traced.token_ids(recorder, row)
        with casting():
            outputs = model(input_ids=ids, labels=ids)
        kept[:] = [outputs]
        loss: torch.Tensor = outputs.loss
        return loss

    def update() -> None:
        optimizer.step()
        if not loop.keeps_outputs:
            kept.clear()
        optimizer.zero_grad(set_to_none=True)

    traced.two_steps(recorder, loss_of, update)


def optimizer_of(row: Row, trained: list[nn.Parameter]) -> Any:
    """Return a row's optimizer; a paged one keeps small moments on the card, and those of adapters are (`packed`)."""
    if "PagedAdamW8bit" in row["optimizer"]:
        return bnb.build_optimizer([{"params": trained}], OptimizerConfig(name="adamw_8bit"))
    return torch.optim.AdamW(trained, lr=1e-4)
