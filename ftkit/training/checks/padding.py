"""Settle where a run pads its micro-batches, by the check of `models/padding.py` on the engine that will train."""

from collections.abc import Callable, Iterable
from typing import Any, cast

import numpy as np
import torch

from ftkit.data.arrays import TokenSplit
from ftkit.data.batching import Indices, Padding
from ftkit.data.beginnings import beginnings
from ftkit.engine.protocol import Scorer
from ftkit.engine.resolve import ResolvedRun
from ftkit.machine.process import first_decides
from ftkit.models.build import set_training
from ftkit.models.padding import Found, find_side, tolerance_of, unequal_pairs
from ftkit.training.trunk.once import Whole

_FIRST_TOKENS = (32, 64)
"""Of the shorter and the longer sequence of a language model that are tried; more takes seconds, and tells no more."""


def settle_padding(
    run: ResolvedRun, engine: Scorer | Whole, splits: Iterable[TokenSplit], tokenizer: Any, note: Callable[[str], None]
) -> tuple[ResolvedRun, Padding]:
    """Find what fills up micro-batches and where; say what is unusual.

    Args:
        run: its `model.padding` may say the side, and its cut whether anything is ever padded.
        engine: runs the check, or the model that no engine has yet; every rank calls this, the first one decides.
        splits: the sequences; the first split with some of unequal length is tried.
        tokenizer: has the pad token; learns the side where it is the left, since it is saved with the model.
        note: told what is unusual.

    Returns:
        The run, with sequences one at a time where padding changes logits on either side; and how it pads.
    """
    padding = Padding(tokenizer.pad_token_id)
    tried = ((split, unequal_pairs(split, run.config.batch, engine.dtype)) for split in splits)
    split, pairs = next(((split, pairs) for split, pairs in tried if pairs), (None, []))
    asked = run.config.model.padding
    if asked == "auto" and split is not None:
        found = _check(engine, split, pairs, padding.token_id)
        if found.side is None:
            note(
                f"warning: padding changes this model's logits on either side, by {found.error:.2g} of the largest, "
                f"where rounding explains {found.tolerance:.2g}; so sequences run one at a time (model.padding=right "
                "pads all the same)"
            )
            return run.cut_by(run.config.batch.one_at_a_time()), padding
        if found.side == "left":
            note("padding: on the left, since on the right it changes this model's logits")
        padding = Padding(padding.token_id, found.side)
    elif asked == "left":
        padding = Padding(padding.token_id, "left")
    if padding.side == "left":
        tokenizer.padding_side = "left"
    return run, padding


def _check(engine: Scorer | Whole, split: TokenSplit, pairs: list[Indices], token_id: int) -> Found:
    if split.labels.dtype == np.bool_:
        rows = np.concatenate(pairs)
        split = beginnings(split, rows, np.minimum(split.lengths[rows], np.tile(_FIRST_TOKENS, len(pairs))))
        pairs = list(np.arange(len(rows)).reshape(-1, 2))
    model = cast(Any, engine.model)
    set_training(model, False)
    num_layers = getattr(model.config.get_text_config(), "num_hidden_layers", None) or 1
    with torch.no_grad():
        found = find_side(engine.logits, split, pairs, token_id, engine.device, tolerance_of(engine.dtype, num_layers))
    return first_decides(engine.process, lambda: found)
