"""Estimate sizes from a model's configuration, by a published formula, where its code cannot be traced.

State is counted exactly. Activations are those of Korthikanti et al. 2022 (Reducing Activation Recomputation in Large
Transformer Models, section 4): a layer keeps B T D (34 + 5 H T / D) bytes in half precision, whose second term is
the score matrix. A layer that recomputes what is cheap keeps its input and its products (query, key, value, result and
projection of the attention, both of the MLP), 22 B T D; one that recomputes all, its input, 2 B T D. One layer at a
time is there whole. Of a mixture's layer the 19 of the 34 that are the MLP's are what its experts keep (`mixture`).
"""

from dataclasses import dataclass
from typing import Any

from ftkit.config.recompute import Recompute
from ftkit.config.tree import RunConfig
from ftkit.engine.resolve import EngineKind, ResolvedRun
from ftkit.plan.needs.mixture import find_mixture
from ftkit.records.figures import MemoryBreakdown

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
"""What the formula reads of a configuration."""
BYTES_PER_VALUE = 34
MLP_PER_VALUE = 19
PRODUCTS_PER_VALUE = 22
SCORES_PER_VALUE = 5


@dataclass(frozen=True)
class Elsewhere:
    """The bytes that one rank has beside its device: in the host's memory, the locked part of that, and on a disk.

    Locked too are those that all ranks of a node share.
    """

    host_bytes: int = 0
    pinned_bytes: int = 0
    nvme_bytes: int = 0
    shared_bytes: int = 0


def missing_size(architecture: Any) -> str | None:
    """Return a size that the formula needs and a configuration does not have; None where it has them all."""
    return next((name for name in SIZES if getattr(architecture, name, None) is None), None)


def activation_bytes(architecture: Any, batch: int, length: int, itemsize: int, recompute: Recompute) -> int:
    """Return the bytes that a forward leaves for its backward.

    Args:
        architecture: with `hidden_size`, `num_hidden_layers`, `num_attention_heads`.
        batch: sequences.
        length: tokens of each.
        itemsize: bytes of the compute dtype.
        recompute: the shares of the layers that do.

    Returns:
        Bytes, of all layers.
    """
    hidden, heads = int(architecture.hidden_size), int(architecture.num_attention_heads)
    levels = recompute.levels(int(architecture.num_hidden_layers))
    values = batch * length * hidden
    whole = values * (BYTES_PER_VALUE + SCORES_PER_VALUE * heads * length / hidden) * itemsize / 2
    if (mixture := find_mixture(architecture)) is not None:
        whole += mixture.kept_values(batch * length) * itemsize - values * MLP_PER_VALUE * itemsize / 2
    num_whole = levels.count("none") + (levels.count("none") < len(levels))
    products = values * PRODUCTS_PER_VALUE * itemsize / 2
    return int(num_whole * whole + levels.count("cheap") * products + levels.count("layer") * values * itemsize)


def breakdown(
    config: RunConfig, architecture: Any, batch: int, length: int, itemsize: int, weights: tuple[int, int]
) -> MemoryBreakdown:
    """Return the parts of the peak of a plain step.

    Args:
        config: the run.
        architecture: of its model.
        batch: sequences in a micro-batch.
        length: tokens of each.
        itemsize: bytes of the compute dtype.
        weights: (all elements, elements that train).

    Returns:
        The parts; logits and their gradient in fp32 are the temporaries.
    """
    total, trainable = weights
    masters = 4 * trainable if itemsize < 4 else 0
    recompute = config.model.recompute
    rows = batch * length * int(architecture.vocab_size) if config.task == "causal-lm" else 0
    return MemoryBreakdown(
        parameter_bytes=total * itemsize,
        gradient_bytes=4 * trainable,
        optimizer_bytes=8 * trainable + masters,
        activation_bytes=0 if trainable == 0 else activation_bytes(architecture, batch, length, itemsize, recompute),
        temporary_bytes=rows * (itemsize + 3 * 4),
    )


def source_of(run: ResolvedRun) -> str:
    """Return where the formula is from, and what of a run it leaves out."""
    beside = ", without ZeRO's buckets and gathered weights" if run.engine is EngineKind.DEEPSPEED else ""
    return f"Korthikanti et al. 2022{beside}"


def shared_out(parts: MemoryBreakdown, run: ResolvedRun, architecture: Any) -> tuple[MemoryBreakdown, Elsewhere]:
    """Return what one rank holds on its device of the parts of a plain step, and what lies elsewhere.

    ZeRO shares whole kinds out and offloads them (`plan.zero.share` has the sums for a step that was traced). Its
    buckets and the weights that stage 3 gathers are not counted. Activations wait on the host but for two layers.

    Args:
        parts: of the plain engine on one device, as `breakdown` returns them.
        run: the run.
        architecture: of its model, with `num_hidden_layers`.
    """
    held, away, num_layers = parts.model_dump(), 0, int(architecture.num_hidden_layers)
    if run.engine is EngineKind.DEEPSPEED:
        held["optimizer_bytes"] = 3 * parts.gradient_bytes  # moments, and masters beside weights in fp32 too
        kinds = ("optimizer_bytes", "gradient_bytes", "parameter_bytes")[: run.zero_stage]
        held |= {kind: -(-held[kind] // run.devices.world_size) for kind in kinds}
    if run.offload_optimizer != "none":
        for kind in ("optimizer_bytes", "gradient_bytes")[: 2 if run.zero_stage == 3 else 1]:
            away, held[kind] = away + held[kind], 0
    if run.offload_parameters != "none":
        away, held["parameter_bytes"] = away + held["parameter_bytes"], 0
    waiting = (
        parts.activation_bytes * max(0, num_layers - 2) // num_layers if run.config.model.offload_activations else 0
    )
    held["activation_bytes"] -= waiting
    if "nvme" in (run.offload_optimizer, run.offload_parameters):
        return MemoryBreakdown(**held), Elsewhere(waiting, waiting, away)
    return MemoryBreakdown(**held), Elsewhere(away + waiting, away + waiting)  # pinned, as in ds_configs/
