"""What Python around a model's modules costs, as DeepSpeed hangs it there: timed where it runs, inside real steps.

A hook here does what each of DeepSpeed's does (deepspeed/runtime/zero/parameter_offload.py): it looks through the
parameters of its module, and hands the tensors on through an identity of autograd's. Among operators that empty the
caches it takes twice as long as in a loop of its own, as DeepSpeed's do; so DeepSpeed's are told in hooks.
"""

import contextlib
import math
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

HOOKS = "hooks of DeepSpeed"
"""The name on a tape of Python that takes as long as a hook here, and neither computes nor moves bytes."""
_MODULES, _ROUNDS = 20, 6
"""Of the loop of its own."""
_MOST = 0.99
"""Of the calls; what interrupted the others was not theirs."""


class Hooks:
    """Hooks around modules, and what each call of them took.

    Attributes:
        seconds: of each call in a forward.
    """

    def __init__(self) -> None:
        """Start with none."""
        self.seconds: list[float] = []

    def usual(self) -> float:
        """Return the seconds of a call: of most their mean, since it is all of them that a step takes."""
        most = sorted(self.seconds)[: math.ceil(_MOST * len(self.seconds))]
        return statistics.fmean(most)

    @contextlib.contextmanager
    def around(self, model: nn.Module) -> Iterator[None]:
        """Hang one before and one after each module of a model for a while."""
        handles = [handle for module in model.modules() for handle in self._hang(module)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hang(self, module: nn.Module) -> tuple[Any, Any]:
        seen: set[str] = set()

        def look() -> None:
            there = {id(one) for one in module.parameters(recurse=False)}
            seen.update(name for name, one in module.named_parameters(recurse=False) if id(one) in there)
            seen.clear()

        class Told(_Identity):
            @staticmethod
            def setup_context(ctx: Any, inputs: Any, output: Any) -> None:  # noqa: ARG004  # autograd gives all three
                ctx.look = look

        def hand_on(value: Any) -> Any:
            begun = time.thread_time()
            look()
            handed = _over_tensors(Told, value)
            self.seconds.append(time.thread_time() - begun)
            return handed

        before = module.register_forward_pre_hook(lambda _, inputs: hand_on(inputs))
        return before, module.register_forward_hook(lambda _, __, output: hand_on(output))


def hook_seconds() -> float:
    """Return what a hook takes in a loop of its own."""
    hooks, model = Hooks(), nn.Sequential(*(nn.Identity() for _ in range(_MODULES)))
    with hooks.around(model):
        for _ in range(_ROUNDS):
            model(torch.ones(1, requires_grad=True)).backward()
    return hooks.usual()


class _Identity(torch.autograd.Function):
    """The tensor itself; looks through a module's parameters when its gradient comes by."""

    @staticmethod
    def forward(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        ctx.look()
        return grads


def _over_tensors(function: type[_Identity], value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        # torch types `apply` for no function in particular.
        return function.apply(value)  # type: ignore[no-untyped-call]
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return type(value)(_over_tensors(function, one) for one in value)
    return value
