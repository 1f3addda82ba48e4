"""torchtune: its own builders, losses, checkpointing, offloading and optimizer hooks; its README's ladder of switches.

Source: pytorch/torchtune, README.md and recipes/full_finetune_single_device.py, lora_finetune_single_device.py.

- The table does not say whether AdamW was the fused one. The switch for checkpointing leaves 24.9 GiB, and weights,
  gradients, moments and the list of temporaries of the other one alone are 29.9: it was the fused one.
- Packed batches were masked by flex attention, which keeps what the flash kernel keeps. It is compiled by itself, and
  no graph of a compiled layer goes through it (torchtune/modules/attention_utils.py, compile_friendly_flex_attention).
- Most rows were compiled, with the torch of the time, 2.5, whose backward does not write over what the forward kept.
  The recipe of full fine-tuning drops what compile_loss returns: of the losses only the chunked one, which is changed
  in place, is compiled there.
- The last norm is compiled too, though compile_model names the layers alone. Nothing says why; the rows do: what a norm
  keeps otherwise, 0.10 GB, is exactly what three of them would be too high, and 0.05 a fourth, of whose layers the
  offloading then holds one less. Six rows of an earlier draft of the table, with 5 x 2048 tokens (pull request 2003,
  two digits after the point), then have one distance in common, 0.09 GiB less than was measured. The released recipes
  do not compile it (measured on an H200), and rows that say `AS_RELEASED` are traced without.
- Each percentage of the table is of figures that were not rounded, so that together they narrow each figure to a window
  of some hundredths of a GB. The six rows of full fine-tuning with packed batches lie in theirs.
- The rows of LoRA and QLoRA are of another run than the README names (`open_fact`). We ran the recipe with its settings
  on an H200 with torch 2.11: 9.615 and 5.446 GB, 9.565 and 5.395 with an A100's workspaces, 9.515 and 5.345 with the
  last norm compiled as well. The trace is within 0.05 % of the measured pair, while the table has 9.118 to 9.126 and
  4.950 to 4.955 GB, 0.390 to 0.396 less. It is not the first step, which has no moments yet: that would be 0.368 less.
  Rank 16 would be 0.405, both moments 0.360, no adapters in the MLPs 0.363, and a backward in place of the logits
  0.263; none fits alone, and nothing speaks for one of the sums that would.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, partialmethod
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.utils import checkpoint

from benchmarks.rows import Row, rank_of
from benchmarks.stacks import compiled, facts, own_models, packed, traced
from ftkit.observe.tape import Tape

GROUPS = ("torchtune/README_flags", "own/torchtune")
REQUIREMENTS = (
    "torchtune==0.4.0",
    "torchao==0.6.1",
    "omegaconf==2.3.0",
    "antlr4-python3-runtime==4.9.3",
    "tiktoken==0.8.0",
    "sentencepiece==0.2.0",
    "blobfile==3.0.0",
)
MODEL = re.compile(r"(llama|qwen|gemma|mistral|phi)-?(\d(?:\.\d)?)?\b.*?-(\d+(?:\.\d)?b|mini)")
"""Family, its version and size in the name of a model, such as llama-3.2-3b."""
AS_RELEASED = ", its released recipes"
"""What a row says whose recipe is that of the release, which compiles no norm outside of the layers."""
ATTENTION = ("q_proj", "k_proj", "v_proj", "output_proj")


FACTS = facts.PLAIN | {
    "method": "full|lora|qlora",
    "lora_target_modules": rf"None|{facts.words(*ATTENTION, 'mlp', '[qkv]', 'output', 'w1,w2,w3')}",
    "trainable_notes": r"all|alpha \d+, dropout 0; LoRA params bf16",
    "base_dtype": r"bfloat16|NF4 \(torchao NF4Tensor\) on LoRA-targeted linears",
    "quant": "None|nf4 torchao",
    "compute_dtype": "bf16 pure",
    "optimizer": r"(?:torch\.optim\.AdamW|bnb PagedAdamW)(?:,? \+? ?optimizer_in_bwd)?",
    "grad_accum": "1",
    "seq_kind": r"fixed \(packed\)|max \d+ but UNPACKED alpaca \(dynamic\)",
    "grad_checkpointing": "True|False",
    "attn_impl": r"torch SDPA \(causal\)|flex attention over packed documents",
    "loss_head": "CrossEntropyLoss on full logits(?:, compiled)?|CEWithChunkedOutputLoss",
    "torch_compile": "True|False",
    "offload": "none|activations to CPU",
    "framework": f"torchtune(?:{AS_RELEASED})?",
}


def reason_not_traced(row: Row) -> str | None:
    """Return why a row cannot be reproduced, or None."""
    return facts.reason_unknown(row, FACTS) or own_models.reason_of_another_model(row)


def trace_row(row: Row) -> Tape:
    """Trace two steps of the recipe."""
    from torchtune import training

    with traced.recording() as recorder, computing_of_the_time(), compiled.compiling(donates=False):
        model = build(row)
        offloading = training.get_act_offloading_ctx_manager(model, "activations" in (row["offload"] or ""))
        traced.see(recorder, row, nn.Module())  # the model was made under the recorder, and is on the tape
        update = optimizer(row, model)
        loss_of = loss_step(row, model, offloading, lambda: traced.token_ids(recorder, row))
        traced.two_steps(recorder, loss_of, update)
    return recorder.tape


def open_fact(row: Row) -> str | None:
    """Return what is not known of the table's adapters: a run with the settings that it names measures otherwise."""
    if row["method"] == "full" or AS_RELEASED in row["framework"]:
        return None
    return (
        "which settings the table's runs of adapters had is not published. We ran the recipe with those that the "
        "README names (own_torchtune_lora_compile and own_torchtune_qlora_compile below): the trace is within 0.05% "
        "of both, and the table's figures are 0.39 GB below what was measured, even without the larger workspaces of "
        "an H200 and with the last norm compiled, as the table's other rows have it. Rank 16 in the place of 64 would "
        "be 0.405 GB less, and a figure read before there were moments 0.368; what it was is not known"
    )


