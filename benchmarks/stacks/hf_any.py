"""Any run of transformers and PEFT, by the Trainer or a loop written by hand: what its row states is what is traced.

The versions of transformers, PEFT and bitsandbytes are those that the row names, installed for it. Of the Trainer are
the clipping of gradients, autocast around the model's forward with logits in fp32 behind it, and FSDP of both versions
as accelerate wraps it. Under DeepSpeed the engine decides, not the library: such rows are planned as ftkit plans its
own runs.
"""

import re
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks import own_plan
from benchmarks.rows import Row, arch_of, card
from benchmarks.stacks import (
    autocast,
    compiled,
    facts,
    fms,
    fourbit,
    fsdp,
    fsdp2,
    hf,
    liger,
    loading,
    loops,
    packed,
    stated,
    traced,
    versions,
)
from ftkit.config.training import OptimizerConfig
from ftkit.models import bnb
from ftkit.observe.recorded import layer_names
from ftkit.observe.recorder import Recorder
from ftkit.observe.tape import Role
from ftkit.step.observer import Phase

GROUPS = ("",)
REQUIREMENTS = ()
FACTS = stated.FACTS
PATCHING = "unsloth|axolotl|swift|llama-?factory|xformers|torchtune"
"""Libraries that a row of transformers alone has not."""
FLASH_SINCE = (4, 48)
"""The version of transformers from which attention is looked up when it is called; see `hf.use_flash_attention`."""
OPTIMIZERS = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW, "adam": torch.optim.Adam}


def requirements(row: Row) -> tuple[str, ...]:
    """Return the pins of what a row ran in other versions than this project has."""
    adapters = ("peft",) if row["method"] != "full" else ()
    packs = ("bitsandbytes",) if row["quant"] or in_8_bits(row) else ()
    return versions.to_install(row, ("transformers", *adapters, *packs))


def reason_not_traced(row: Row) -> str | None:
    """Return why a row cannot be reproduced, or None."""
    row = loops.completed(row)
    reason = stated.reason_unstated(row) or _unnamed_version(row) or _unknown_run(row)
    reason = reason or facts.reason_incomplete(row) or hf.reason_unstated(row)
    reason = reason or hf.reason_windowed(row) or hf.reason_no_layer(row)
    return reason or (liger.reason_unknown(row, hf.model_type(arch_of(row))) if liger.is_used(row) else None)


def _unnamed_version(row: Row) -> str | None:
    """Return which library of a row has no version: what they keep has changed by gigabytes."""
    wanted = ("transformers",) if row["method"] == "full" else ("transformers", "peft")
    for package in wanted:
        if versions.named(row, package) is None:
            return f"its version of {package} is not stated"
    patching = re.search(PATCHING, row.get("framework_version") or "", re.IGNORECASE)
    if patching is not None:
        return f"its versions name a library that puts code of its own into transformers ({patching[0]})"
    torch_version = versions.named(row, "torch")
    if torch_version is not None and versions.numbers(torch_version) < (2,):
        return f"its version of torch chose other kernels than torch 2 does ({torch_version})"
    ours = versions.named(row, "transformers")
    if ours is not None and versions.numbers(ours) < versions.OLDEST:
        return f"its version of transformers is too old to be traced here ({ours})"
    return None


def _unknown_run(row: Row) -> str | None:
    parallel, is_sharded = row["parallel"], "FSDP" in row["parallel"]
    if row["offload"] != "none" and "ZeRO-" not in parallel:
        return f"its offload is not traced under {parallel} ({row['offload']})"
    if "ZeRO-" in parallel and (reason := own_plan.reason_not_a_rank(row)) is not None:
        return reason
    if is_sharded and "pinned" in str(row["attn_impl"]):
        return "its attention is pinned to a kernel, which is not traced under FSDP"
    if is_sharded and stated.prepares(row):
        return "its weights are fp32 beside packed ones, which are not traced under FSDP"
    if row["torch_compile"] and row["grad_checkpointing"]:
        return "compiled around checkpoints: the compiler's operator for random states cannot be recorded"
    version = versions.numbers(versions.named(row, "transformers") or "0")
    if row["attn_impl"] == "flash_attention_2" and version < FLASH_SINCE:
        return "its transformers called flash-attn otherwise than since 4.48"
    return None


