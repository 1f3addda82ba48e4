"""Which configurations are held against real ranks: on a tiny Llama, and on the real MiniLM of the embedded default."""

import itertools
from typing import Any, NamedTuple

from torch import nn

from ftkit.config import EngineConfig, FeatureExtraction, Full, Lora, ModelConfig, Qlora, RunConfig
from ftkit.model import build_model
from ftkit.plan.trace import Shape
from ftkit.source import load_config, load_tokenizer, resolve_source
from tests.plan import models

METHODS: dict[str, Any] = {"lora": Lora(), "full": Full(), "qlora": Qlora(), "feature-extraction": FeatureExtraction()}


class Case(NamedTuple):
    """One configuration; stage 0 is the plain engine, replicated."""

    model: str
    stage: int
    offload: str
    method: str
    checkpointed: float

    @property
    def config(self) -> RunConfig:
        """The run."""
        engine = EngineConfig(name="deepspeed", zero_stage=self.stage or None, offload_optimizer=self.offload)
        return RunConfig(
            task="causal-lm" if self.model == "llama" else "sequence-classification",
            model=ModelConfig(name=self.model, precision="bf16", gradient_checkpointing=self.checkpointed),
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
        return models.shape("llama") if self.model == "llama" else Shape(4, 64, 2, is_padded=True)

    def build(self, dtype: Any) -> nn.Module:
        """Return the model with weights: random ones, or those that it comes with."""
        if self.model == "llama":
            return models.real_model(self.config, self.architecture, dtype)
        return build_model(self.config, resolve_source(self.config.model, self.config.task), self.architecture, dtype)


FEW = (
    Case("llama", 0, "none", "full", 0),
    Case("llama", 2, "none", "lora", 0),
    Case("llama", 3, "none", "full", 0),
    Case("llama", 3, "none", "lora", 1),
    Case("llama", 3, "none", "qlora", 1),
)
MANY = tuple(
    Case(*case)
    for case in itertools.product(("llama", "demo"), (0, 1, 2, 3), ("none", "cpu"), METHODS, (0, 1))
    # What trains is too little for offload to matter in the others.
    if case[2] == "none" or (case[1] and case[3] in ("lora", "full"))
)
SETS = {"few": FEW, "many": MANY}
