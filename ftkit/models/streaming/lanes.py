"""Fetch a layer while another one computes: in a thread on a CPU, in a stream of its own on CUDA."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch

from ftkit.models.foreign import has_values

Wait = Callable[[], None]


class Lane(Protocol):
    """Brings one layer after another."""

    def begin(self, read: Callable[[], None]) -> Wait:
        """Begin to fill a buffer that nobody uses any more.

        Args:
            read: fills the buffer.

        Returns:
            Waits until the buffer is full, for whoever computes with it; raises what `read` has raised.
        """


class ImmediateLane:
    """Brings a layer when it is asked for: a plan's tensors have no values to wait for."""

    def begin(self, read: Callable[[], None]) -> Wait:
        """Read now."""
        read()
        return lambda: None


class ThreadLane:
    """Reads in a thread: reading and copying let go of Python's lock."""

    def __init__(self) -> None:
        """Start with nothing to read."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ftkit-layers")

    def begin(self, read: Callable[[], None]) -> Wait:
        """Read behind what is being read."""
        future = self._thread.submit(read)
        return lambda: future.result()


class StreamLane:
    """Copies on a CUDA stream beside that of the computation.

    A copy begins when what has been computed so far is done with its buffer, and the computation waits on the device,
    not on the host, until the copy is there.
    """

    def __init__(self, buffers: Sequence[torch.Tensor]) -> None:
        """Make a stream that fills buffers.

        Args:
            buffers: on one device.
        """
        self._device = buffers[0].device
        self._stream = torch.cuda.Stream(self._device)
        for one in buffers:
            # A window may be given up while a copy into it runs, and torch gives its memory to others when it is done.
            one.record_stream(self._stream)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ftkit-layers")

    def begin(self, read: Callable[[], None]) -> Wait:
        """Read behind what is being copied."""
        computed, copied = torch.cuda.Event(), torch.cuda.Event()
        computed.record(torch.cuda.current_stream(self._device))

        def copy() -> None:
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(computed)
                read()
                copied.record(self._stream)

        future = self._thread.submit(copy)

        def wait() -> None:
            future.result()
            torch.cuda.current_stream(self._device).wait_event(copied)

        return wait


def lane_for(buffers: Sequence[torch.Tensor]) -> Lane:
    """Return how the layers come to the buffers of a window, by the device that they are on."""
    if not has_values(buffers[0]):
        return ImmediateLane()
    return StreamLane(buffers) if buffers[0].device.type == "cuda" else ThreadLane()