def trace_row(row: Row) -> traced.Found:
    """Trace two steps."""
    row = loops.completed(row)
    if "ZeRO-" in row["parallel"]:
        return own_plan.deepspeed_rank(row)
    model = build(row)
    with ExitStack() as stack:
        for context in (
            autocast.cuda_lists(),
            fourbit.unpacking() if row["quant"] else nullcontext(),
            compiled.compiling() if row["torch_compile"] else nullcontext(),
            bnb.without_values() if in_8_bits(row) else nullcontext(),
            packed.no_updates() if in_8_bits(row) else nullcontext(),
            liger.kernels(row, model) if liger.is_used(row) else nullcontext(),
            hf.use_flash_attention(model) if row["attn_impl"] == "flash_attention_2" else nullcontext(),
        ):
            stack.enter_context(context)
        if "FSDP" in row["parallel"]:
            return fully_sharded(row, model) if "FSDP2" in row["parallel"] else sharded(row, model)
        stack.enter_context(traced.computing(card(row)))
        if "repeat_interleave" in str(row["attn_impl"]):  # around the choice of a kernel, which `computing` makes
            stack.enter_context(hf.repeated_heads())
        traced.fake(model)
        recorder = stack.enter_context(traced.recorder(card(row)))
        if row["n_gpus"] > 1:
            see_buckets(recorder, model)
        if stated.loads_onto_card(row):
            loading.onto_a_card(recorder, model, stated.weights_type(row) or hf.half(row))
        traced.see(recorder, row, model)
        steps(row, model, recorder)
    return recorder.tape


def sharded(row: Row, model: Any) -> traced.Found:
    """Trace wrapping and two steps of FSDP."""
    with fsdp.recording(model, row["n_gpus"]) as (device, recorder):
        model = fms.shard(row, model)
        traced.see_workspaces(recorder, row)
        recorder.mark(Phase.LOAD)
        steps(row, model, recorder)
    if row["metric_class"] in ("allocated_peak", "active_peak"):
        return recorder.tape
    return device.allocator_events(recorder.tape)


def fully_sharded(row: Row, model: Any) -> traced.Found:
    """Trace `fully_shard` and two steps (accelerate/utils/fsdp_utils.py, fsdp2_prepare_model)."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    dtype = hf.mixed(row)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=dtype, output_dtype=dtype)
    if dtype is not None:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    with fsdp2.recording(model, row["n_gpus"]) as (device, recorder, mesh):
        for module in [*map(model.get_submodule, layer_names(model)), model]:
            fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        traced.see_workspaces(recorder, row)
        recorder.mark(Phase.LOAD)
        steps(row, model, recorder)
    return device.allocator_events(recorder.tape)


def see_buckets(recorder: Recorder, model: nn.Module) -> None:
    """Write DistributedDataParallel's buckets on the tape: flat, together as large as the gradients (reducer.cpp)."""
    buckets = [torch.empty_like(parameter) for parameter in model.parameters() if parameter.requires_grad]
    vars(recorder)["buckets"] = buckets
    recorder.see([("bucket", one) for one in buckets], Role.BUFFER)


