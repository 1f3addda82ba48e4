"""An encoder's layers without padding: tokens stand one behind the other, and attention alone tells sequences apart.

Sequences of a micro-batch differ in length, so a part of it is padding that no head reads. All that a layer does to a
token by itself (products, norms, activations, dropout) runs over the tokens that are there; attention lays them out as
[B, T] again. Values and gradients are those of the padded form up to rounding.

The number of rows is rounded up, by an eighth at most, with rows that nothing reads. So blocks of few sizes come again,
and the heap does not grow with each new one. In half precision so do the kernels that oneDNN compiles for each number
of rows.

Dimension letters: B batch, T token, N row, D model, H head, W width of a head.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from ftkit.models import foreign
from ftkit.models.structure.layers import transformer_layers

Move = Callable[[torch.Tensor], torch.Tensor]
ARGUMENT = "rows"
"""The keyword under which layers hand `Rows` on to their attention."""
_MOST_EXACT = 8
"""Numbers of rows are multiples of a power of two that leave so many to each doubling."""


@dataclass(frozen=True)
class Rows:
    """Where the tokens of a micro-batch stand, without and with padding.

    Attributes:
        shape: B and T of the padded form.
        places: [N] int64, the place in [B * T] of each token; None where nothing is padded.
        padding: int64, the other places; None as above.
        sources: [B * T] int64, the row of each place's token, some token's at padding; None as above.
        firsts: [B] int64, the row of each sequence's first token.
        number: rows, N or more: those beyond it are filled up with zeros.
    """

    shape: tuple[int, int]
    places: torch.Tensor | None
    padding: torch.Tensor | None
    sources: torch.Tensor | None
    firsts: torch.Tensor
    number: int

    @classmethod
    def of(cls, hidden: torch.Tensor, mask: torch.Tensor | None) -> "Rows":
        """Return the rows of a micro-batch.

        Args:
            hidden: [B, T, D].
            mask: [B, 1, ..., T] bool, True where a token is seen; None: nothing is padded. Where it has no values all
                places but one are tokens, as in the largest micro-batch that has padding.
        """
        batch, length = hidden.shape[:2]
        all_places = torch.arange(batch * length)
        firsts = all_places[::length]
        if mask is None:
            return cls((batch, length), None, None, None, firsts, num_rows(len(all_places)))
        seen = mask[:, 0, 0].flatten()
        if foreign.has_values(seen):
            places, padding = all_places[seen], all_places[~seen]
        else:
            places, padding = all_places[:-1], all_places[-1:]
        sources = seen.cumsum(0).sub_(1)
        return cls((batch, length), places, padding, sources, sources[firsts], num_rows(len(places)))

    def packed(self, padded: torch.Tensor) -> torch.Tensor:
        """Return the tokens of [B, T, D] one behind the other, [1, N, D]."""
        rows: torch.Tensor = _Moved.apply(padded.flatten(0, 1), self.pack, self.pad)  # type: ignore[no-untyped-call]  # torch types `apply` for no function
        return rows[None]

    def padded(self, packed: torch.Tensor) -> torch.Tensor:
        """Return tokens that stand one behind the other, [1, N, D], as [B, T, D], with zeros at padding."""
        rows: torch.Tensor = _Moved.apply(packed[0], self.pad, self.pack)  # type: ignore[no-untyped-call]  # as above
        return rows.view(*self.shape, rows.shape[-1])

    def pack(self, padded_ND: torch.Tensor) -> torch.Tensor:
        """Return the rows of a padded matrix that are tokens, and zeros behind them."""
        if self.places is None:
            more = self.number - len(padded_ND)
            return nn.functional.pad(padded_ND, (0, 0, 0, more)) if more else padded_ND
        rows_ND = padded_ND.new_empty(self.number, padded_ND.shape[1])
        torch.index_select(padded_ND, 0, self.places, out=rows_ND[: len(self.places)])
        rows_ND[len(self.places) :] = 0
        return rows_ND

    def pad(self, rows_ND: torch.Tensor) -> torch.Tensor:
        """Return the inverse of `pack`: a padded matrix, with zeros at padding."""
        if self.sources is None or self.padding is None:
            return rows_ND[: self.shape[0] * self.shape[1]]
        # Rows are read by number, and the few that are padding wiped out: half the time of writing by number.
        return rows_ND.index_select(0, self.sources).index_fill_(0, self.padding, 0)


def num_rows(tokens: int) -> int:
    """Return how many rows so many tokens become, of a micro-batch without padding."""
    step = max(1, (1 << tokens.bit_length() - 1) // _MOST_EXACT)
    return -(-tokens // step) * step


class _Moved(torch.autograd.Function):
    """Moves rows by a function, and gradients by its inverse; torch's backward of an index would add, and not copy."""

    @staticmethod
    def forward(ctx: Any, matrix_ND: torch.Tensor, move: Move, move_back: Move) -> torch.Tensor:
        ctx.move_back = move_back
        return move(matrix_ND)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return ctx.move_back(grads[0]), None, None


def unpad(model: nn.Module, attention: str) -> None:
    """Let the layers of BERT, its kin and DistilBERT run without padding on a CPU, where all train or none does.

    Where the lower ones alone are frozen, what passes between two layers may be kept in the trunk cache, as [B, T, D].

    Args:
        model: a transformers model, without an adapter around it; changed in place.
        attention: the name of the attention that reads `Rows`; a model with another one is left as it is.
    """
    path, layers = transformer_layers(model) or ("", ())
    kinds = {type(getattr(layer, "attention", None)).__name__ for layer in layers}
    trains = [any(one.requires_grad for one in layer.parameters()) for layer in layers]
    if layers and kinds <= foreign.HANDS_SETTINGS_ON.keys() and trains[0] == any(trains):
        encoder = model.get_submodule(path.rpartition(".")[0])
        vars(encoder)["forward"] = _Unpadded(encoder, cast(Any, model).config, attention)


def is_unpadded(model: nn.Module) -> bool:
    """Return whether the layers of a model run without padding, as long as it is on a CPU."""
    forwards = (vars(module).get("forward") for module in model.modules())
    return any(forward.attends for forward in forwards if isinstance(forward, _Unpadded))


class _Unpadded:
    """The forward of an encoder, over rows."""

    def __init__(self, encoder: nn.Module, config: Any, attention: str) -> None:
        self._encoder, self._config, self._attention = encoder, config, attention

    @property
    def attends(self) -> bool:
        """Whether the encoder's attention is the one that reads `Rows`."""
        is_decoder = getattr(self._config, "is_decoder", False)
        return bool(self._config._attn_implementation == self._attention and not is_decoder)

    def __call__(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, *args: Any, **settings: Any
    ) -> Any:
        encoder: Any = self._encoder
        forward = type(encoder).forward
        if not (self.attends and hidden_states.device.type == "cpu" and _is_told(attention_mask)):
            return forward(encoder, hidden_states, attention_mask, *args, **settings)
        rows = Rows.of(hidden_states, attention_mask)
        result = forward(encoder, rows.packed(hidden_states), attention_mask, *args, **settings, **{ARGUMENT: rows})
        if result.last_hidden_state.shape[:2] == (1, rows.number):  # the last layer has not taken the first places
            result.last_hidden_state = rows.padded(result.last_hidden_state)
        return result


def _is_told(mask: torch.Tensor | None) -> bool:
    """Return whether a mask, [B, 1, T, T], says of each place whether it is padding, and no sequence begins with it."""
    if mask is None:
        return True
    return (
        mask.dim() == 4 and mask.dtype == torch.bool and (not foreign.has_values(mask) or bool(mask[:, 0, 0, 0].all()))
    )
