"""Let what layers keep for their backward wait in the memory of the host.

A layer keeps its input alone where it recomputes whole, its products too where it recomputes what is cheap, and else
all that its backward reads. Each storage of it that is large enough is copied to the host as soon as it is kept, and
given up on the device when the next layer has run; before the backward comes to the layer, it is on its way back. So a
device has what two layers keep, at any time:

    forward       layer 3 runs                           layer 4 runs                  layer 5 runs
    on device     2 (leaves), 3                          3 (leaves), 4                 4 (leaves), 5
    backward      layer 5                                layer 4                       layer 3
    on device     5, 4 (comes)                           4, 3 (comes)                  3, 2 (comes)

What the last layer keeps stays: its backward comes at once. Nobody's values change, so losses and gradients are those
of a run that keeps everything where it is, to the bit.

Weights stay, and so does what layers are given beside the hidden states, such as masks and positions: all of them share
it, so it would be copied many times and given up never. Copies are of whole storages, each once for a layer, since what
several tensors share (the input of query, key and value) lives as long as the last of them.

A copy may still be going on when an error ends a step. What it reads from may be used anew at once, since nobody needs
that copy any more. What it writes to may not, so what is on its way back is held until somebody has waited for it.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from ftkit.errors import ModelError
from ftkit.models import foreign
from ftkit.models.activations.link import Link, Wait, link_for
from ftkit.models.kernels.foreign import num_changes
from ftkit.models.stand_in import tensors_in

SMALLEST_BYTES = 2**20
"""A smaller storage stays: its copy would take as long to ask for as to make."""
_WORD = 16
"""Bytes of the longest number: what comes back has whole ones of every type."""
_PLACE = "_ftkit_offload"

Checkpoint = Callable[..., Any]
"""Calls a layer's forward with its arguments, as torch's checkpoint does."""


class Observer(Protocol):
    """Is told what waits on the host."""

    def waits_on_host(self, num_bytes: int) -> None:
        """A storage has been given up on the device."""

    def comes_back(self, storage: torch.Tensor) -> None:
        """A storage has been made on the device for what comes back."""


@dataclass(eq=False)
class _Kept:
    """A storage that a layer keeps.

    Attributes:
        num_bytes: of it.
        device: where it belongs.
        leaving: a tensor on it; None: it has been given up.
        num_changes: of that tensor when it was kept.
        wait: for its copy on the host.
        host: the copy; None: there are no values.
        back: its bytes on the device again, uint8 [N]; None: they have not been asked for.
    """

    num_bytes: int
    device: torch.device
    leaving: torch.Tensor | None
    num_changes: int
    wait: Wait
    host: torch.Tensor | None
    back: torch.Tensor | None = None


@dataclass(frozen=True)
class _View:
    """A tensor that autograd has saved, as a part of a storage."""

    storage: _Kept
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, tensor: torch.Tensor, storage: _Kept) -> "_View":
        return cls(storage, tensor.dtype, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))

    def tensor(self) -> torch.Tensor:
        assert self.storage.back is not None
        return self.storage.back.view(self.dtype).as_strided(self.size, self.stride, self.offset)


class ActivationOffload:
    """Moves what the layers of a model keep.

    Attributes:
        observer: is told of it; None: nobody is.
    """

    def __init__(self, num_layers: int) -> None:
        """Begin with nothing; the first tensor says which device it is."""
        self.observer: Observer | None = None
        self._last = num_layers - 1
        self._link: Link | None = None
        # Weak: autograd holds what a layer keeps, and lets go of it when the backward has read it.
        self._of_layer: list[list[weakref.ref[_Kept]]] = [[] for _ in range(num_layers)]
        self._coming: list[tuple[_Kept, Wait]] = []
        self._reached: int | None = None

    def around(self, number: int, layer: nn.Module, checkpoint: Checkpoint) -> Checkpoint:
        """Return what calls a layer so that what it keeps moves.

        Args:
            number: of the layer, from 0.
            layer: itself.
            checkpoint: calls its forward.
        """

        def call(function: partial[Any], *arguments: Any, **keywords: Any) -> Any:
            self._begin(number)
            shared = list(tensors_in((arguments[1:], keywords, function.keywords)))
            forward = _Forward(number, layer, arguments[0] if arguments else None, shared)
            try:
                with saved_tensors_hooks(partial(self._pack, forward), partial(self._unpack, number)):
                    out = checkpoint(function, *arguments, **keywords)
            finally:
                forward.forget()  # autograd may hold the hooks, and with them this
            self._give_up(number - 1)
            return out

        return call

    def _begin(self, number: int) -> None:
        self._wait_for_all()  # what a backward that never came had asked for
        self._reached = None
        self._of_layer[number] = [one for one in self._of_layer[number] if one() is not None]

    def _pack(self, forward: "_Forward", tensor: torch.Tensor) -> Any:
        # Hooks are handed a leaf itself, and whoever takes micro-batches together empties it when the layer has run.
        tensor = tensor.detach() if tensor is forward.given else tensor
        if forward.number == self._last or not forward.moves(tensor):
            return tensor
        key = foreign.storage_key(tensor.untyped_storage()), num_changes(tensor)
        known = forward.kept.get(key)
        if known is None:
            known = forward.kept[key] = self._leave(tensor)
            self._of_layer[forward.number].append(weakref.ref(known))
        return _View.of(tensor, known)

    def _leave(self, tensor: torch.Tensor) -> _Kept:
        if self._link is None:
            self._link = link_for(tensor)
        host, wait = self._link.leave(tensor)
        num_bytes = tensor.untyped_storage().nbytes()
        return _Kept(num_bytes, tensor.device, tensor, num_changes(tensor), wait, host)

    def _give_up(self, number: int) -> None:
        """Give up what a layer keeps on the device, once it is on the host."""
        for one in self._living(number):
            if one.leaving is not None:
                assert num_changes(one.leaving) == one.num_changes, "what a layer keeps was changed in place after it"
                one.wait()
                one.leaving = None
                if self.observer is not None:
                    self.observer.waits_on_host(one.num_bytes)

    def _unpack(self, number: int, packed: Any) -> torch.Tensor:
        if self._reached != number:
            self._reached = number
            self._bring(number)  # mostly there: the layer above has asked for it
            self._wait_for_all()
            self._bring(number - 1)
        tensor: torch.Tensor = packed.tensor() if isinstance(packed, _View) else packed
        return tensor

    def _bring(self, number: int) -> None:
        self._give_up(number)
        for one in self._living(number):
            if one.back is None:
                assert self._link is not None
                size = -(-one.num_bytes // _WORD) * _WORD
                one.back = torch.empty(size, dtype=torch.uint8, device=one.device)
                if self.observer is not None:
                    self.observer.comes_back(one.back)
                self._coming.append((one, self._link.come(one.host, one.back)))

    def _wait_for_all(self) -> None:
        for _, wait in self._coming:
            wait()
        self._coming.clear()

    def _living(self, number: int) -> Iterator[_Kept]:
        if number >= 0:
            yield from (one for reference in self._of_layer[number] if (one := reference()) is not None)


class _Forward:
    """One forward of a layer.

    Attributes:
        number: of the layer.
        given: its first argument, the hidden states.
        kept: what it keeps so far, by its storage and how often that had been changed.
    """

    def __init__(self, number: int, layer: nn.Module, given: Any, shared: list[torch.Tensor]) -> None:
        self.number, self.given = number, given
        self.kept: dict[tuple[int, int], _Kept] = {}
        self._layer, self._shared = layer, shared

    def forget(self) -> None:
        """Let go of all that the layer was given and keeps."""
        self.given = None
        self.kept.clear()

    def moves(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor is of the layer's own, and large enough."""
        if tensor.layout is not torch.strided or tensor.untyped_storage().nbytes() < SMALLEST_BYTES:
            return False
        # Asked for now: where weights are partitioned or streamed, they come while the layer runs.
        stays = (*self._shared, *self._layer.parameters(), *self._layer.buffers())
        key = foreign.storage_key(tensor.untyped_storage())
        return all(foreign.storage_key(one.untyped_storage()) != key for one in stays)


