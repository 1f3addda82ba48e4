"""Settle how a run makes its loss: in chunks, if that gives what whole logits give on the engine that will train."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from ftkit.data.arrays import TokenSplit
from ftkit.data.batching import Padding, collate
from ftkit.data.beginnings import beginnings, lengths_to_target
from ftkit.engine.protocol import Scorer
from ftkit.errors import ModelError
from ftkit.machine.process import first_decides
from ftkit.models.build import set_training
from ftkit.models.objective import TokenCrossEntropy
from ftkit.models.streaming.stream import stream_of

_NUM_SEQUENCES, _NUM_TARGETS = 2, 32
"""What is compared; more would tell no more, and takes seconds where sequences are long."""
_ROUNDINGS = 32
"""Roundings of a logit that the two forms may be apart: a capped logit is rounded three times, and a sum over the
vocabulary in another order."""


def settle_loss(engine: Scorer, split: TokenSplit, padding: Padding, note: Callable[[str], None]) -> None:
    """Compare both forms of a language model's loss on some targets, and keep whole logits where they differ.

    Args:
        engine: runs the check; every rank calls this, the first one decides.
        split: the sequences.
        padding: what fills up, and where.
        note: told where the forms differ.
    """
    objective = engine.objective
    if not isinstance(objective, TokenCrossEntropy) or not objective.in_chunks:
        return
    rows = np.argsort(split.lengths, kind="stable")[:_NUM_SEQUENCES]
    sample = beginnings(split, rows, lengths_to_target(split, rows, _NUM_TARGETS))
    engine.objective = replace(objective, compares=True)
    set_training(engine.model, False)
    with torch.no_grad():
        micro_batch = collate(sample, np.arange(len(sample)), padding, engine.device)
        whole, chunked, gradient = engine.loss(micro_batch).tolist()
    tolerance = _ROUNDINGS * torch.finfo(engine.dtype).eps
    error = max(abs(chunked - whole) / max(abs(whole), 1.0), gradient)
    is_equal = first_decides(engine.process, lambda: error <= tolerance)
    engine.objective = objective if is_equal else TokenCrossEntropy()
    stream = stream_of(engine.model)
    if not is_equal and stream is not None and stream.layout.has_head:
        raise ModelError(
            f"the loss in chunks, which a streamed head needs, differs for this model by {error:.2g}, where rounding "
            f"explains {tolerance:.2g}; leave engine.stream_head out"
        )
    if not is_equal:
        note(
            f"the loss is made of whole logits: in chunks this model's differs by {error:.2g}, where rounding explains "
            f"{tolerance:.2g}; the plan counts chunks (model.lean=false plans and trains without them)"
        )
