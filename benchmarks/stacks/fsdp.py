"""torch's own FullyShardedDataParallel on one rank of many, without the others, without values and without a GPU.

Nothing of FSDP is told again here: its code runs, over a process group that answers without sending anything. What it
asks of the device is answered as CUDA would: storages that it resizes are written on the tape; streams and events are
kept, because memory belongs to the stream that asked for it, and what another stream used is free again only when that
stream is done.

    with fsdp.recording(model, 2) as (device, recorder):
        model = FullyShardedDataParallel(model, device_id=fsdp.CPU, ...)
        ...
    device.allocator_events(recorder.tape)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.distributed.fsdp import _common_utils, _flat_param, _init_utils, _runtime_utils

from benchmarks.stacks import absent_ranks, traced
from ftkit.observe.allocator import LET_GO
from ftkit.observe.recorder import Recorder
from ftkit.observe.tape import Tape

CPU = torch.device("cpu")


class DeviceStream:
    """A CUDA stream: a number."""

    def __init__(self, device: "Device", number: int) -> None:
        """Name a stream of `device`."""
        self.device, self.number = device, number

    def wait_stream(self, other: "DeviceStream") -> None:
        """Wait on the device; the host does not."""

    def wait_event(self, event: "DeviceEvent") -> None:
        """Wait on the device; the host does not."""

    def synchronize(self) -> None:
        """Let the host wait for everything; a wait for one stream alone would be shorter, and is not told apart."""
        self.device.synchronize()

    def record_event(self, event: "DeviceEvent | None" = None) -> "DeviceEvent":
        """Return an event at what was asked for until now."""
        event = event or DeviceEvent(self.device)
        event.record()
        return event


class DeviceEvent:
    """A CUDA event: a place on the tape."""

    def __init__(self, device: "Device") -> None:
        """Belong to `device`."""
        self.device, self.place = device, 0

    def record(self, stream: DeviceStream | None = None) -> None:
        """Stand at what was asked for until now."""
        del stream
        self.place = self.device.place

    def synchronize(self) -> None:
        """Let the host wait until the device has come here."""
        self.device.waited.append((self.device.place, self.place))

    def query(self) -> bool:
        """Say that it is reached."""
        return True


class Device:
    """What FSDP asks of torch.cuda, and what it says of streams.

    Attributes:
        waited: (place on the tape, place that the device had surely come to by then).
        used_elsewhere: numbers of the storages that a stream other than their own used.
    """

    def __init__(self) -> None:
        """Start with the default stream."""
        self.recorder: Recorder | None = None
        self.waited: list[tuple[int, int]] = []
        self.used_elsewhere: set[int] = set()
        self._streams = [DeviceStream(self, 0)]
        self._current = self._streams[0]
        self._nccl = DeviceStream(self, -1)

    @property
    def place(self) -> int:
        """The number of events on the tape."""
        return len(self.recorder.tape.events) if self.recorder is not None else 0

    def Stream(self, *_: Any, **__: Any) -> DeviceStream:  # noqa: N802  # torch.cuda's name
        """Return a new stream."""
        self._streams.append(DeviceStream(self, len(self._streams)))
        return self._streams[-1]

    def Event(self, *_: Any, **__: Any) -> DeviceEvent:  # noqa: N802  # torch.cuda's name
        """Return a new event."""
        return DeviceEvent(self)

    def current_stream(self, *_: Any) -> DeviceStream:
        """Return the stream that is asked."""
        return self._current

    @contextmanager
    def stream(self, stream: DeviceStream | None) -> Iterator[None]:
        """Ask another stream."""
        before = self._current
        self._enter(stream or before)
        try:
            yield
        finally:
            self._enter(before)

    def _enter(self, stream: DeviceStream) -> None:
        self._current = stream
        if self.recorder is not None:
            self.recorder.live.stream = stream.number

    def synchronize(self, *_: Any) -> None:
        """Let the host wait for everything."""
        self.waited.append((self.place, self.place))

    def current_device(self) -> torch.device:
        """Return the device of fake tensors."""
        return CPU

    def is_available(self) -> bool:
        """Say that there is one."""
        return True

    def device_count(self) -> int:
        """Say that there is one."""
        return 1

    def record_stream(self, tensor: torch.Tensor, stream: DeviceStream) -> None:
        """Remember that `stream` uses a tensor."""
        if self.recorder is None:
            return
        number = self.recorder.live.number_of(tensor)
        if number is not None and self.recorder.tape.births[number].stream != stream.number:
            self.used_elsewhere.add(number)

    def move(self, params: list[Any], buffers: list[torch.Tensor], _: Any) -> None:
        """Move what is on the host to the device, while somebody watches: a copy is made (_move_states_to_device)."""
        if self.recorder is None:
            return
        with torch.no_grad():
            for parameter in params:
                for state, name in _constants(parameter):
                    setattr(state, name, getattr(state, name).clone())
                parameter.data = parameter.data.clone()
            for buffer in buffers:
                buffer.data = buffer.data.clone()

    def handle(self, state: Any, params: list[Any], module: torch.nn.Module) -> None:
        """Make a unit's flat parameter; offloaded, it goes to the host at once."""
        _init_handle(state, params, module)
        if self.recorder is not None and state._handle is not None and state._handle._offload_params:
            self.recorder.live.leave(state._handle.flat_param)

    def attributes(self, handle: Any) -> None:
        """Make a unit's buffers; of an offloaded one the sharded gradient is on the host."""
        _init_attributes(handle)
        if self.recorder is not None and handle._offload_params:
            self.recorder.live.leave(handle.flat_param._cpu_grad)

    def pre_unshard(self, handle: Any) -> bool:
        """Copy an offloaded shard to the device, as FSDP does where host and device are two.

        Here both are the CPU, and FSDP would see that nothing has to move (_flat_param.py, pre_unshard). What it makes
        of the gradients that the optimizer will read (_writeback_orig_params) is on the host.
        """
        ran: bool = _pre_unshard(handle)
        if not handle._offload_params:
            return ran
        if self.recorder is not None and handle.flat_param.grad is not None:
            self.recorder.live.leave(handle.flat_param.grad)
        if not ran or _same_storage(handle.flat_param, handle.flat_param._local_shard):
            handle.flat_param.data = handle.flat_param.data.clone()
            return True
        return ran

    def communicate(self, call: Callable[..., Any], out: torch.Tensor, given: torch.Tensor, **options: Any) -> Any:
        """Call a collective, whose tensors NCCL uses in a stream of its own (ProcessGroupNCCL.cpp, recordStream)."""
        work = call(out, given, **options)
        for tensor in (out, given):
            self.record_stream(tensor, self._nccl)
        return work

    def resized(self, tensor: torch.Tensor) -> None:
        """Tell the recorder of a storage that has another size."""
        if self.recorder is not None:
            self.recorder.live.resized(tensor)

    @contextmanager
    def told_to(self, recorder: Recorder) -> Iterator[None]:
        """Write what happens on the tape of `recorder`."""
        self.recorder = recorder
        try:
            yield
        finally:
            self.recorder = None

    def allocator_events(self, tape: Tape) -> list[tuple[int, int, int]]:
        """Return a tape as the allocator sees it: (storage, bytes or -1 or `LET_GO`, stream).

        What another stream used dies when the host has waited for the device; until then the device is supposed to be
        behind the host, which asks faster than it computes. Where no memory is left the allocator waits itself.
        """
        events: list[tuple[int, int, int]] = []
        pending: list[tuple[int, int]] = []
        waits = iter([*self.waited, (len(tape.events) + 1, 0)])
        wait = next(waits)
        for place, (number, is_birth, _) in enumerate(tape.walk()):
            while wait[0] <= place:
                done = [storage for at, storage in pending if at < wait[1]]
                events += [(storage, -1, tape.births[storage].stream) for storage in done]
                pending = [one for one in pending if one[0] >= wait[1]]
                wait = next(waits)
            birth = tape.births[number]
            if not birth.size:
                continue
            if not is_birth and number in self.used_elsewhere:
                pending.append((place, number))
                events.append((number, LET_GO, birth.stream))
            else:
                events.append((number, birth.size if is_birth else -1, birth.stream))
        return events


