"""Shrink what a step needs after memory ran out, without changing what it computes.

First the micro-batches become smaller, down to one sequence; then more layers recompute their activations. Both leave
the mathematics of the step as it is (dropout's draws come per micro-batch, so a run with dropout draws others).
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from ftkit.config.files import dump_config
from ftkit.config.recompute import Recompute
from ftkit.config.tree import BatchConfig, RunConfig
from ftkit.machine.disk import replace_text
from ftkit.records.files import CONFIG, LIMITS

_LADDER = (Recompute(cheap=1.0), Recompute(cheap=0.5, layer=0.5), Recompute(layer=1.0))
"""The levels of recomputing that are tried, in this order: each keeps less than the one before it."""
BEYOND = "a smaller --max-length, --method qlora, a higher --zero-stage or offload"
"""What is left to try where one sequence at a time is too much."""


@dataclass(frozen=True)
class Limits:
    """The limits that bound the memory of a step.

    Attributes:
        batch: how a global batch is cut.
        recompute: the shares of the layers that compute again what they do not keep.
    """

    batch: BatchConfig
    recompute: Recompute

    @classmethod
    def of(cls, config: RunConfig) -> "Limits":
        """Return the limits that a configuration asks for."""
        return cls(config.batch, config.model.recompute)

    def applied(self, config: RunConfig) -> RunConfig:
        """Return a configuration that asks for these limits."""
        model = config.model.model_copy(update={"recompute": self.recompute})
        return config.model_copy(update={"batch": self.batch, "model": model})

    def smaller(self, longest: int) -> "Limits | None":
        """Return the next smaller limits, or None where one sequence with every layer recomputed is left.

        Args:
            longest: tokens of the longest sequence, which has to fit into a micro-batch.
        """
        batch = _smaller_cut(self.batch, longest)
        if batch is not None:
            return replace(self, batch=batch)
        recompute = next((one for one in _LADDER if one.saving > self.recompute.saving), None)
        return None if recompute is None else replace(self, recompute=recompute)

    def __str__(self) -> str:
        """Say the limits as flags."""
        cut = (
            f"--micro-batch-size {self.batch.micro_batch_size}"
            if self.batch.token_limit is None
            else f"--micro-batch-tokens {self.batch.token_limit}"
        )
        level = self.recompute.as_written()
        return (
            f"{cut} --recompute {level}"
            if isinstance(level, str)
            else f"{cut} --set 'model.recompute={self.recompute}'"
        )


def keep_limits(folder: Path, config: RunConfig, used: Limits) -> None:
    """Note in the result folder that limits were too large, and what its configuration asks for from now on.

    Args:
        folder: the result folder.
        config: asked for the limits that were too large.
        used: the smaller ones that fitted, or are to be tried next.
    """
    note = {"asked": str(Limits.of(config)), "micro_batch_size": used.batch.micro_batch_size,
            "micro_batch_tokens": used.batch.micro_batch_tokens, "recompute": used.recompute.model_dump()}  # fmt: skip
    replace_text(folder / LIMITS, json.dumps(note))
    replace_text(folder / CONFIG, dump_config(used.applied(config)))


def kept_limits(folder: Path, asked: Limits) -> Limits:
    """Return the limits that an earlier start of the same run found to fit; those asked for where there are none.

    Args:
        folder: the result folder.
        asked: those that the configuration asks for; another cut than before is a wish to try it.
    """
    file = folder / LIMITS
    note = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if note.get("asked") != str(asked):
        return asked
    cut = {key: note[key] for key in ("micro_batch_size", "micro_batch_tokens")}
    return Limits(asked.batch.model_copy(update=cut), Recompute.model_validate(note["recompute"]))


def _smaller_cut(batch: BatchConfig, longest: int) -> BatchConfig | None:
    """Return half of a cut, but at least one sequence; None where it is that already."""
    limit = batch.token_limit
    if limit is None:
        size = batch.micro_batch_size or 1
        return None if size == 1 else batch.model_copy(update={"micro_batch_size": size // 2})
    # A limit below two sequences of the longest kind cuts those one by one, so only the longest itself is below it.
    return None if limit <= longest else batch.model_copy(update={"micro_batch_tokens": max(longest, limit // 2)})
