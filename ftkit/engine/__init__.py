"""How training is distributed: one small protocol, two engines; nobody above asks which one it has."""

from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import nn

from ftkit.batching import MicroBatch
from ftkit.config import RunConfig
from ftkit.distributed import ProcessContext

Tensors = dict[str, torch.Tensor]


class Engine(Protocol):
    """A model and its optimizer, on one process or many. All methods are called by every rank, in the same order."""

    name: str
    model: nn.Module
    """The module that was built, wherever its weights are now."""
    device: torch.device
    dtype: torch.dtype
    process: ProcessContext

    def forward(self, micro_batch: MicroBatch, *, is_last: bool = True) -> torch.Tensor:
        """Return logits, [B, C] or [B, T, V]; `is_last` tells of the last micro-batch of a step."""

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Add the gradients of a loss to the sums, which are fp32."""

    def apply_gradients(self, learning_rate: float) -> torch.Tensor:
        """Sum gradients over ranks, clip, update, clear; return their global norm before clipping."""

    def sum_over_ranks(self, value: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over all ranks, on every rank."""

    def trainable_state(self) -> Tensors:
        """Return what trains in fp32, whole, on the CPU of every rank, by name in the model."""

    def load_trainable_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what `trainable_state` returned, perhaps on another engine or number of ranks."""

    def optimizer_state(self) -> Tensors:
        """Return the optimizer's tensors, whole, on the CPU of every rank, as `parameter name/moment`."""

    def load_optimizer_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what `optimizer_state` returned."""

    def held_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield what lives between two steps, each with the part of a breakdown that it is, such as `optimizer`."""

    def full_state(self) -> Tensors:
        """Return all weights, trained and frozen, whole, in the compute dtype, on the CPU of every rank."""


def wants_deepspeed(config: RunConfig, process: ProcessContext) -> bool:
    """Return whether a run uses DeepSpeed: asked for by name or by a setting of its own, or its launcher started it."""
    engine = config.engine
    if engine.name != "auto":
        return engine.name == "deepspeed"
    return engine.wants_deepspeed or (process.launcher == "deepspeed" and engine.zero_stage != 0)


def build_engine(config: RunConfig, model: nn.Module, process: ProcessContext, dtype: torch.dtype) -> Engine:
    """Put a model that is ready to train onto its device or devices.

    Args:
        config: the run.
        model: what `build_model` returned, on the CPU.
        process: the place of this process; its group has been joined.
        dtype: what the model computes in.

    Returns:
        The engine.
    """
    if wants_deepspeed(config, process):
        from ftkit.engine.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(config, model, process, dtype)
    from ftkit.engine.plain import PlainEngine

    return PlainEngine(config, model, process, dtype)
