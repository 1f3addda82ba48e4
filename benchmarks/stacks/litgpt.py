"""LitGPT: its own model code, precision plugins and loops; the tables of resources of October 2023.

Source: Lightning-AI/litgpt, tutorials/resource-tables.md, finetune/lora.py, full.py and adapter.py. The first version
on the package index is of April 2024; its code keeps the tensors that the code of the tables kept, but for RMSNorm,
which multiplied by its weight before it went back to bf16 (lit_gpt/rmsnorm.py): said here.
The loops keep the logits and the loss, and with it the graph, until the next iteration has its own.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import nn

from benchmarks.rows import Row, arch_of
from benchmarks.stacks import autocast, facts, fsdp, own_models, packed, traced
from ftkit.observe.recorder import Recorder
from ftkit.observe.tape import Role, Tape
from ftkit.step.observer import Phase

GROUPS = ("litgpt/resource-tables",)
REQUIREMENTS = (
    "litgpt==0.2.0",
    "lightning==2.2.5",
    "bitsandbytes==0.41.1",
    "setuptools==69.5.1",
    "lightning-utilities==0.11.9",
    "torchmetrics==1.4.3",
)

CHUNK_TOKENS = 128
"""`lm_head_chunk_size` of every loop but that of full fine-tuning (litgpt/finetune/lora.py)."""
USUAL_TOKENS = 256
"""What 96 % of Alpaca's samples have at most (tloen/alpaca-lora, finetune.py)."""
TARGETS = ("query", "key", "value", "projection", "mlp", "head")
METHODS = ("lora", "qlora", "full", "llama_adapter_v1", "llama_adapter_v2")

NAMES = {"TinyLlama-1.1B": "tiny-llama-1.1b"}
"""Models that LitGPT has under another name."""


FACTS = facts.PLAIN | {
    "method": "|".join(METHODS),
    "lora_target_modules": rf"None|{facts.words(*TARGETS)}(?:\(lora_query, lora_value of fused attn\))?",
    "trainable_notes": r"None|all parameters|LLaMA-Adapter; default length 10, start layer 2"
    r"|lora_alpha 16,? dropout 0\.\d+; LoRA (?:weights|params) (?:in )?bf16(?: \(bf16-true\))?",
    "base_dtype": "bfloat16|float32|bnb.[nf][fp]4(?:-dq)?",
    "quant": r"None|bnb\.[nf][fp]4(?:-dq)?(?: \(bitsandbytes via lightning BitsandbytesPrecision.*\))?",
    "compute_dtype": r"bf16-true(?: \(no autocast\))?|bf16-mixed autocast",
    "optimizer": r"torch\.optim\.AdamW|bnb\.optim\.PagedAdamW(?: \(32-bit\))?",
    "optimizer_bits": "None|32",
    "grad_accum": r"(?:global batch|global_batch_size|global) \d+|None",
    "seq_kind": "fixed at peak.*|max(?: .*)?",
    "grad_checkpointing": "True|False",
    "attn_impl": r"(?:torch )?(?:2\.1 )?SDPA(?: \(flash-attn2 kernel used if the package was installed\))?",
    "loss_head": r"(?:lm_head .*|full logits \+ )?chunk.*",
    "fused_kernels": "none|None",
    "torch_compile": "False|None",
    "parallel": "none|FSDP (?:auto_)?wrap Block.*",
    "offload": "none|None",
    "framework": "lit-?gpt",
}
"""What the tables' recipes do, whose scripts say what a row leaves out."""


def reason_not_traced(row: Row) -> str | None:
    """Return why a row cannot be reproduced, or None."""
    if row["quant"] and row["n_gpus"] > 1:
        return "4-bit weights on several GPUs, which LitGPT refuses"
    return facts.reason_unknown(row, FACTS) or own_models.reason_of_another_model(row)


