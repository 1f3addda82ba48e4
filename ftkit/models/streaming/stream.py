"""Let the layers of a model be streamed: each one fetches its weights before it runs, and again before its backward.

A layer is fetched in three places. Before its forward. When the gradient of its output is there, so that all of its
backward finds its weights, whatever asks for them first. And inside what it recomputes, where the weights are views of
the buffer that they are in by then.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import nn

from ftkit.config.recompute import Recompute
from ftkit.errors import ModelError
from ftkit.models.activations.recompute import run_before, set_recompute
from ftkit.models.bnb import least_bytes, state_tensors
from ftkit.models.left_out import placeholder
from ftkit.models.stand_in import tensors_in
from ftkit.models.streaming.head import left_out_head
from ftkit.models.streaming.layout import Layout, Slot
from ftkit.models.streaming.sources import LayerSource
from ftkit.models.streaming.table import TableSource, left_out_table, look_up_in
from ftkit.models.streaming.window import StaleWeightsError, Window
from ftkit.models.structure.layers import first_trained_layer, transformer_layers

_STREAM, _VALUES = "layer_stream", "streamed_values"
"""The attributes of the list of layers and of a weight by which others find what is streamed."""


class Observer(Protocol):
    """Is told of the window of a streamed model."""

    def window_holds(self, layers: tuple[int, ...]) -> None:
        """The window holds these layers, or they are on their way to it."""


class LayerStream:
    """The streamed layers of one model.

    Attributes:
        layout: what is streamed.
        source: where it comes from.
        window: the buffers; None until the model is on its device.
        comes_back: whether a backward passes through the topmost layer.
        observer: is told when the window moves; None: nobody is.
    """

    def __init__(self, layout: Layout, source: LayerSource) -> None:
        """Start without buffers.

        Args:
            layout: what is streamed.
            source: where it comes from.
        """
        self.layout, self.source = layout, source
        self.window: Window | None = None
        self.comes_back = False
        self.observer: Observer | None = None
        self._in_backward: tuple[int, int | None] | None = None

    def forward(self, layer: int) -> None:
        """Fetch a layer for its forward; the one above comes next, and above the top the backward begins there."""
        self._end_backward()
        top = self.layout.num_layers - 1
        turns = torch.is_grad_enabled() and self.comes_back
        self._fetch(layer, layer + 1 if layer < top else None if turns or self.layout.has_head else 0)

    def head(self) -> None:
        """Fetch the head, which takes the place of all layers."""
        self._end_backward()
        self._fetch(self.layout.num_layers, None)

    def again(self, layer: int) -> None:
        """Fetch a layer for what it recomputes."""
        self._fetch(layer, None)

    def backward(self, layer: int, *, is_lowest: bool) -> None:
        """Fetch a layer for its backward; the one below comes next, and below the lowest the next forward begins."""
        self._end_backward()
        self._fetch(layer, 0 if is_lowest else max(layer - 1, 0))
        self._in_backward = layer, self._generation(layer)

    def tell(self) -> None:
        """Tell the observer, if there is one, which layers the window holds, if it holds any."""
        held = () if self.window is None else tuple(sorted(one for one in self.window.layers if one is not None))
        if held and self.observer is not None:
            self.observer.window_holds(held)

    def _end_backward(self) -> None:
        """Make sure that the layer whose backward has ended found its weights in one buffer all along."""
        if self._in_backward is None:
            return
        (layer, filling), self._in_backward = self._in_backward, None
        if filling != self._generation(layer):
            raise StaleWeightsError(
                f"the buffer of layer {layer} was used again during the backward of that layer, whose gradients are "
                f"wrong (filling {filling} at its start, {self._generation(layer)} at its end)"
            )

    def _generation(self, layer: int) -> int | None:
        return None if self.window is None else self.window.generation(layer)

    def _fetch(self, layer: int, then: int | None) -> None:
        assert self.window is not None, "place() has not put this model onto its device"
        self.window.fetch(layer, then)
        self.tell()


def attach(
    model: nn.Module, layout: Layout, source: LayerSource, table: TableSource, recompute: Recompute
) -> LayerStream:
    """Let the layers of a model fetch their weights, and its table look up rows, if it was left out.

    Args:
        model: prepared for its method, its layers' weights placeholders.
        layout: what `leave_out` returned for it before that.
        source: where the weights come from.
        table: where the rows of the table of tokens come from.
        recompute: what layers compute again; all of them do, since none may keep its weights.

    Returns:
        The stream, which `stream_of` finds again.
    """
    found = transformer_layers(model)
    assert found is not None
    stream = LayerStream(layout, source)
    vars(found[1])[_STREAM] = stream
    for slot in layout.slots:
        vars(slot.parameter)[_VALUES] = partial(_slot_values, source, slot)
    tokens = left_out_table(model)
    if tokens is not None:
        look_up_in(tokens, table)
        vars(tokens.weight)[_VALUES] = table.values
    for number, layer in enumerate(found[1]):
        _hook(stream, number, layer, below_training=number < (first_trained_layer(model) or 0))
    set_recompute(model, recompute.without_none())
    head = left_out_head(model)
    if head is not None:
        head.register_forward_pre_hook(lambda *_: stream.head())
    return stream


def stream_of(model: nn.Module) -> LayerStream | None:
    """Return the stream of a model, None where its weights are all there."""
    return next((vars(module)[_STREAM] for module in model.modules() if _STREAM in vars(module)), None)


def place(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a model to a device: what stays of it, and the window for what is streamed.

    Args:
        model: what `build_model` returned; what is to train requires gradients by now.
        device: what will compute.

    Returns:
        The same model.

    Raises:
        ModelError: streamed weights are to train, or gradients pass through layers that do not recompute.
    """
    stream = stream_of(model)
    if stream is None:
        return model.to(device)
    if stream.window is not None:
        return model
    _check_frozen(model, stream)
    # These first: moved by `to`, a placeholder would become as large as the weight.
    tokens = left_out_table(model)
    if tokens is not None:
        tokens.weight.data = placeholder(tokens.weight.shape, tokens.weight.dtype, device)
    stream.window = Window(stream.layout, stream.source, device)
    stream.comes_back = first_trained_layer(model) is not None or _trains_tokens(model)
    return model.to(device)


