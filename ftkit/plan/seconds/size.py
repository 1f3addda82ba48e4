"""How large the micro-batches of real data are beside the one that was traced."""

from dataclasses import dataclass

_OF_SCORES = {"bmm", "baddbmm", "_softmax", "_safe_softmax", "_softmax_backward_data", "masked_fill"}
"""What computes or makes scores of an attention; in other places these are small."""
_OF_PLACES = {"clone", "index_select", "index_fill"}
"""What lays tokens out to the longest sequence for an attention, where other layers run over tokens alone."""


@dataclass(frozen=True)
class Size:
    """How large a real micro-batch is, as shares of a traced one.

    Attributes:
        tokens: of its tokens, where layers run over these.
        places: of its tokens with their padding.
        scores: of the scores of its attention, which grow with the square of the longest sequence.
    """

    tokens: float
    places: float
    scores: float

    def of(self, operator: str) -> float:
        """Return the share by which an operator, by its name, computes."""
        name = operator.partition(".")[0].removesuffix("_")
        if name in _OF_SCORES or "scaled_dot_product" in name:
            return self.scores
        return self.places if name in _OF_PLACES else self.tokens


TRACED = Size(1.0, 1.0, 1.0)