@contextmanager
def computing_of_the_time() -> Iterator[None]:
    """Answer what torchtune would ask of CUDA, or read from values."""
    from torchtune.models import llama3_1
    from torchtune.training import _activation_offloading as offloading

    scaled = llama3_1._position_embeddings.Llama3ScaledRoPE

    with traced.patched(
        checkpoints_of_the_time(),
        mock.patch.object(offloading, "torch", _TorchWithAHost()),
        mock.patch.object(torch.Tensor, "record_stream", _record_stream),
        mock.patch.object(scaled, "apply_scaling", lambda _, frequencies, *__: frequencies),
        mock.patch.object(torch.utils, "swap_tensors", partial(_swap, torch.utils.swap_tensors)),
    ):
        yield


@contextmanager
def checkpoints_of_the_time() -> Iterator[None]:
    """Let a checkpoint save an empty tensor before its inputs, as torch's did until 2026 (its pull request 174327).

    Offloading counts by the tensors that are saved how long ago one was copied.
    """
    frame = checkpoint._CheckpointFrame
    with traced.patched(
        mock.patch.object(frame, "save_inputs", partialmethod(_save_inputs, frame.save_inputs)),
        mock.patch.object(frame, "get_inputs", partialmethod(_get_inputs, frame.get_inputs)),
    ):
        yield


def _save_inputs(frame: Any, save: Callable[..., None], *inputs: Any) -> None:
    save(frame, torch.empty(0, requires_grad=True), *inputs)


def _get_inputs(frame: Any, get: Callable[[Any], list[Any]]) -> list[Any]:
    return get(frame)[1:]


def _record_stream(_: torch.Tensor, __: Any) -> None:
    """Do nothing, by a function and no Mock: Dynamo asks all that a tensor can do for its name."""


def _swap(swap: Callable[[Any, Any], None], one: Any, other: Any) -> None:
    """Swap a fake weight with its quantized one; what the fake mode remembers of it would forbid that."""
    memo = one.fake_mode.fake_tensor_converter.meta_converter.tensor_memo
    for key in [key for key, kept in memo.items() if kept is one]:
        del memo[key]
    swap(one, other)


class _TorchWithAHost:
    """torch, as activation offloading sees it: what it copies to the host is no storage of the device."""

    cuda = SimpleNamespace(
        default_stream=lambda: _Stream(), Stream=lambda: _Stream(), stream=lambda _: traced.patched()
    )

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def empty_like(tensor: torch.Tensor, **_: Any) -> "_HostTensor":
        return _HostTensor(tensor.shape, tensor.stride(), tensor.dtype)


class _Stream:
    """A stream of which only the order of what is asked matters here."""

    def wait_stream(self, other: "_Stream") -> None:
        """Wait."""

    def wait_event(self, event: None) -> None:
        """Wait."""

    def record_event(self) -> None:
        """Return no event."""


