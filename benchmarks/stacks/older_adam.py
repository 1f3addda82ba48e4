"""torch's Adam over lists of tensors as it was until July 2023, with two temporary lists where later ones have one.

Source: torch 2.0, torch/optim/adam.py, _multi_tensor_adam; pull request 104780 of pytorch made the second list go away.
"""

from collections.abc import Iterable

import torch


class Adam:
    """Stands in for `torch.optim.Adam`; the numbers of steps are on the host and are left out."""

    def __init__(self, parameters: Iterable[torch.Tensor], lr: float) -> None:
        """Start without state."""
        self._parameters, self._lr = list(parameters), lr
        self._means: dict[int, torch.Tensor] = {}
        self._squares: dict[int, torch.Tensor] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        chosen = [(number, one) for number, one in enumerate(self._parameters) if one.grad is not None]
        for number, parameter in chosen:
            if number not in self._means:
                self._means[number], self._squares[number] = (torch.zeros_like(parameter) for _ in range(2))
        numbers, parameters = [number for number, _ in chosen], [one for _, one in chosen]
        means, squares = [self._means[number] for number in numbers], [self._squares[number] for number in numbers]
        gradients = [one.grad for one in parameters if one.grad is not None]
        torch._foreach_mul_(means, 0.9)
        torch._foreach_add_(means, gradients, alpha=0.1)
        torch._foreach_mul_(squares, 0.999)
        torch._foreach_addcmul_(squares, gradients, gradients, 0.001)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, [1.0] * len(numbers))
        denominators = torch._foreach_add(roots, 1e-8)
        torch._foreach_addcdiv_(parameters, means, denominators, [-self._lr] * len(numbers))

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for parameter in self._parameters:
            parameter.grad = None
