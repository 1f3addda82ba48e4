"""How far the logits of an exported model are from those of the model that was scored."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from ftkit.data.batching import MicroBatch
from ftkit.inference.opened import Opened, open_config, open_model
from ftkit.models.export.to_onnx import onnx_logits

_SEQUENCES, _TOKENS = 8, 32
"""Of the sample."""


@dataclass(frozen=True)
class Difference:
    """How far the logits of an exported model are from those of the model that was scored.

    Attributes:
        largest: the largest difference of two logits.
        scale: the largest logit.
        same_answers: the share of places whose largest logit is that of the same class or token.
    """

    largest: float
    scale: float
    same_answers: float

    def words(self) -> str:
        """Return this as a sentence."""
        return (
            f"on {_SEQUENCES} x {_TOKENS} tokens logits differ by at most {self.largest:.2g} from those of the model "
            f"that was scored (the largest is {self.scale:.3g}); {self.same_answers:.1%} of the answers are the same"
        )


def difference(name: str, exported: Path, note: Callable[[str], None]) -> Difference:
    """Compare the logits of two models in one precision; only one of them is in memory at a time.

    Args:
        name: of the model that was scored.
        exported: the folder or the file of its new form.
        note: told what takes long.

    Raises:
        FtkitError: one of them cannot be opened.
    """
    opened = open_model(name, open_config(name), note)
    batch, settings = _sample(opened), [f"model.precision={opened.run.precision}"]
    before = _logits(opened, batch)
    del opened
    if exported.suffix == ".onnx":
        after = onnx_logits(exported, batch.input_ids)
    else:
        after = _logits(open_model(str(exported), open_config(str(exported), settings), note), batch)
    is_same = before.argmax(-1) == after.argmax(-1)
    return Difference(float((before - after).abs().max()), float(before.abs().max()), float(is_same.float().mean()))


def _sample(opened: Opened) -> MicroBatch:
    """Return sequences to compare on: what a language model writes by itself; for a classifier, tokens at random."""
    torch.manual_seed(0)
    tokens = torch.randint(len(opened.tokenizer), (_SEQUENCES, _TOKENS)).to(opened.reader.device)
    if opened.labels is None:
        model = cast(Any, opened.reader.model)
        tokens = model.generate(
            tokens[:, :1],
            attention_mask=torch.ones_like(tokens[:, :1]),
            do_sample=True,
            min_length=_TOKENS,
            max_length=_TOKENS,
            pad_token_id=opened.tokenizer.pad_token_id,
        )
    return MicroBatch(tokens, labels=torch.zeros(_SEQUENCES, dtype=torch.int64))


def _logits(opened: Opened, batch: MicroBatch) -> torch.Tensor:
    with torch.inference_mode():
        return opened.reader.logits(batch).float().cpu()
