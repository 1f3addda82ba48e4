"""A module in the place of a layer, while the model's own code runs around it."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

STATES = "hidden_states"
"""What transformers' layers call their first argument, where it is given by name."""
Form = int | None
"""What a layer returns: None a tensor, else a tuple of so many, the tensor first."""


class StandIn(nn.Module):
    """Does something else in the place of a layer; what the model's code asks a layer about itself stays."""

    def __init__(self, layer: nn.Module, run: Callable[..., Any]) -> None:
        """Stand in.

        Args:
            layer: whose place it is.
            run: is called with what the layer would be called with.
        """
        super().__init__()
        self._run = run
        self._attributes = {
            name: value
            for name, value in vars(layer).items()
            if not name.startswith("_") and name not in ("training", "config")
        }

    def __getattr__(self, name: str) -> Any:
        """Return what the layer says of itself."""
        attributes = self.__dict__.get("_attributes", {})
        return attributes[name] if name in attributes else super().__getattr__(name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run."""
        return self._run(*args, **kwargs)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in the arguments or the result of a layer, the first one first."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors_in(tuple(value.values()))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from tensors_in(one)


def states_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Return the hidden states among the arguments of a layer, the first of them."""
    hidden: torch.Tensor = args[0] if args else kwargs[STATES]
    return hidden


def with_states(
    args: tuple[Any, ...], kwargs: dict[str, Any], hidden: torch.Tensor | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a layer with other hidden states; None: without any."""
    return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {STATES: hidden})


def formed(hidden: torch.Tensor, form: Form) -> Any:
    """Return hidden states in the form in which a layer returns them.

    Args:
        hidden: [B, T, D].
        form: of what the layer returns; None stands for what else it would return.
    """
    return hidden if form is None else (hidden, *[None] * (form - 1))


def handing_on(form: Form) -> Callable[..., Any]:
    """Return what hands on the hidden states that it is given.

    Args:
        form: of what it returns.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        return formed(states_of(args, kwargs), form)

    return run
