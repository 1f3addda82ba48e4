"""Take several micro-batches through a layer before the next layer comes, forward and backward.

Three micro-batches a, b and c over layers 0, 1 and 2, and what is fetched (>):

    one by one      >0 0a >1 1a >2 2a   2a >1 1a >0 0a   0b >1 1b ...        each layer twice a micro-batch
    together        >0 0a 0b 0c >1 1a 1b 1c >2 2a 2b 2c   2a 2b 2c >1 1a 1b 1c >0 0a 0b 0c      twice for all

The model's own code knows nothing of this. It runs twice over each micro-batch with stand-ins for its layers: once to
learn what each layer is to be called with (masks, positions), and once more, given what the topmost layer returned, to
make the loss. In between each layer is called as the model would call it, on hidden states that are cut off from the
layer before, so that each pair of a layer and a micro-batch is a graph of its own. The backwards follow layer by layer
and in each layer in the order of the micro-batches: gradients are summed in the order in which they are summed one by
one, and equal those to the bit.

Where what layers keep waits on the host, the graphs alone stay here: of what a layer returned the place of its
gradient, and of what it was given a leaf without numbers, of which the copy on the host has them.

Dimension letters: B batch, T token, D model.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ftkit.data.batching import MicroBatch
from ftkit.errors import ModelError
from ftkit.models.activations.offload import is_offloaded
from ftkit.models.left_out import placeholder
from ftkit.models.stand_in import Form, StandIn, formed, states_of, with_states
from ftkit.models.structure.layers import transformer_layers

LossOf = Callable[[MicroBatch], torch.Tensor]
_Call = tuple[tuple[Any, ...], dict[str, Any]]
_CURE = "leave engine.stream_micro_batches out"


@dataclass
class _Lane:
    """One micro-batch on its way through the layers.

    Attributes:
        calls: the arguments of each layer, but for the hidden states.
        entries: [B, T, D], what each layer that has run was given, cut off; and behind them what the topmost returned.
        outputs: where the gradient goes of what came to the lowest layer, and of what each layer returned; None where
            nothing wants it.
        loss: scalar; its graph begins at the last of the entries.
    """

    calls: list[_Call] = field(default_factory=list)
    entries: list[torch.Tensor] = field(default_factory=list)
    outputs: list[GradientEdge | None] = field(default_factory=list)
    loss: torch.Tensor | None = None

    def add(self, hidden: torch.Tensor) -> None:
        """Cut hidden states off from what made them; the next layer is given them so."""
        self.outputs.append(get_gradient_edge(hidden) if hidden.grad_fn is not None else None)
        self.entries.append(hidden.detach().requires_grad_(hidden.requires_grad))


class _TurnedError(Exception):
    """Ends a forward at the topmost layer, where all is known of the layers."""


class Together:
    """The layers of a model, and how several micro-batches go through them."""

    def __init__(self, model: nn.Module) -> None:
        """Take the layers of a model.

        Args:
            model: streamed, on its device.

        Raises:
            ModelError: more than hidden states passes from layer to layer.
        """
        kind, found = type(model).__name__, transformer_layers(model)
        assert found is not None
        if getattr(cast(Any, model).config, "is_encoder_decoder", False):
            raise ModelError(f"{kind} has layers that encode and layers that decode, which meet in each; {_CURE}")
        self._list, self._layers = found[1], list(found[1])
        self._forms: list[Form] = []
        """What each layer returns; empty until each has run once."""

    def losses(self, loss_of: LossOf, micro_batches: Sequence[MicroBatch]) -> tuple[torch.Tensor, ...]:
        """Return the loss of each micro-batch; a backward from all of them takes layer by layer.

        Args:
            loss_of: runs the model over a micro-batch.
            micro_batches: two or more.

        Returns:
            Scalars, in the order of the micro-batches.

        Raises:
            ModelError: the model's code does more between its layers than to hand hidden states on.
        """
        lanes = [self._begun(loss_of, one) for one in micro_batches]
        for number in range(len(self._layers)):
            for lane in lanes:
                if number == len(lane.outputs) - 1:
                    self._run(lane, number)
        for lane, micro_batch in zip(lanes, micro_batches, strict=True):
            lane.loss = self._ended(loss_of, lane, micro_batch)
        begins = torch.zeros((), requires_grad=True)
        losses: tuple[torch.Tensor, ...] = _Losses.apply(lanes, begins)  # type: ignore[no-untyped-call]
        return losses

    def _begun(self, loss_of: LossOf, micro_batch: MicroBatch) -> _Lane:
        """Run the model up to its topmost layer, and note what the layers are called with.

        The first micro-batch of all runs through the layers, which shows in what form each returns hidden states.
        """
        lane, forms, made = _Lane(), self._forms, _Made()

        def run(number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = states_of(args, kwargs)
            if number == 0:
                lane.add(hidden)
            lane.calls.append(with_states(args, kwargs, None))
            if not forms:
                made.check(number, args, kwargs)
                made.add(self._run(lane, number))
            if number == len(self._layers) - 1:
                raise _TurnedError
            return formed(hidden, forms[number]) if forms else made.last

        try:
            with self._standing_in(run):
                loss_of(micro_batch)
        except _TurnedError:
            pass
        self._forms = forms or made.forms
        return lane

    def _run(self, lane: _Lane, number: int) -> Any:
        """Run a layer over a micro-batch; returns what the layer does."""
        args, kwargs = with_states(*lane.calls[number], lane.entries[number])
        result = self._layers[number](*args, **kwargs)
        if args and is_offloaded(self._layers[number]):  # by name they would count as what layers share, which stays
            given = lane.entries[number]
            given.data = placeholder(given.shape, given.dtype, given.device)
        lane.add(result[0] if isinstance(result, tuple) else result)
        return result

    def _ended(self, loss_of: LossOf, lane: _Lane, micro_batch: MicroBatch) -> torch.Tensor:
        """Run the model from what its topmost layer returned to the loss."""

        def run(number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            is_top = number == len(self._layers) - 1
            return formed(lane.entries[-1] if is_top else states_of(args, kwargs), self._forms[number])

        lane.calls.clear()
        with self._standing_in(run):
            return loss_of(micro_batch)

    @contextmanager
    def _standing_in(self, run: Callable[[int, tuple[Any, ...], dict[str, Any]], Any]) -> Iterator[None]:
        """Have something else run in the place of each layer."""

        def at(number: int) -> Callable[..., Any]:
            return lambda *args, **kwargs: run(number, args, kwargs)

        for number, layer in enumerate(self._layers):
            self._list[number] = StandIn(layer, at(number))
        try:
            yield
        finally:
            for number, layer in enumerate(self._layers):
                self._list[number] = layer


class _Losses(torch.autograd.Function):
    """Gives losses that have been made, and their backward layer by layer."""

    @staticmethod
    def forward(ctx: Any, lanes: list[_Lane], _: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.lanes = lanes
        return tuple(cast(torch.Tensor, lane.loss).detach().clone() for lane in lanes)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        lanes: list[_Lane] = ctx.lanes
        for lane, grad in zip(lanes, grads, strict=True):
            torch.autograd.backward(cast(torch.Tensor, lane.loss), grad)
            lane.loss = None
        for _ in range(len(lanes[0].outputs)):
            for lane in lanes:
                _go_back(lane.outputs.pop(), lane.entries.pop())
        return None, None


def _go_back(made: GradientEdge | None, cut_off: torch.Tensor) -> None:
    """Hand the gradient of hidden states on to what made them, where there is anything that trains."""
    if made is not None and cut_off.grad is not None:
        torch.autograd.backward(made, cut_off.grad)


class _Made:
    """What the layers have returned to the first micro-batch.

    Attributes:
        forms: of it.
        last: what the layer that ran last has returned.
    """

    def __init__(self) -> None:
        self.forms: list[Form] = []
        self.last: Any = None
        self._beside: list[Any] = []

    def add(self, result: Any) -> None:
        """Note what a layer has returned; hidden states of earlier layers are let go of."""
        is_tuple = isinstance(result, tuple)
        self.last = result
        self.forms.append(len(result) if is_tuple else None)
        self._beside += result[1:] if is_tuple else ()

    def check(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse a model in which more than hidden states goes from layer to layer, or something happens in between.

        Args:
            number: of the layer that runs next.
            args: what the model calls it with.
            kwargs: the same, by name.
        """
        given = [one for one in (*args, *kwargs.values()) if isinstance(one, torch.Tensor)]
        hidden = states_of(args, kwargs)
        others = [one for one in given if one is not hidden]
        is_other = number > 0 and hidden is not (self.last[0] if isinstance(self.last, tuple) else self.last)
        if (
            number != len(self.forms)
            or is_other
            or any(one.requires_grad or any(one is two for two in self._beside) for one in others)
        ):
            raise ModelError(
                f"layer {number} of the model gets more than the hidden states of the layer before it, so "
                f"micro-batches cannot be taken through it together; {_CURE}"
            )
