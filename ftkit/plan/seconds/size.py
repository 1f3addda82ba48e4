"""How large the micro-batches of real data are beside the one that was traced."""

from dataclasses import dataclass

_OF_SCORES = {"bmm", "baddbmm", "_softmax", "_safe_softmax", "_softmax_backward_data", "masked_fill"}
"""What computes or makes scores of an attention; in other places these are small."""


@dataclass(frozen=True)
class Size:
    """How large a real micro-batch is, as shares of a traced one.

    Attributes:
        tokens: of its tokens, where layers run over these.
        scores: of the scores of its attention, which grow with the square of the longest sequence.
    """

    tokens: float
    scores: float

    def of(self, operator: str) -> float:
        """Return the share by which an operator, by its name, computes."""
        name = operator.partition(".")[0].removesuffix("_")
        return self.scores if name in _OF_SCORES or "scaled_dot_product" in name else self.tokens


TRACED = Size(1.0, 1.0)