class _HostTensor:
    """A tensor in the host's memory."""

    def __init__(self, shape: torch.Size, stride: tuple[int, ...], dtype: torch.dtype) -> None:
        """Keep what it takes to bring it back."""
        self._made = shape, stride, dtype

    def copy_(self, tensor: torch.Tensor, non_blocking: bool = False) -> None:
        """Take over the values."""

    def to(self, *_: Any, **__: Any) -> torch.Tensor:
        """Return a tensor on the device."""
        shape, stride, dtype = self._made
        return torch.empty_strided(shape, stride, dtype=dtype)


def build(row: Row) -> Any:
    """Build a row's model in bf16, with its adapters and its checkpointing; inside `recording`."""
    from torchtune import modules, training
    from torchtune.modules.peft import get_adapter_params, set_trainable_params

    make, fields = builder(row)
    with training.set_default_dtype(torch.bfloat16):
        model = make(**fields)
    if row["method"] != "full":
        set_trainable_params(model, get_adapter_params(model))
    if "packed" in row["seq_kind"]:
        keep_graphs_out_of_attention(model)
    if row["torch_compile"]:
        training.compile_model(model, verbose=False)
        if AS_RELEASED not in row["framework"]:
            model.norm.compile()
    if row["grad_checkpointing"]:
        training.set_activation_checkpointing(model, auto_wrap_policy={modules.TransformerSelfAttentionLayer})
    return model.train()


def keep_graphs_out_of_attention(model: Any) -> None:
    """Let graphs end before attention and begin anew after it, as they do at flex attention."""
    for layer in model.layers:
        layer.attn._attention_call = torch.compiler.disable(layer.attn._attention_call)


def builder(row: Row) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return torchtune's builder of a row's model, and its arguments; such as `lora_llama3_2_3b`."""
    from importlib import import_module

    found = MODEL.search(row["model_id"].rsplit("/", 1)[-1].lower())
    if found is None:
        raise ValueError(f"torchtune has no builder for {row['model_id']}")
    family = f"{found[1]}{(found[2] or '').replace('.', '_')}"
    name = f"{family}_{found[3].replace('.', '_')}"
    module = import_module(f"torchtune.models.{family}")
    if row["method"] == "full":
        return getattr(module, name), {}
    named = row["lora_target_modules"] or ""
    every = named.startswith("all")
    fields = {
        "lora_attn_modules": [one for one in ATTENTION if every or one in named],
        "apply_lora_to_mlp": every or "mlp" in named,
        "lora_rank": rank_of(row),
        "lora_alpha": 2 * rank_of(row),
    }
    return getattr(module, f"lora_{name}"), fields | {"quantize_base": row["method"] == "qlora"}


def loss_step(row: Row, model: Any, offloading: Any, tokens: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """Return what the recipe calls its loss step, with the multiplication by the number of tokens after it."""
    from torchtune import training
    from torchtune.modules.loss import CEWithChunkedOutputLoss

    compute: Any = nn.CrossEntropyLoss()
    if "Chunked" in (row["loss_head"] or ""):
        compute = CEWithChunkedOutputLoss()
        model.set_num_output_chunks(compute.num_output_chunks)
    if row["torch_compile"]:
        made: Any = training.compile_loss(compute, verbose=False)
        if row["method"] != "full":
            compute = made
    ignored = torch.full((row["micro_batch"], 1), compute.ignore_index)

    def loss_of() -> torch.Tensor:
        ids = tokens()
        labels = torch.ones_like(ids)
        places = torch.ones_like(ids) if "packed" in row["seq_kind"] else None
        count = (labels != compute.ignore_index).sum()
        with offloading:
            logits = model(ids, input_pos=places)
        labels = torch.hstack((labels[..., 1:], ignored))
        if not isinstance(logits, list):
            logits, labels = logits.reshape(-1, logits.size(-1)), labels.reshape(-1)
        loss = compute(logits, labels)
        del logits
        return loss * count

    return loss_of


def optimizer(row: Row, model: Any) -> Callable[[], None]:
    """Return the update that follows the backward: none where the optimizer runs in the backward."""
    from torchtune import training

    def make(parameters: Any) -> torch.optim.Optimizer:
        if "Paged" in row["optimizer"]:
            return packed.PagedAdamW(parameters)
        return torch.optim.AdamW(parameters, lr=2e-5, fused=True)

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if "in_bwd" in row["optimizer"]:
        training.register_optim_in_bwd_hooks(model=model, optim_dict={one: make([one]) for one in trained})
        return lambda: None
    adamw = make(trained)

    def update() -> None:
        training.scale_grads(model, torch.ones(()))
        adamw.step()
        adamw.zero_grad(set_to_none=True)

    return update