def attach(model: nn.Module) -> None:
    """Let what the layers of a model keep wait on the host, from the next time that they are told what to recompute.

    Args:
        model: a transformers model; changed in place.

    Raises:
        ModelError: the model has no layers that can.
    """
    layers = foreign.checkpointing_layers(model)
    if not layers:
        raise ModelError(
            f"{type(model).__name__} has no layers whose activations can be offloaded; leave out "
            "model.offload_activations"
        )
    offload = ActivationOffload(len(layers))
    for number, layer in enumerate(layers):
        vars(layer)[_PLACE] = offload, number


def is_offloaded(layer: nn.Module) -> bool:
    """Return whether what a layer keeps waits on the host."""
    return _PLACE in vars(layer)


def around(layer: nn.Module, checkpoint: Checkpoint) -> Checkpoint | None:
    """Return what calls a layer so that what it keeps moves; None where it stays.

    Args:
        layer: of a transformers model.
        checkpoint: calls its forward.
    """
    if not is_offloaded(layer):
        return None
    offload, number = vars(layer)[_PLACE]
    found: Checkpoint = offload.around(number, layer, checkpoint)
    return found


@contextmanager
def watched(model: nn.Module, observer: Observer) -> Iterator[None]:
    """Tell somebody what waits on the host while a block runs; without effect where nothing does.

    Args:
        model: what `build_model` returned.
        observer: is told.
    """
    found = next((vars(module)[_PLACE][0] for module in model.modules() if _PLACE in vars(module)), None)
    if found is None:
        yield
        return
    found.observer = observer
    try:
        yield
    finally:
        found.observer = None