@contextmanager
def recording(model: torch.nn.Module, num_ranks: int) -> Iterator[tuple[Device, Recorder]]:
    """Be the first of `num_ranks` ranks, under a recorder, with a model whose tensors are fake from here on.

    Args:
        model: on `meta`.
        num_ranks: GPUs of the run.
    """
    with traced.computing():
        traced.fake(model)
        with rank_of(num_ranks) as device, traced.recorder() as recorder, device.told_to(recorder):
            yield device, recorder


@contextmanager
def rank_of(num_ranks: int) -> Iterator[Device]:
    """Be the first of `num_ranks` ranks; the others answer without being there.

    Args:
        num_ranks: GPUs of the run.
    """
    device = Device()
    with absent_ranks.group_of(num_ranks), traced.patched(*_patches(device)):
        yield device


def _patches(device: Device) -> Iterator[Any]:
    """Yield what lets FSDP ask `device` and tell it."""
    handle, told = _flat_param.FlatParamHandle, _common_utils._FSDPDeviceHandle
    yield mock.patch.object(told, "from_device", return_value=told(CPU, device))
    for name in ("_alloc_storage", "_free_storage"):
        yield mock.patch.object(_flat_param, name, partial(told_after, device, getattr(_flat_param, name)))
    # Fake tensors have no address: they would all be the same.
    yield mock.patch.object(_flat_param, "_same_storage", _same_storage)
    for module in (_flat_param, _runtime_utils):
        yield mock.patch.object(module, "_no_dispatch_record_stream", device.record_stream)
    yield mock.patch.object(handle, "pre_unshard", lambda one: device.pre_unshard(one))
    for name in ("reduce_scatter_single", "all_gather_single"):
        yield mock.patch.object(dist, name, partial(device.communicate, getattr(dist, name)))
    yield mock.patch.object(handle, "init_flat_param_attributes", lambda one: device.attributes(one))
    yield mock.patch.object(
        handle,
        "shard",
        lambda one: told_after(device, lambda _: _shard(one), one.flat_param.data),
    )
    yield mock.patch.object(_init_utils, "_move_states_to_device", device.move)
    yield mock.patch.object(_init_utils, "_init_param_handle_from_params", device.handle)
    yield mock.patch.object(_init_utils, "_check_module_states_for_sync_module_states", _allow)
    yield mock.patch.object(torch.Tensor, "pin_memory", lambda tensor, *_: tensor)


def told_after(device: Device, call: Callable[..., Any], tensor: torch.Tensor, *arguments: Any) -> None:
    """Tell `device` if a call gives a tensor's storage another size."""
    before = tensor.untyped_storage().nbytes()
    call(tensor, *arguments)
    if tensor.untyped_storage().nbytes() != before:
        device.resized(tensor)


_pre_unshard = _flat_param.FlatParamHandle.pre_unshard
_init_attributes = _flat_param.FlatParamHandle.init_flat_param_attributes
_shard = _flat_param.FlatParamHandle.shard
_init_handle = _init_utils._init_param_handle_from_params


def _constants(parameter: Any) -> Iterator[tuple[Any, str]]:
    """Yield where the constants of a 4-bit weight are kept, which move with it (bitsandbytes, QuantState.to)."""
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        yield from ((state, "code"), (state, "absmax"))
        if state.nested:
            yield from ((state, "offset"), (state.state2, "absmax"), (state.state2, "code"))


def _allow(_: list[torch.Tensor]) -> None:
    """Let tensors of the CPU be sent: here it is the device."""


def _same_storage(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool(one.untyped_storage()._cdata == other.untyped_storage()._cdata)
