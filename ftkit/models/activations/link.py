"""Copy what waits on the host there and back: on CUDA in a stream of its own, beside the computation."""

from collections.abc import Callable
from typing import Protocol

import torch

from ftkit.models.foreign import has_values
from ftkit.models.pinned import pinned

Wait = Callable[[], None]
"""Lets what is computed from here on wait for a copy."""


class Link(Protocol):
    """Copies between a device and its host; each copy begins when what has been computed so far is there."""

    def leave(self, storage: torch.Tensor) -> tuple[torch.Tensor | None, Wait]:
        """Begin to copy a storage to the host.

        Args:
            storage: a tensor on it, which lives until it has been waited for.

        Returns:
            The bytes on the host, and what waits for them.
        """

    def come(self, host: torch.Tensor | None, device: torch.Tensor) -> Wait:
        """Begin to copy bytes back.

        Args:
            host: what `leave` returned.
            device: at least as many bytes, uint8 [N]; it lives until it has been waited for.

        Returns:
            Waits for them.
        """


class PlannedLink:
    """Copies nothing: tensors of a plan have no values."""

    def leave(self, storage: torch.Tensor) -> tuple[torch.Tensor | None, Wait]:  # noqa: ARG002  # of the protocol
        """Return nothing."""
        return None, _at_once

    def come(self, host: torch.Tensor | None, device: torch.Tensor) -> Wait:  # noqa: ARG002  # of the protocol
        """Do nothing."""
        return _at_once


class BlockingLink:
    """Copies while everything else waits: for devices of which no stream is known, and to see the copies on a CPU."""

    def leave(self, storage: torch.Tensor) -> tuple[torch.Tensor | None, Wait]:
        """Copy to ordinary memory."""
        return _bytes_of(storage).to("cpu", copy=True), _at_once

    def come(self, host: torch.Tensor | None, device: torch.Tensor) -> Wait:
        """Copy back."""
        assert host is not None
        device[: host.numel()].copy_(host)
        return _at_once


class StreamLink:
    """Copies on a CUDA stream beside that of the computation; the host waits for neither."""

    def __init__(self, device: torch.device) -> None:
        """Make the stream of a device."""
        self._device, self._stream = device, torch.cuda.Stream(device)

    def leave(self, storage: torch.Tensor) -> tuple[torch.Tensor | None, Wait]:
        """Copy to pinned memory; torch keeps what was freed of it until the copies that use it are done."""
        source = _bytes_of(storage)
        host = pinned(source.numel())
        return host, self._copy(source, host)

    def come(self, host: torch.Tensor | None, device: torch.Tensor) -> Wait:
        """Copy back, after all that was to leave."""
        assert host is not None
        return self._copy(host, device[: host.numel()])

    def _copy(self, source: torch.Tensor, target: torch.Tensor) -> Wait:
        computed = torch.cuda.current_stream(self._device).record_event()
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(computed)
            target.copy_(source, non_blocking=True)
            copied = self._stream.record_event()
        # The stream of whoever waits: autograd runs a backward in another thread.
        return lambda: torch.cuda.current_stream(self._device).wait_event(copied)


def link_for(tensor: torch.Tensor) -> Link:
    """Return how the bytes of a tensor come to the host, by the device that it is on."""
    if not has_values(tensor):
        return PlannedLink()
    return StreamLink(tensor.device) if tensor.device.type == "cuda" else BlockingLink()


def pinned_size(num_bytes: int) -> int:
    """Return what torch pins for a request: the next power of two (torch 2.13, ATen/core/CachingHostAllocator.h)."""
    return 1 << (num_bytes - 1).bit_length()


def _at_once() -> None:
    """Wait for nothing."""


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return the storage of a tensor as uint8 [N]."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
