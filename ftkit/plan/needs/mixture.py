"""The part of a step's memory that depends on how a mixture's router shares out the tokens.

A step that is traced without values has sizes that no value decides, and so none that the routing decides: transformers
sorts the rows of all experts and multiplies them in groups, tokens x experts for each token, however they are shared
out (integrations/moe.py, grouped_mm_experts_forward, transformers 5.23). Its plan holds from balance to the worst case.
Code that takes one expert after another asks for values, and a formula stands in for its step. What one expert holds
while it computes is then a range: from an even share of the rows to all tokens at the same experts.
"""

from dataclasses import dataclass
from typing import Any

from ftkit.plan.inputs.case import Case
from ftkit.units import format_bytes

_EXPERTS = ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "moe_topk", "moe_top_k", "num_experts_per_token")
_INNER = ("moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size")
"""What types of transformers call them."""


@dataclass(frozen=True)
class Mixture:
    """The sizes of a layer's experts.

    Attributes:
        num_experts: that a router chooses among.
        num_chosen: for each token.
        hidden: width of the model.
        inner: width inside an expert.
    """

    num_experts: int
    num_chosen: int
    hidden: int
    inner: int

    @property
    def values_of_a_row(self) -> int:
        """Numbers that a row keeps for its expert's backward: input and result, gate, its activation, up, product."""
        return 2 * self.hidden + 4 * self.inner

    def kept_values(self, num_tokens: int) -> int:
        """Return the numbers that a layer's experts keep together, wherever the tokens go."""
        return num_tokens * self.num_chosen * self.values_of_a_row

    def uneven_values(self, num_tokens: int) -> int:
        """Return how many more numbers one expert's gradients have if all tokens are its own than in balance."""
        even = -(-num_tokens * self.num_chosen // self.num_experts)
        return max(0, num_tokens - even) * self.values_of_a_row


def find_mixture(architecture: Any) -> Mixture | None:
    """Return the experts of an architecture, or None where it has none."""
    found = [_first(architecture, names) for names in (_EXPERTS, _CHOSEN, ("hidden_size",), _INNER)]
    experts, chosen, hidden, inner = found
    if not experts or not chosen or not hidden or not inner or experts == 1:
        return None
    return Mixture(experts, min(chosen, experts), hidden, inner)


def uneven_bytes(case: Case) -> int:
    """Return what a step that is not traced holds more if all tokens of a micro-batch go to the same experts.

    Args:
        case: of any model; one without experts holds nothing more.
    """
    mixture = find_mixture(case.architecture)
    num_tokens = case.shape.batch * case.shape.length
    return 0 if mixture is None else mixture.uneven_values(num_tokens) * case.run.dtype.itemsize


def routing_words(mixture: Mixture, uneven_bytes: int | None) -> str:
    """Say how the peak depends on the routing.

    Args:
        mixture: the experts.
        uneven_bytes: what the worst case holds more than balance; None: the step was traced, and nothing depends on it.
    """
    experts = f"{mixture.num_experts}, {mixture.num_chosen} for each token; "
    worst = f"all tokens at the same {mixture.num_chosen}"
    if uneven_bytes is None:
        return f"{experts}no size depends on the routing: the peak is that of balance and of {worst}"
    return f"{experts}the peak is that of balance, its high end has {format_bytes(uneven_bytes)} more for {worst}"


def _first(architecture: Any, names: tuple[str, ...]) -> int | None:
    found = (getattr(architecture, name, None) for name in names)
    return next((one for one in found if isinstance(one, int)), None)
