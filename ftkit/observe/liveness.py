"""When storages are born and die: the events of a tape.

A storage is born where it is first seen, and dies when the last tensor on it does, which a weak reference tells.
Storages are told apart by the address of what torch keeps of them, which is used again as soon as one has died.
"""

import weakref
from typing import Any

import torch

from ftkit.models.foreign import storage_key
from ftkit.observe.attribution import Attribution
from ftkit.observe.operators import dtype_name
from ftkit.observe.tape import Birth, Tape


class Liveness:
    """Writes a tape.

    Attributes:
        tape: so far.
        stream: the CUDA stream that is asked for memory; said by whoever drives the step.
    """

    def __init__(self, at: Attribution, device_type: str | None = None) -> None:
        """Start an empty tape.

        Args:
            at: what is at work.
            device_type: whose storages are written down, such as `cuda`; None: those of any device.
        """
        self.tape, self.stream = Tape(), 0
        self._at, self._device_type = at, device_type
        self._live: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._elsewhere: dict[int, weakref.ref[Any]] = {}

    def number_of(self, tensor: torch.Tensor) -> int | None:
        """Return the number of a tensor's storage on the tape; None: it is not there."""
        entry = self._live.get(storage_key(tensor.untyped_storage()))
        return None if entry is None else entry[1]

    def birth_of(self, value: object) -> Birth | None:
        """Return the birth of a tensor's storage; None: it is not on the tape, or the value is not a tensor."""
        if not isinstance(value, torch.Tensor):
            return None
        entry = self._live.get(storage_key(value.untyped_storage()))
        return None if entry is None else self.tape.births[entry[1]]

    def is_new(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor's storage is on the device that is watched and not on the tape yet."""
        key = storage_key(tensor.untyped_storage())
        if key in self._live or key in self._elsewhere:
            return False
        return self._device_type in (None, tensor.device.type)

    def is_elsewhere(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor is not on the device that is watched, or has left it."""
        if self._device_type not in (None, tensor.device.type):
            return True
        return bool(self._elsewhere) and storage_key(tensor.untyped_storage()) in self._elsewhere

    def born(self, tensor: torch.Tensor, birth: Birth) -> None:
        """Write down the storage of a tensor that has not been seen before."""
        birth.shape, birth.dtype, birth.stream = tuple(tensor.shape), dtype_name(tensor.dtype), self.stream
        number = self.tape.add(birth)
        self._follow(tensor, number)
        self.tape.begin(number, birth.layer)

    def hand_over(self, old: torch.Tensor, new: torch.Tensor) -> bool:
        """Let a tensor live where another lived, which dies with this; return whether that one was on the tape."""
        entry = self._live.pop(storage_key(old.untyped_storage()), None)
        if entry is None:
            return False
        self._follow(new, entry[1])
        return True

    def resized(self, tensor: torch.Tensor) -> None:
        """Write down that a tensor's storage was given another size, which no operator does: the old one has died."""
        storage = tensor.untyped_storage()
        self._died(storage_key(storage))
        if size := storage.nbytes():
            self.born(tensor, self._at.birth(size, op="resize"))

    def leave(self, tensor: torch.Tensor) -> None:
        """Write down that a tensor's storage is on the device no longer, such as one that was moved to the host."""
        storage = tensor.untyped_storage()
        key = storage_key(storage)
        self._died(key)
        self._elsewhere[key] = weakref.ref(storage, lambda _: self._elsewhere.pop(key, None))

    def pass_by(self, *births: Birth) -> None:
        """Write down what is gone as soon as all of it is there."""
        numbers = [self.tape.add(birth) for birth in births]
        for number in numbers:
            self.tape.begin(number, self._at.layer)
        for number in numbers:
            self.tape.end(number, self._at.layer)

    def close(self) -> None:
        """Follow nothing any longer: what dies from here on would go on growing the tape under whoever reads it."""
        self._live.clear()
        self._elsewhere.clear()

    def _follow(self, tensor: torch.Tensor, number: int) -> None:
        storage = tensor.untyped_storage()
        key = storage_key(storage)
        self._live[key] = weakref.ref(storage, lambda _: self._died(key)), number

    def _died(self, key: int) -> None:
        entry = self._live.pop(key, None)
        if entry is not None:
            number = entry[1]
            self.tape.end(number, self._at.layer if self._at.is_positional else self.tape.births[number].layer)