def trace_row(row: Row) -> Tape:
    """Trace the iteration with the longest sample, then the optimizer's first step."""
    with ExitStack() as stack:
        model = build(row)
        for context in (traced.computing(), autocast.cuda_lists(), tensor_max(), norms_of_the_time(row)):
            stack.enter_context(context)
        device = None
        if row["n_gpus"] > 1:
            traced.fake(model)
            device = stack.enter_context(fsdp.rank_of(row["n_gpus"]))
            model = shard(model)
        recorder = stack.enter_context(traced.recorder())
        if device is not None:
            stack.enter_context(device.told_to(recorder))
        if row["quant"]:
            stack.enter_context(packed.no_library())
            for _ in range(2):  # at first what was initialized, then what was loaded
                recorder.see(packed.quantize(model, torch.float16), Role.PARAMETER)
        traced.fake(model)
        model.max_seq_length = row["seq_len"]  # makes the rotary tables anew, in fp32
        traced.see(recorder, row, model)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        iterate(recorder, row, model, optimizer(row, trained))
    return recorder.tape


def mixed(row: Row) -> bool:
    """Return whether a row computes under autocast, its weights in fp32."""
    return "mixed" in row["compute_dtype"]


def shard(model: Any) -> Any:
    """Shard as Fabric's FSDPStrategy does with a policy of blocks, and checkpoint each block inside its unit."""
    from litgpt.model import Block
    from torch.distributed.algorithms._checkpoint import checkpoint_wrapper as checkpointing
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    sharded = FullyShardedDataParallel(
        model,
        auto_wrap_policy=ModuleWrapPolicy({Block}),
        use_orig_params=True,
        limit_all_gathers=True,
        device_id=fsdp.CPU,
    )
    checkpointing.apply_activation_checkpointing(sharded, check_fn=lambda module: isinstance(module, Block))
    return sharded


def build(row: Row) -> Any:
    """Build a row's model on `meta`, with its 4-bit layers."""
    module, fields = kind(row)
    name = row["model_id"].rsplit("/", 1)[-1]
    config = module.Config.from_name(NAMES.get(name, name), **fields)
    with torch.device("meta"):
        model = module.GPT(config).to(torch.float32 if mixed(row) else torch.bfloat16)
    freeze = {
        "lora": "mark_only_lora_as_trainable",
        "qlora": "mark_only_lora_as_trainable",
        "llama_adapter_v1": "mark_only_adapter_as_trainable",
        "llama_adapter_v2": "mark_only_adapter_v2_as_trainable",
    }.get(row["method"])
    if freeze:
        getattr(module, freeze)(model)
    if row["quant"]:
        packed.replace_linear(model, torch.bfloat16, double="-dq" in row["base_dtype"], kind=row["quant"][4:7])
    return model.train()


def kind(row: Row) -> tuple[Any, dict[str, Any]]:
    """Return LitGPT's module for a method, and what the row says of its configuration."""
    if row["method"] in ("lora", "qlora"):
        from litgpt import lora

        named = (row["lora_target_modules"] or "").partition("(")[0].replace(" ", "").split(",")
        fields = {f"lora_{name}": name in named for name in TARGETS}
        return lora, fields | {"lora_r": row["lora_r"], "lora_alpha": 16, "lora_dropout": 0.05}
    from litgpt import adapter, adapter_v2, model

    return {"llama_adapter_v1": adapter, "llama_adapter_v2": adapter_v2}.get(row["method"], model), {}


@contextmanager
def tensor_max() -> Iterator[None]:
    """Answer `max(1, number of targets)` in LitGPT's loss without reading the number."""
    from litgpt import utils

    with mock.patch.object(utils, "max", lambda _, count: count, create=True):
        yield


def norms_of_the_time(row: Row) -> Any:
    """Let RMSNorm compute as in 2023, where a row is of then."""
    from litgpt.model import RMSNorm

    return mock.patch.object(RMSNorm, "forward", _norm) if row["date"] < "2024" else traced.patched()


