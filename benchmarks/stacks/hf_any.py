"""Any other stack on top of transformers: traced with this project's versions, by what the row says of itself.

A stack with a file of its own does better: its versions differ in what they keep. Here are the Trainer's habits:
adapters in fp32, gradients clipped, autocast around the model, FSDP of both versions as accelerate wraps it. Under
DeepSpeed the engine decides, not the library: such rows are planned as ftkit plans its own runs.
"""

import re
from contextlib import ExitStack, nullcontext
from importlib import metadata
from typing import Any

import torch
from torch import nn

from benchmarks import own_plan
from benchmarks.rows import Row
from benchmarks.stacks import autocast, compiled, fms, fourbit, fsdp, fsdp2, hf, packed, traced
from ftkit.config.training import OptimizerConfig
from ftkit.models import bnb
from ftkit.observe.recorded import layer_names
from ftkit.observe.recorder import Recorder
from ftkit.observe.tape import Role
from ftkit.step.observer import Phase

GROUPS = ("",)
REQUIREMENTS = ()
LIBRARIES = ("transformers", "trainer", "trl", "peft", "hf ", "hugging", "accelerate", "swift", "axolotl", "factory")
OPTIMIZERS = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
OTHER_OPTIMIZERS = ("galore", "lion", "adafactor", "in_bwd")
"""Words by which an optimizer is another one, though its name may hold that of one that is known."""


METHODS = {"full", "lora", "qlora", "lora (rslora)", "lora+"}
"""Methods whose tensors are those of full fine-tuning or of LoRA; another adapter is not taken for either."""


def reason_not_traced(row: Row) -> str | None:
    """Return why a row cannot be reproduced, or None."""
    return _unknown_run(row) or _unknown_method(row) or _other_version(row) or _unknown_model(row["arch"])


def _unknown_method(row: Row) -> str | None:
    """Return what of a row's adapters would have to be guessed."""
    if row["method"] not in METHODS:
        return f"its method is not traced ({row['method']})"
    if row["method"] != "full" and row["lora_r"] is None:
        return f"the rank of its adapters is not known ({row['method']})"
    if row["method"] == "full" and row["lora_r"] is not None:
        return "it says full fine-tuning, and a rank"
    if "reentrant=True" in (row.get("framework") or "").replace(" ", ""):
        return "its checkpoints are reentrant, which are not traced here"
    return None


def _other_version(row: Row) -> str | None:
    """Return the version of transformers that a row names, where it is not the one that is traced."""
    named = re.search(r"transformers[ =]+(\d+\.\d+)", row.get("framework_version") or "")
    ours = ".".join(metadata.version("transformers").split(".")[:2])
    if named is None or named[1] == ours:
        return None
    return f"it ran transformers {named[1]}, and {ours} would be traced"


def _unknown_model(arch: Any) -> str | None:
    if not arch:
        return "the sizes of its model are not known"
    if not arch.get("vocab"):
        return "its vocabulary is not known"
    try:
        hf.model_type(arch)
    except LookupError:
        return "its model's code is not in transformers"
    return None


def _unknown_run(row: Row) -> str | None:
    framework = (row.get("framework") or "").lower()
    if not any(name in framework for name in LIBRARIES):
        return f"what its library does is not written down in benchmarks/stacks ({row['group']})"
    if not row["parallel"]:
        return "how it was shared among devices is not known"
    if row["n_gpus"] > 1 and not any(kind in row["parallel"] for kind in ("FSDP1", "FSDP2", "DDP", "ZeRO-")):
        return f"its sharding is not traced ({row['parallel']})"
    if "FSDP" in row["parallel"] and row["offload"] not in (None, "none"):
        return f"its offload is not traced under FSDP ({row['offload']})"
    if "ZeRO-" in row["parallel"] and row["method"] not in ("lora", "qlora", "full"):
        return f"its method is not ftkit's ({row['method']})"
    if row["torch_compile"] and row["grad_checkpointing"]:
        return "compiled around checkpoints: the compiler's operator for random states cannot be recorded"
    if row["fused_kernels"] not in (None, "none"):
        return f"fused kernels ({row['fused_kernels']}), which have no form without a GPU"
    if row["quant"] and "nf4" not in row["quant"]:
        return f"its quantized layers are not traced ({row['quant']})"
    return _unknown_optimizer(row["optimizer"])


