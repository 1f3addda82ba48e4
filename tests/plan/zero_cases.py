"""Which ZeRO configurations are held against real ranks."""

import itertools
from typing import Any

from ftkit.config import EngineConfig, Full, Lora, ModelConfig, RunConfig

METHODS: dict[str, Any] = {"lora": Lora(), "full": Full()}
CASES = tuple(itertools.product((1, 2, 3), ("none", "cpu"), METHODS))


def case_config(stage: Any, offload: Any, method: str) -> RunConfig:
    """Return the run of one case."""
    return RunConfig(
        task="causal-lm",
        model=ModelConfig(name="llama", precision="bf16"),
        method=METHODS[method],
        engine=EngineConfig(name="deepspeed", zero_stage=stage, offload_optimizer=offload),
    )
