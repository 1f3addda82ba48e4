"""A dispatch mode that writes a tape of what runs below it.

The same mode watches tensors without values (a plan) and real ones (a test, a profile), so that the two can be held
against each other to the byte.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn

from ftkit.engine.foreign import storage_key
from ftkit.observe import foreign
from ftkit.observe.inplace_sums import ADD, autograd_adds_in_place, references_of_the_last
from ftkit.observe.operators import dtype_name, kind_of, op_key
from ftkit.observe.tape import BACKWARD, EVALUATION, FORWARD, LOAD, OPTIMIZER, Birth, OpKey, Tape
from ftkit.step.observer import Phase

_DEVICE_OF = torch.ops.prim.device.default


class Recorder(foreign.DispatchMode):
    """Records on a tape what runs below it.

    Attributes:
        tape: the record so far.
        phase, step, micro_batch, stream: said by whoever drives the step.
    """

    def __init__(
        self,
        sizes: Callable[[str, int, torch.Tensor], int] | None = None,
        scratch: Callable[[str, tuple[Any, ...]], tuple[int, ...]] | None = None,
        device_type: str | None = None,
        call: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any] | None = None,
    ) -> None:
        """Start an empty tape.

        Args:
            sizes: (operator, number of the output, output) to the bytes of its storage where another device than
                this one would make it larger or smaller; None: as they are.
            scratch: (operator, arguments) to the sizes of what it holds beside its results; None: nothing.
            device_type: whose storages are written down, such as `cuda`; None: those of any device.
            call: runs an operator; None: torch does.
        """
        super().__init__()
        self.tape = Tape()
        self.phase: Phase = LOAD
        self.step, self.micro_batch, self.stream = 0, 0, 0
        self.module = ""
        self.layer: int | None = None
        self._sizes, self._scratch, self._device_type, self._call = sizes, scratch, device_type, call
        self._live: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._elsewhere: dict[int, weakref.ref[Any]] = {}
        self._depth = 0
        self._last: int | None = None
        references_of_the_last()  # counted before a backward runs

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator and write down what it made."""
        # Autograd asks for the device of each gradient, two thirds of all calls; the answer needs no dispatch.
        if func is _DEVICE_OF and (device := foreign.fake_device(args[0])) is not None:
            return device
        if any(map(_wraps, types)):
            return NotImplemented  # the tensors inside it are seen when its own code computes with them
        out = func(*args, **(kwargs or {})) if self._call is None else self._call(func, args, kwargs or {})
        kind = kind_of(func)
        if kind == "free":
            return out
        if kind != "view":
            self._cost(func, args, out)
        if func is ADD and self.phase == BACKWARD and autograd_adds_in_place(args):
            self._take_over(args[0], out)
            return out
        for number, tensor in enumerate(out if isinstance(out, (tuple, list)) else (out,)):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor, func, number, args)
        if self._scratch is not None and kind != "view" and (sizes := self._scratch(func.__name__, args)):
            self._hold(func.__name__, sizes)
        return out

    def _hold(self, op: str, sizes: tuple[int, ...]) -> None:
        """Write down what an operator holds while it runs; its results are there already."""
        self._add_cost(self.layer, (f"{op} scratch", 0, 2 * sum(sizes), ""))  # written once and read once
        self.pass_by(
            *(Birth(size, self.phase, self.step, self.micro_batch, self.module, self.layer, op=op) for size in sizes)
        )

    def see(self, tensors: Iterable[tuple[str, torch.Tensor]], role: str, layers: dict[str, int] | None = None) -> None:
        """Write down tensors that were there before, and say what they are of those that were not.

        Args:
            tensors: names and tensors.
            role: what they are.
            layers: module name of a layer to its number, which its tensors get.
        """
        for name, tensor in tensors:
            layer = layer_named(name, layers or {})
            storage = tensor.untyped_storage()
            entry = self._live.get(storage_key(storage))
            if self._is_elsewhere(tensor):
                continue
            if entry is None:
                birth = Birth(storage.nbytes(), self.phase, self.step, self.micro_batch, name, layer, role=role)
                self._born(storage, birth, tensor)
            elif not self.tape.births[entry[1]].role:  # made under the recorder, and named only now
                self.tape.births[entry[1]].role = role

    def _is_elsewhere(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor is not on the device that is watched, or has left it."""
        if self._device_type not in (None, tensor.device.type):
            return True
        return bool(self._elsewhere) and storage_key(tensor.untyped_storage()) in self._elsewhere

    def rename(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Give a role to tensors that are on the tape already: pairs of role and tensor."""
        for role, tensor in tensors:
            entry = self._live.get(storage_key(tensor.untyped_storage()))
            if entry is not None:
                self.tape.births[entry[1]].role = role

    def resized(self, tensor: torch.Tensor) -> None:
        """Write down that a tensor's storage was given another size, which no operator does: the old one has died."""
        storage = tensor.untyped_storage()
        self._died(storage_key(storage))
        if size := storage.nbytes():
            birth = Birth(size, self.phase, self.step, self.micro_batch, self.module, self.layer, op="resize")
            self._born(storage, birth, tensor)

    def leave(self, tensor: torch.Tensor) -> None:
        """Write down that a tensor's storage is on the device no longer, such as one that was moved to the host."""
        storage = tensor.untyped_storage()
        key = storage_key(storage)
        self._died(key)
        self._elsewhere[key] = weakref.ref(storage, lambda _: self._elsewhere.pop(key, None))

    def number_of(self, tensor: torch.Tensor) -> int | None:
        """Return the number of a tensor's storage on the tape; None: it is not there."""
        entry = self._live.get(storage_key(tensor.untyped_storage()))
        return None if entry is None else entry[1]

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Follow a phase of a step; what comes after it belongs to it until the next one begins."""
        self.phase, self.layer = phase, None
        yield
        self.mark(phase)
        if phase is Phase.BACKWARD:
            self.micro_batch += 1

    def mark(self, name: Phase) -> None:
        """End a phase."""
        self.tape.marks.append((len(self.tape.events), name))

    def layer_of(self, tensor: object) -> int | None:
        """Return the layer that a tensor's storage belongs to."""
        birth = self._birth_of(tensor)
        return None if birth is None else birth.layer

    def _birth_of(self, tensor: object) -> Birth | None:
        if not isinstance(tensor, torch.Tensor):
            return None
        entry = self._live.get(storage_key(tensor.untyped_storage()))
        return None if entry is None else self.tape.births[entry[1]]

    def _see(self, tensor: torch.Tensor, func: Any, number: int, args: tuple[Any, ...]) -> None:
        storage = tensor.untyped_storage()
        if storage_key(storage) in self._live or self._is_elsewhere(tensor):
            return
        size = storage.nbytes() if self._sizes is None else self._sizes(func.__name__, number, tensor)
        layer = self.layer if self._is_positional else self._inherited(number, args)
        self._last = layer
        module = self.module or ("" if self._is_positional else self._parent_module(number, args))
        birth = Birth(
            size, self.phase, self.step, self.micro_batch, module, layer, self.is_recomputing, op=func.__name__
        )
        self._born(storage, birth, tensor)

    def _take_over(self, old: torch.Tensor, new: torch.Tensor) -> None:
        """Let a sum of gradients live where its first summand lived."""
        entry = self._live.pop(storage_key(old.untyped_storage()), None)
        storage = new.untyped_storage()
        if entry is None:
            self._see(new, ADD, 0, (old,))
        else:
            key = storage_key(storage)
            self._live[key] = (weakref.ref(storage, lambda _: self._died(key)), entry[1])

    @property
    def _is_positional(self) -> bool:
        """The passes go through the layers; loading and the optimizer go through lists of parameters."""
        return self.phase in (FORWARD, BACKWARD, EVALUATION)

    @property
    def is_recomputing(self) -> bool:
        """Whether a forward runs inside the backward."""
        return self.phase == BACKWARD and self._depth > 0

    def _inherited(self, number: int, args: tuple[Any, ...]) -> int | None:
        for argument in args:
            if isinstance(argument, (list, tuple)):
                if number < len(argument) and (layer := self.layer_of(argument[number])) is not None:
                    return layer
            elif (layer := self.layer_of(argument)) is not None:
                return layer
        # A counter made of nothing, between the moments of one parameter and those of the next.
        return self._last if self.phase == OPTIMIZER else None

    def _parent_module(self, number: int, args: tuple[Any, ...]) -> str:
        """Return the module of what a tensor is made from: a master of its weight, a moment of its master."""
        for argument in args:
            parent = argument[number] if isinstance(argument, (list, tuple)) and number < len(argument) else argument
            birth = self._birth_of(parent)
            if birth is not None and birth.module:
                return birth.module
        return ""

    def _born(self, storage: Any, birth: Birth, tensor: torch.Tensor) -> None:
        birth.shape, birth.dtype, birth.stream = tuple(tensor.shape), dtype_name(tensor.dtype), self.stream
        number = len(self.tape.births)
        self.tape.births.append(birth)
        key = storage_key(storage)
        self._live[key] = (weakref.ref(storage, lambda _: self._died(key)), number)
        self.tape.events.append((number, birth.layer))

    def _died(self, key: int) -> None:
        entry = self._live.pop(key, None)
        if entry is not None:
            number = entry[1]
            layer = self.layer if self._is_positional else self.tape.births[number].layer
            self.tape.events.append((~number, layer))

    def pass_by(self, *births: Birth) -> None:
        """Write down what is gone as soon as all of it is there."""
        numbers = range(len(self.tape.births), len(self.tape.births) + len(births))
        self.tape.births += births
        self.tape.events += [(number, self.layer) for number in numbers]
        self.tape.events += [(~number, self.layer) for number in numbers]

    def _cost(self, func: Any, args: tuple[Any, ...], out: Any) -> None:
        if self._is_positional:
            key = op_key(func.__name__, args, out)
            self._add_cost(self.layer, key)
            if self.is_recomputing:
                self.tape.recomputed_flops[self.step, self.layer] += key[1]
            return
        # Lists of parameters are told one by one, each to the layer that its parameter belongs to.
        lists = [argument for argument in (*args, out) if isinstance(argument, (list, tuple)) and argument]
        if not lists or not isinstance(lists[0][0], torch.Tensor):
            self._add_cost(self._inherited(0, args), op_key(func.__name__, args, out))
            return
        for number, tensor in enumerate(lists[0]):
            parts = tuple(one[number] for one in lists if number < len(one))
            self._add_cost(self.layer_of(tensor), op_key(f"_fused{func.__name__}", parts, None))

    def _add_cost(self, layer: int | None, key: OpKey) -> None:
        self.tape.costs.setdefault((self.phase, self.step, layer), Counter())[key] += 1

    @contextmanager
    def inside(self, model: nn.Module, layers: dict[str, int]) -> Iterator["Recorder"]:
        """Follow the forwards of `model` by hooks, its backwards by hooks on the layers' outputs; then close the tape.

        Args:
            model: whose modules are named on the tape.
            layers: module name of a layer to its number.
        """
        names = {module: name for name, module in model.named_modules()}
        handles = [*self._name_hooks(names)]
        for name, number in layers.items():
            handles.extend(self._layer_hooks(model.get_submodule(name), number, number + 1 == len(layers)))
        try:
            with self:
                yield self
        finally:
            for handle in handles:
                handle.remove()
            # What dies from here on is not part of the tape, which would otherwise keep growing under whoever reads it.
            self._live.clear()
            self._elsewhere.clear()

    def _name_hooks(self, names: dict[nn.Module, str]) -> Iterator[Any]:
        stack: list[str] = []

        def enter(module: nn.Module, _: Any) -> None:
            if module in names:
                stack.append(self.module)
                self.module = names[module]
                self._depth += 1

        def leave(module: nn.Module, *_: Any) -> None:
            if module in names and stack:
                self.module = stack.pop()
                self._depth -= 1

        yield nn.modules.module.register_module_forward_pre_hook(enter)
        # A recomputation stops by an exception as soon as it has what it needs: the hook runs then too.
        yield nn.modules.module.register_module_forward_hook(leave, always_call=True)

    def _layer_hooks(self, layer: nn.Module, number: int, is_last: bool) -> Iterator[Any]:
        def move(_: Any, to: int | None = number) -> None:
            self.layer = to

        def enter(_: nn.Module, args: tuple[Any, ...]) -> None:
            if self.phase == FORWARD and number == 0 and args and _needs_grad(args[0]):
                args[0].register_hook(lambda grad: move(grad, None))
            self.layer = number

        def leave(_: nn.Module, __: Any, out: Any) -> None:
            hidden = out[0] if isinstance(out, tuple) else out
            if self.phase == FORWARD and _needs_grad(hidden):
                hidden.register_hook(move)
            if self.phase in (FORWARD, EVALUATION) and is_last:
                self.layer = None

        yield layer.register_forward_pre_hook(enter)
        yield layer.register_forward_hook(leave)


def layer_named(name: str, layers: dict[str, int]) -> int | None:
    """Return the number of the layer whose module's name begins a name; None: none."""
    return next((number for prefix, number in layers.items() if name.startswith(f"{prefix}.")), None)


@cache
def _wraps(kind: type) -> bool:
    """Return whether tensors of a type hold other tensors, such as torchao's 4-bit ones."""
    return foreign.wraps_tensors(kind)


def _needs_grad(tensor: object) -> bool:
    return isinstance(tensor, torch.Tensor) and tensor.requires_grad
