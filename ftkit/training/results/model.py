"""Write the trained model, holding one of its tensors at a time, and know afterwards what was written."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ftkit.engine.protocol import Engine
from ftkit.models.build import trainable_parameters
from ftkit.models.methods import Method
from ftkit.models.partitions import own_tensors
from ftkit.models.saving.dtypes import Named, digest, stored_dtype
from ftkit.models.saving.settings import restore_settings, save_tokenizer
from ftkit.models.sources.source import Source
from ftkit.models.streaming.stream import value_of
from ftkit.records.files import MODEL
from ftkit.training.checkpoints.checkpoint import replacing


def round_as_stored(engine: Engine, method: Method, source: Source) -> None:
    """Round what trains to what it will be stored in, where that is less than it computes in.

    Called by every rank before the last scores are taken, so that they are those of the saved weights.

    Args:
        engine: holds the weights.
        method: an adapter is stored as it computes.
        source: where the base model is, whose type of weights a whole model keeps.
    """
    dtype = None if method.is_adapter else stored_dtype(source)
    if dtype is not None and dtype not in (torch.float32, engine.dtype):
        engine.round_trainable(dtype)


@dataclass(frozen=True)
class Saved:
    """A model that was written.

    Attributes:
        folder: where to.
        dtype: what its weights were rounded to.
        digests: checksums of its weights by their names in the model, as they compute when they are read again.
    """

    folder: Path
    dtype: torch.dtype
    digests: Mapping[str, int]


def save_model(
    engine: Engine,
    method: Method,
    tokenizer: Any,
    source: Source,
    folder: Path,
    load_whole: Callable[[], nn.Module] | None = None,
) -> Saved | None:
    """Write the trained model as plain PEFT or transformers load it; called by every rank, written by the first.

    Args:
        engine: holds the weights, partitioned or not.
        method: knows which of them are the result, and how they are written.
        tokenizer: the run's.
        source: where the base model is.
        folder: the result folder.
        load_whole: loads the model anew, with the frozen weights that the engine does not hold; None: it holds all.

    Returns:
        What was written; None on the other ranks.
    """
    trained = trainable_parameters(engine.model)
    is_part = method.is_adapter or load_whole is not None
    gathered = engine.weights(trained if is_part else own_tensors(engine.model))
    if not engine.process.is_main:
        deque(gathered, maxlen=0)  # each is gathered by all ranks
        return None
    model = engine.model if load_whole is None else load_whole()
    if load_whole is not None:
        frozen = ((name, value_of(one)) for name, one in own_tensors(model).items() if name not in trained)
        gathered = chain(gathered, frozen)
    dtype = (None if method.is_adapter else stored_dtype(source)) or engine.dtype
    digests: dict[str, int] = {}
    with replacing(folder / MODEL) as aside:
        method.save(model, aside, _digested(gathered, dtype, engine.dtype, digests), dtype)
        save_tokenizer(tokenizer, source, aside)
        restore_settings(source, dtype, aside)
    return Saved(folder / MODEL, dtype, digests)


def _digested(weights: Named, stored: torch.dtype, computing: torch.dtype, digests: dict[str, int]) -> Named:
    """Pass weights on, and note a checksum of each as it computes when it is read again."""
    for name, tensor in weights:
        digests[name] = digest(tensor, stored, computing)
        yield name, tensor