def _norm(self: Any, x: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    scale = torch.rsqrt(torch.mean(wide * wide, dim=self.dim, keepdim=True) + self.eps)
    normed: torch.Tensor = self.weight * (wide * scale)
    return normed.to(x.dtype)


def iterate(recorder: Recorder, row: Row, model: Any, adamw: torch.optim.Optimizer) -> None:
    """Run iterations of the loop, each with the optimizer's step where it ends an accumulation.

    What an iteration leaves behind, gradients, moments and logits, is there in the next one: that matters where a rank
    keeps the whole gradients of its units until they are summed over ranks.
    """
    recorder.begin_step(1)
    logits = loss = None
    for tokens, ends in iterations(row):
        ids = torch.ones(row["micro_batch"], tokens, dtype=torch.int64)
        targets = torch.ones_like(ids)
        with traced.patched() if ends or row["n_gpus"] == 1 else model.no_sync():
            with recorder.during(Phase.FORWARD):
                with torch.autocast("cpu", torch.bfloat16, enabled=mixed(row)):
                    made = model(ids) if row["method"] == "full" else model(ids, lm_head_chunk_size=CHUNK_TOKENS)
                logits = in_fp32(made)
                del made
                loss = loss_of(logits, targets)
            with recorder.during(Phase.BACKWARD):
                (loss / 8).backward()
        if ends:
            with recorder.during(Phase.OPTIMIZER):
                adamw.step()
                adamw.zero_grad()
    del logits, loss


def iterations(row: Row) -> list[tuple[int, bool]]:
    """Return tokens, and whether an accumulation of gradients ends, of the iterations that decide a peak.

    On one GPU that is the longest sample's. On several it is a later one, when there are gradients, and what it is
    is not published (`open_fact`): half of the longest of all stands for it. A usual sample is between the two, since
    the logits of an iteration live until the next one has its own. In full fine-tuning the moments are there too, after
    the first step.
    """
    longest = row["seq_len"]
    if row["n_gpus"] == 1:
        return [(longest, True)]
    if row["method"] == "full":
        return [(longest, True), (longest, False), (longest, False)]
    return [(longest, False), (min(USUAL_TOKENS, longest), False), (longest // 2, False)]


def open_fact(row: Row) -> str | None:
    """Return the length that decides the peak of adapters on several GPUs, which nobody has published.

    The loops draw samples by a seed and the size of a micro-batch alone, so that all models had the same ones.
    """
    if row["n_gpus"] == 1 or row["method"] == "full":
        return None
    return (
        "the longest sample after the first iteration, which decides the peak, is not published; half of the longest "
        "of all is traced. The seed drew the same ones for every model: with 0.56, 0.58 and 0.64 of the longest, for "
        "1, 2 and 4 sequences, the nine rows of 2 GPUs would be within 0.5%. A tenth more moves them by 0.2 to 3.6%"
    )


def forwards_before(row: Row) -> int:
    """Return the forwards before the first iteration: micro-batches that are evaluated, and 100 tokens of an example.

    They are in the time that a script prints (`validate` in finetune/lora.py at 8641822, and in finetune/adapter.py and
    adapter_v2.py at 0f021f3a, where the evaluation ends after two).
    """
    return 100 + (100 if row["method"] in ("lora", "qlora") else 2)


def numbers_listed(row: Row) -> int:
    """Return the numbers of which a forward makes tensors: where the outputs of LoRA go in each layer's attention.

    They are asked for where not all of query, key and value are adapted (lit_gpt/lora.py at 8641822, `zero_pad`).
    """
    adapted = re.findall(r"query|key|value", (row["lora_target_modules"] or "").partition("(")[0])
    arch = arch_of(row)
    return arch["layers"] * arch["hidden"] * len(adapted) if len(adapted) < len(("query", "key", "value")) else 0


def loss_of(logits: Any, targets: torch.Tensor) -> torch.Tensor:
    """Shift by one and return the loss, as the loops do."""
    from litgpt.utils import chunked_cross_entropy

    if isinstance(logits, list):
        logits[-1] = logits[-1][..., :-1, :]
    else:
        logits = logits[..., :-1, :]
    loss: torch.Tensor = chunked_cross_entropy(logits, targets[..., 1:])
    return loss


def in_fp32(logits: Any) -> Any:
    """Return what Fabric's wrapper of the model returns: floating outputs in the default dtype."""
    from lightning.fabric.plugins.precision.half import HalfPrecision

    return HalfPrecision("bf16-true").convert_output(logits)


def optimizer(row: Row, trained: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Return torch's AdamW, or bitsandbytes' paged one with 4-bit weights."""
    return packed.PagedAdamW(trained) if row["quant"] else torch.optim.AdamW(trained, lr=3e-4, weight_decay=0.01)