def resident_bytes(model: nn.Module) -> int | None:
    """Return the bytes of the weights that a streamed model has on its device, with its window; None: all are there.

    Args:
        model: what `build_model` or `build_empty_model` returned.
    """
    stream = stream_of(model)
    if stream is None:
        return None
    stays = (one for one in model.parameters() if not is_streamed(one))
    return stream.layout.window_bytes + sum(map(least_bytes, stays))


@contextmanager
def window_watched(model: nn.Module, observer: Observer) -> Iterator[None]:
    """Tell somebody when the window of a model moves while a block runs; without effect where no layer is streamed.

    Args:
        model: what `build_model` or `build_empty_model` returned.
        observer: is told.
    """
    stream = stream_of(model)
    if stream is None:
        yield
        return
    stream.observer = observer
    stream.tell()
    try:
        yield
    finally:
        stream.observer = None


def is_streamed(tensor: torch.Tensor) -> bool:
    """Return whether a weight is on its device only while its layer is in the window, or never."""
    return isinstance(tensor, nn.Parameter) and _VALUES in vars(tensor)


def value_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return a weight itself, or where it is streamed its numbers, read from where they come from.

    Args:
        tensor: a parameter or a buffer of a model.
    """
    return values_of(tensor)[""]


def values_of(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the numbers of a weight, under an empty name, and the constants of one in 4 bits by their names.

    Args:
        tensor: a parameter or a buffer of a model; one that is streamed is read from where it comes from.
    """
    if is_streamed(tensor):
        streamed: dict[str, torch.Tensor] = vars(tensor)[_VALUES]()
        return streamed
    state = getattr(tensor, "quant_state", None)
    return {"": tensor} | ({} if state is None else state_tensors(state))


def _slot_values(source: LayerSource, slot: Slot) -> dict[str, torch.Tensor]:
    return dict(zip((part.name for part in slot.parts), source.read(slot), strict=True))


def _check_frozen(model: nn.Module, stream: LayerStream) -> None:
    """Refuse what a window cannot do: weights that train, and a backward through layers that do not recompute."""
    trained = next((slot.name for slot in stream.layout.slots if slot.parameter.requires_grad), None)
    if trained is not None:
        raise ModelError(
            f"engine.stream_layers streams frozen weights, and {trained} is to train; choose method lora, or leave "
            "engine.stream_layers out"
        )
    if first_trained_layer(model) and _trains_tokens(model):
        raise ModelError(
            "engine.stream_layers: new rows of the table of tokens train below layers that do not; let all layers "
            "have adapters, or leave model.resize_embeddings out"
        )


def _trains_tokens(model: nn.Module) -> bool:
    table = cast(Any, model).get_input_embeddings()
    return any(one.requires_grad for one in table.parameters())


def _hook(stream: LayerStream, number: int, layer: nn.Module, *, below_training: bool) -> None:
    """Let one layer fetch its weights, forward and backward."""

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        stream.forward(number)
        if not below_training:
            return args, kwargs
        # PEFT lets what enters the layers require gradients; here nobody wants them, and nothing recomputes.
        return tuple(map(_detached, args)), {name: _detached(one) for name, one in kwargs.items()}

    def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        is_lowest = not any(one.requires_grad for one in tensors_in((args, kwargs)))

        def fetch(_: torch.Tensor) -> None:
            stream.backward(number, is_lowest=is_lowest)

        for one in tensors_in(output):
            if one.requires_grad:
                one.register_hook(fetch)

    layer.register_forward_pre_hook(before, with_kwargs=True)
    layer.register_forward_hook(after, with_kwargs=True)
    run_before(layer, partial(stream.again, number))


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value
