"""Record when a step enters and leaves each module: what ZeRO-3's coordinator is told.

DeepSpeed hangs an identity before and after every module, so that it hears of its forward and, from autograd, of its
backward (deepspeed/runtime/zero/parameter_offload.py, _register_deepspeed_module). The same identities here write
each such moment on the tape, as a storage of no bytes, so that what unrolls a tape carries it along.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import nn

from ftkit.engine.foreign import own_parameters, watch_parameters
from ftkit.observe.recorder import Recorder
from ftkit.observe.tape import Birth
from ftkit.step.observer import Phase


class Moment(Enum):
    """The events of a module and of its parameters."""

    ENTER = "its forward begins"
    LEAVE = "its forward has ended"
    ENTER_BACKWARD = "its backward begins"
    LEAVE_BACKWARD = "its backward has ended"
    TOUCH = "it asks for a parameter of another module"
    GRADIENT = "a parameter has a gradient"
    SUMMED = "the plain engine has added the gradient to its sum"


@dataclass(slots=True)
class Visit(Birth):
    """A moment of a module, as a storage of no bytes.

    Attributes:
        moment: which.
        weights: names of the parameters that are its own, or of the one that has a gradient.
        is_root: of the whole model.
        needs_grad: a forward whose input needs a gradient, so that autograd keeps the weight.
        is_packed: its weight is in 4 bits.
    """

    moment: Moment = Moment.ENTER
    weights: tuple[str, ...] = ()
    is_root: bool = False
    needs_grad: bool = False
    is_packed: bool = False


class Visits:
    """Writes the visits of a model's modules on a recorder's tape."""

    def __init__(self, recorder: Recorder, model: nn.Module, layers: dict[str, int]) -> None:
        """Hang the identities into the model; before the engine adds hooks of its own to the parameters."""
        self._recorder, self._layers, self._model = recorder, layers, model
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        for name, module in model.named_modules():
            self._watch(name, module)
            watch_parameters(module, _Watched(own_parameters(module), name, self._touch))
        self._hear_gradients(Moment.GRADIENT)

    def engine_is_built(self) -> None:
        """Hear when the plain engine has added a gradient to its sums: what it makes in between is its own."""
        self._hear_gradients(Moment.SUMMED)

    def _hear_gradients(self, moment: Moment) -> None:
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._teller(moment, name, (name,)))

    def _touch(self, owner: str, parameter: nn.Parameter) -> None:
        """Tell of a weight that a module asks another one for: DeepSpeed gathers it for the one that asks."""
        at = self._recorder.at
        if at.phase is Phase.FORWARD and at.module != owner:
            self._tell(Moment.TOUCH, at.module, (self._names[id(parameter)],))

    def _watch(self, name: str, module: nn.Module) -> None:
        own = [parameter for parameter in own_parameters(module).values() if parameter is not None]
        weights = tuple(self._names[id(parameter)] for parameter in own)
        packed = any(getattr(parameter, "quant_state", None) is not None for parameter in own)
        remaining = [0]

        def enter(_: nn.Module, inputs: tuple[Any, ...]) -> Any:
            needs_grad = any(isinstance(one, torch.Tensor) and one.requires_grad for one in inputs)
            self._tell(Moment.ENTER, name, weights, needs_grad=needs_grad, is_packed=packed)
            remaining[0] = 0
            return _over_tensors(after, inputs)

        def after(tensor: torch.Tensor) -> torch.Tensor:
            remaining[0] += tensor.requires_grad
            return _identity(tensor, left)

        def left() -> None:
            remaining[0] -= 1
            if remaining[0] == 0:
                self._tell(Moment.LEAVE_BACKWARD, name, weights)

        def leave(_: nn.Module, __: Any, output: Any) -> Any:
            self._tell(Moment.LEAVE, name, weights)
            return _over_tensors(lambda one: _identity(one, self._teller(Moment.ENTER_BACKWARD, name, weights)), output)

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)

    def _teller(self, moment: Moment, name: str, weights: tuple[str, ...]) -> Callable[..., None]:
        return lambda *_: self._tell(moment, name, weights)

    def _tell(
        self, moment: Moment, name: str, weights: tuple[str, ...], *, needs_grad: bool = False, is_packed: bool = False
    ) -> None:
        at = self._recorder.at
        parts = name.split(".")
        homes = (self._layers.get(".".join(parts[:end])) for end in range(len(parts), 0, -1))
        home = next((number for number in homes if number is not None), None)
        self._recorder.live.pass_by(
            Visit(
                0,
                at.phase,
                at.step,
                at.micro_batch,
                name,
                home,
                at.is_recomputing,
                op=moment.name,
                moment=moment,
                weights=weights,
                is_root=not name,
                needs_grad=needs_grad,
                is_packed=is_packed,
            )
        )


class _Watched(dict[str, nn.Parameter | None]):
    """A module's parameters, which tell when one is asked for (parameter_offload.py, ZeROOrderedDict)."""

    def __init__(self, parameters: Any, owner: str, touch: Callable[[str, nn.Parameter], None]) -> None:
        super().__init__(parameters)
        self._owner, self._touch = owner, touch

    def __getitem__(self, key: str) -> nn.Parameter | None:
        parameter = super().__getitem__(key)
        if parameter is not None:
            self._touch(self._owner, parameter)
        return parameter


class _Identity(torch.autograd.Function):
    """The tensor itself; calls back when its gradient comes by."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, call: Callable[[], None]) -> torch.Tensor:
        ctx.call = call
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        ctx.call()
        return (*grads, None)


def _identity(tensor: torch.Tensor, call: Callable[[], None]) -> torch.Tensor:
    if not tensor.requires_grad:  # no gradient comes by; and a copy of a weight in 4 bits would have no constants
        return tensor
    # torch types `apply` for no function in particular.
    return _Identity.apply(tensor, call)  # type: ignore[no-untyped-call, no-any-return]


def _over_tensors(function: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """Apply a function to each tensor in nested containers (as zero/utils.py, apply_to_tensors_only)."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, (tuple, list)):
        made = [_over_tensors(function, one) for one in value]
        return type(value)(*made) if hasattr(value, "_fields") else type(value)(made)
    if isinstance(value, dict):
        for key in value:
            value[key] = _over_tensors(function, value[key])
    return value
