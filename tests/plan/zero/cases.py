"""Which configurations are held against real ranks: on a tiny Llama, and on the real MiniLM of the embedded default."""

import itertools
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from ftkit.config.engine import EngineConfig
from ftkit.config.precision import Precision
from ftkit.config.recompute import Recompute
from ftkit.config.tree import ModelConfig, RunConfig
from ftkit.data.batching import Shape
from ftkit.models.build import build_model
from ftkit.models.methods.full import Full
from ftkit.models.methods.head import FeatureExtraction
from ftkit.models.methods.lora import Lora, Qlora
from ftkit.models.sources.source import load_config, load_tokenizer, resolve_source
from ftkit.observe.tape import Tape
from tests.plan import models

METHODS: dict[str, Any] = {"lora": Lora(), "full": Full(), "qlora": Qlora(), "feature-extraction": FeatureExtraction()}


class Case(NamedTuple):
    """One configuration; stage 0 is the plain engine, replicated."""

    model: str
    stage: int
    offload: str
    method: str
    checkpointed: float
    num_micro_batches: int = 2
    precision: Precision = "bf16"

    @property
    def config(self) -> RunConfig:
        """The run."""
        engine = EngineConfig(name="deepspeed", zero_stage=self.stage or None, offload_optimizer=self.offload)
        return RunConfig(
            task="causal-lm" if self.model == "llama" else "sequence-classification",
            model=ModelConfig(name=self.model, precision=self.precision, recompute=Recompute(layer=self.checkpointed)),
            method=METHODS[self.method],
            engine=engine if self.stage else EngineConfig(name="plain"),
        )

    @property
    def architecture(self) -> Any:
        """The model's configuration."""
        if self.model == "llama":
            return models.architecture("llama", width=128)
        source = resolve_source(self.config.model, self.config.task)
        return load_config(source, ["0", "1"], load_tokenizer(source).pad_token_id)

    @property
    def shape(self) -> Shape:
        """The micro-batches of one rank."""
        shape = models.shape("llama") if self.model == "llama" else Shape(4, 64, is_padded=True)
        return replace(shape, num_micro_batches=self.num_micro_batches)

    @property
    def dtype(self) -> torch.dtype:
        """That computes."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def build(self) -> nn.Module:
        """Return the model with weights: random ones, or those that it comes with."""
        if self.model == "llama":
            return models.real_model(self.config, self.architecture, self.dtype)
        return build_model(
            self.config, resolve_source(self.config.model, self.config.task), self.architecture, self.dtype
        )


FEW = (
    Case("llama", 0, "none", "full", 0),
    Case("llama", 2, "none", "lora", 0),
    Case("llama", 2, "none", "full", 0, 1),
    Case("llama", 2, "none", "full", 1),
    Case("llama", 1, "none", "full", 0),
    Case("llama", 1, "none", "full", 0, 2, "fp32"),
    Case("llama", 2, "none", "full", 0, 2, "fp32"),
    Case("llama", 3, "none", "full", 0),
    Case("llama", 3, "none", "full", 0, 2, "fp32"),
    Case("llama", 3, "none", "lora", 1),
    Case("llama", 3, "none", "qlora", 0),
    Case("llama", 3, "none", "qlora", 1),
)
MANY = tuple(
    Case(*case)
    for case in itertools.product(("llama", "demo"), (0, 1, 2, 3), ("none", "cpu"), METHODS, (0, 1))
    # What trains is too little for offload to matter in the others.
    if case[2] == "none" or (case[1] and case[3] in ("lora", "full"))
)
SENT = ("allreduce_", "allgather_", "_allgather_base_", "_reduce_scatter_base_", "broadcast_", "barrier")
"""What goes over the wire, of which a plan counts the bytes that are sent."""


def moved_bytes(tape: Tape) -> int:
    """Return the bytes that the operators of the second step read and write."""
    return sum(
        moved * times
        for (_, step, _), counter in tape.costs.items()
        if step == 2
        for (name, _, moved, _), times in counter.items()
        if name.partition(".")[0] not in SENT
    )


SETS = {"few": FEW, "many": MANY}