def build(row: Row) -> Any:
    """Build the model on `meta`, quantized, prepared, with adapters and checkpointing."""
    dtype = stated.weights_type(row) or hf.half(row)
    model = hf.build(row, dtype, "eager" if row["attn_impl"] == "eager" else "sdpa")
    if model.config.tie_word_embeddings:  # which transformers 5.0 does not do on `meta`
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    if row["quant"]:
        quantize(row, model, dtype)
    if row["lora_r"] is not None:
        model = fms.adapt(row, model, dropout=stated.dropout(row), dtype=stated.adapters_type(row))
    if row["grad_checkpointing"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": stated.is_reentrant(row)})
        if row["lora_r"] is not None:
            model.enable_input_require_grads()
    if row["torch_compile"]:
        model.compile()
    return model.train()


def quantize(row: Row, model: nn.Module, dtype: torch.dtype) -> None:
    """Put 4-bit layers in the place of linear ones, and make fp32 of the rest where the row says so."""
    import bitsandbytes

    fourbit.quantize(
        model,
        compute_dtype=stated.packed_compute_type(row) or hf.half(row),
        quant_type="fp4" if "fp4" in str(row["quant"]) else "nf4",
        compress_statistics=stated.quantizes_scales(row),
        # FSDP flattens no integers: 4-bit weights are then stored in the dtype of the others.
        quant_storage=dtype if "FSDP" in row["parallel"] else torch.uint8,
    )
    if "4-bit layers keep their type" in row["framework"]:
        # Else bitsandbytes takes that of the first input, where it is fp32 or bf16 (nn/modules.py, set_compute_type).
        for module in model.modules():
            vars(module)["compute_type_is_set"] = True
    if stated.prepares(row):  # peft/utils/other.py, prepare_model_for_kbit_training
        for name, parameter in model.named_parameters():
            if not isinstance(parameter, bitsandbytes.nn.Params4bit):
                model.get_parameter(name).data = parameter.data.float()


def steps(row: Row, model: Any, recorder: Recorder) -> None:
    """Run two steps, two micro-batches in each where gradients were accumulated."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, is_own = optimizer_of(row, trained), stated.is_own_loop(row)
    casting: Any = partial(torch.autocast, "cpu", hf.half(row))
    casts = hf.mixed(row) is not None
    if casts and not is_own and not row["torch_compile"]:
        fms.return_fp32(model, casting())
        casts = False
    kept: list[Any] = []

    def loss_of() -> torch.Tensor:
        ids = traced.token_ids(recorder, row)
        with casting(enabled=casts):
            outputs = model(input_ids=ids, labels=labels_of(row, ids))
        kept[:] = [outputs] if is_own else []
        loss: torch.Tensor = outputs.loss
        return loss

    def update() -> None:
        if not is_own:
            clip = getattr(model, "clip_grad_norm_", None)
            clip(1.0) if clip is not None else nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if not stated.keeps_outputs(row):
            kept.clear()
        for parameter in trained:
            parameter.grad = None

    traced.two_steps(recorder, loss_of, update, micro_batches=2 if row["grad_accum"] != 1 else 1)


def labels_of(row: Row, ids: torch.Tensor) -> torch.Tensor:
    """Return a batch's labels: a class for each text, or tokens; a loop of one's own gives the tokens themselves."""
    if hf.classifies(row):
        return torch.zeros(row["micro_batch"], dtype=torch.int64)
    return ids if stated.is_own_loop(row) else torch.ones_like(ids)


def in_8_bits(row: Row) -> bool:
    """Return whether a row's optimizer is bitsandbytes' with moments in 8 bits."""
    return row.get("optimizer_bits") == 8 or "8bit" in row["optimizer"].lower()


def optimizer_of(row: Row, trained: list[nn.Parameter]) -> Any:
    """Return a row's optimizer over what trains."""
    name = row["optimizer"].lower()
    if in_8_bits(row):
        optimizer: Any = bnb.build_optimizer([{"params": trained}], OptimizerConfig(name="adamw_8bit"))
        if "paged" in name:
            optimizer.get_state_buffer = packed.paged(optimizer.get_state_buffer)
        return optimizer
    if "paged" in name:
        return packed.PagedAdamW(trained)
    kind: Any = next(kind for key, kind in OPTIMIZERS.items() if key in name)
    return kind(trained, lr=1e-4, fused=True) if "fused" in name else kind(trained, lr=1e-4)