def _unknown_optimizer(said: str | None) -> str | None:
    name = (said or "adamw").lower()
    is_known = any(key in name for key in OPTIMIZERS) and not any(word in name for word in OTHER_OPTIMIZERS)
    return None if is_known else f"its optimizer is not traced ({said})"


def trace_row(row: Row) -> traced.Found:
    """Trace two steps."""
    if "ZeRO-" in row["parallel"]:
        return own_plan.deepspeed_rank(row)
    model = build(row)
    with ExitStack() as stack:
        for context in (
            autocast.cuda_lists(),
            fourbit.unpacking() if row["quant"] else nullcontext(),
            compiled.compiling() if row["torch_compile"] else nullcontext(),
            bnb.without_values() if in_8_bits(row) else nullcontext(),
        ):
            stack.enter_context(context)
        if row["n_gpus"] > 1 and "FSDP" in row["parallel"]:
            return fully_sharded(row, model) if "FSDP2" in row["parallel"] else sharded(row, model)
        stack.enter_context(traced.computing())
        traced.fake(model)
        recorder = stack.enter_context(traced.recorder())
        if row["n_gpus"] > 1:
            see_buckets(recorder, model)
        traced.see(recorder, model)
        steps(row, model, recorder)
    return recorder.tape


def sharded(row: Row, model: Any) -> traced.Found:
    """Trace wrapping and two steps of FSDP."""
    with fsdp.recording(model, row["n_gpus"]) as (device, recorder):
        model = fms.shard(row, model)
        traced.see_workspaces(recorder)
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
        traced.see_workspaces(recorder)
        recorder.mark(Phase.LOAD)
        steps(row, model, recorder)
    return device.allocator_events(recorder.tape)


def see_buckets(recorder: Recorder, model: nn.Module) -> None:
    """Write DistributedDataParallel's buckets on the tape: flat, together as large as the gradients (reducer.cpp)."""
    buckets = [torch.empty_like(parameter) for parameter in model.parameters() if parameter.requires_grad]
    vars(recorder)["buckets"] = buckets
    recorder.see([("bucket", one) for one in buckets], Role.BUFFER)


def build(row: Row) -> Any:
    """Build the model on `meta`, quantized, with adapters and checkpointing."""
    named = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    dtype = named.get(row["base_dtype"] or "", hf.half(row))
    model = hf.build(row, dtype, "eager" if row["attn_impl"] == "eager" else "sdpa")
    if row["quant"]:
        options: dict[str, Any] = {"quant_type": "nf4", "compress_statistics": "double" in row["quant"]}
        # FSDP flattens no integers: 4-bit weights are then stored in the dtype of the others.
        storage = dtype if "FSDP" in row["parallel"] else torch.uint8
        fourbit.quantize(model, compute_dtype=dtype, quant_storage=storage, **options)
    if row["grad_checkpointing"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if row["lora_r"] is not None:
        model = fms.adapt(row, model)
    if row["torch_compile"]:
        model.compile()
    return model


def steps(row: Row, model: Any, recorder: Recorder) -> None:
    """Run two steps, two micro-batches in each where gradients were accumulated."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = optimizer_of(row, trained)

    def loss_of() -> torch.Tensor:
        ids = traced.token_ids(recorder, row)
        labels = torch.zeros(row["micro_batch"], dtype=torch.int64) if hf.classifies(row) else torch.ones_like(ids)
        with torch.autocast("cpu", hf.half(row), enabled=hf.mixed(row) is not None):
            loss: torch.Tensor = model(input_ids=ids, labels=labels).loss
        return loss

    def update() -> None:
        clip = getattr(model, "clip_grad_norm_", None)
        clip(1.0) if clip is not None else nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    accumulated = 2 if row["grad_accum"] not in (1, None, "none") else 1
    traced.two_steps(recorder, loss_of, update, micro_batches=accumulated)


def in_8_bits(row: Row) -> bool:
    """Return whether a row's optimizer is bitsandbytes' with moments in 8 bits."""
    return row.get("optimizer_bits") == 8 or "8bit" in (row["optimizer"] or "").lower()


def optimizer_of(row: Row, trained: list[nn.Parameter]) -> Any:
    """Return a row's optimizer over what trains."""
    name = (row["optimizer"] or "adamw").lower()
    if "paged" in name:
        return packed.PagedAdamW(trained)
    if in_8_bits(row):
        return bnb.build_optimizer([{"params": trained}], OptimizerConfig(name="adamw_8bit"))
    return next(kind for key, kind in OPTIMIZERS.items() if key in name)(trained, lr=1e-4)
