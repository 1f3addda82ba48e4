"""Estimate sizes from a model's configuration, by a published formula, where its code cannot be traced.

State is counted exactly. Activations are those of Korthikanti et al. 2022 (Reducing Activation Recomputation in Large
Transformer Models, section 4): a layer keeps B T D (34 + 5 H T / D) bytes in half precision, whose second term is
the score matrix. A layer that recomputes what is cheap keeps its input and its products (query, key, value, result and
projection of the attention, both of the MLP), 22 B T D; one that recomputes all, its input, 2 B T D. One layer at a
time is there whole. Of a mixture's layer the 19 of the 34 that are the MLP's are what its experts keep (`mixture`).
"""

from typing import Any

from ftkit.config.recompute import Recompute
from ftkit.config.tree import RunConfig
from ftkit.plan.needs.mixture import find_mixture
from ftkit.records.figures import MemoryBreakdown

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
"""What the formula reads of a configuration."""
BYTES_PER_VALUE = 34
MLP_PER_VALUE = 19
PRODUCTS_PER_VALUE = 22
SCORES_PER_VALUE = 5


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
