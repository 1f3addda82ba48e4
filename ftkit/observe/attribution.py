"""What is at work: the phase and the micro-batch of a step, the module and the layer of a model.

A forward goes through modules, which hooks follow. A backward calls no module: a hook on the gradient of a layer's
output says that it has come to that layer, and one on the gradient of the first layer's input that it has left them.
Loading and the optimizer go through lists of parameters, and what they make belongs where its parameter does.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ftkit.observe.tape import Birth, Role
from ftkit.step.observer import Phase

BirthOf = Callable[[object], Birth | None]
"""Looks up a tensor's storage on the tape."""


class Attribution:
    """Where a step is.

    Attributes:
        phase: what is going on; what comes after a phase belongs to it until the next one begins.
        step: the optimizer step, from 1; 0 while loading.
        micro_batch: of the step, from 0.
        module: the innermost module whose forward runs.
        layer: the layer at work, from 0; None outside the layers.
        is_positional: the passes go through the layers; loading and the optimizer go through lists of parameters.
    """

    def __init__(self) -> None:
        """Start with loading."""
        self.phase, self.is_positional = Phase.LOAD, False
        self.step = self.micro_batch = 0
        self.module = ""
        self.layer: int | None = None
        self._depth = 0
        self._last: int | None = None

    @property
    def is_recomputing(self) -> bool:
        """Whether a forward runs inside the backward."""
        return self.phase is Phase.BACKWARD and self._depth > 0

    def begin(self, phase: Phase) -> None:
        """Begin a phase, outside the layers."""
        self.phase, self.layer = phase, None
        self.is_positional = phase not in (Phase.LOAD, Phase.OPTIMIZER)

    def birth(self, size: int, *, op: str = "", role: Role | None = None) -> Birth:
        """Return a birth here and now."""
        return Birth(size, self.phase, self.step, self.micro_batch, self.module, self.layer, role=role, op=op)

    def birth_of_output(self, size: int, op: str, number: int, args: tuple[Any, ...], birth_of: BirthOf) -> Birth:
        """Return the birth of what an operator has made.

        Args:
            size: bytes of its storage.
            op: the operator.
            number: which of its outputs it is.
            args: of the operator.
            birth_of: looks up what it was made from.
        """
        birth = self.birth(size, op=op)
        birth.recomputed = self.is_recomputing
        if not self.is_positional:
            birth.layer = self.inherited(number, args, birth_of)
            birth.module = self.module or _parent_module(number, args, birth_of)
        self._last = birth.layer
        return birth

    def inherited(self, number: int, args: tuple[Any, ...], birth_of: BirthOf) -> int | None:
        """Return the layer of what an output is made from: the first argument that is of a layer."""
        for argument in args:
            birth = birth_of(_part(argument, number))
            if birth is not None and birth.layer is not None:
                return birth.layer
        # A counter made of nothing, between the moments of one parameter and those of the next.
        return self._last if self.phase is Phase.OPTIMIZER else None

    @contextmanager
    def inside(self, model: nn.Module, layers: dict[str, int]) -> Iterator[None]:
        """Follow the forwards of `model` by hooks, its backwards by hooks on the layers' outputs.

        Args:
            model: whose modules are named.
            layers: module name of a layer to its number.
        """
        handles = [*self._name_hooks({module: name for name, module in model.named_modules()})]
        for name, number in layers.items():
            handles.extend(self._layer_hooks(model.get_submodule(name), number, number + 1 == len(layers)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

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
            if self.phase is Phase.FORWARD and number == 0 and args and _needs_grad(args[0]):
                args[0].register_hook(lambda grad: move(grad, None))
            self.layer = number

        def leave(_: nn.Module, __: Any, out: Any) -> None:
            hidden = out[0] if isinstance(out, tuple) else out
            if self.phase is Phase.FORWARD and _needs_grad(hidden):
                hidden.register_hook(move)
            if self.phase in (Phase.FORWARD, Phase.EVALUATION) and is_last:
                self.layer = None

        yield layer.register_forward_pre_hook(enter)
        yield layer.register_forward_hook(leave)


def layer_named(name: str, layers: dict[str, int]) -> int | None:
    """Return the number of the layer whose module's name begins a name; None: none."""
    end = len(name)
    while (end := name.rfind(".", 0, end)) > 0:
        if (number := layers.get(name[:end])) is not None:
            return number
    return None


def _part(argument: object, number: int) -> object:
    """Return the entry of a list of tensors that an output was made from; anything else as it is."""
    if isinstance(argument, (list, tuple)):
        return argument[number] if number < len(argument) else None
    return argument


def _parent_module(number: int, args: tuple[Any, ...], birth_of: BirthOf) -> str:
    """Return the module of what a tensor is made from: a master of its weight, a moment of its master."""
    births = (birth_of(_part(argument, number)) for argument in args)
    return next((birth.module for birth in births if birth is not None and birth.module), "")


def _needs_grad(tensor: object) -> bool:
    return isinstance(tensor, torch.Tensor) and tensor.requires_grad
