"""DeepSpeed's optimizer of stage 2 on the first rank: the tensors that it makes, in its order; nothing is sent.

Source: DeepSpeed 0.9.5, runtime/zero/stage_1_and_2.py, with contiguous gradients, reduce-scatter and overlapping
communication. Weights lie in one flat buffer; each gradient is copied into a bucket as soon as it is there; slices of
the bucket are reduced where they are, in a stream of its own; what belongs to the partition is copied out of it, and
updates the fp32 partition of the weights.
"""

import torch
from torch import nn

from benchmarks.stacks import older_adam
from ftkit.observe.recorder import Recorder

REDUCTION_STREAM = 1


class Stage2:
    """What `deepspeed.initialize` makes of a model in fp16 and of Adam."""

    def __init__(self, model: nn.Module, recorder: Recorder, *, ranks: int, bucket_elements: int, lr: float) -> None:
        """Flatten the weights, and make masters and moments at once (initialize_optimizer_states)."""
        self._recorder, self._bucket_elements, self._ranks = recorder, bucket_elements, ranks
        self._parameters = list(model.parameters())
        numel = sum(parameter.numel() for parameter in self._parameters)
        self._flat = torch.empty(-(-numel // (2 * ranks)) * 2 * ranks, dtype=torch.float16)
        offset = 0
        for parameter in self._parameters:
            parameter.data = self._flat.narrow(0, offset, parameter.numel()).view_as(parameter)
            parameter.register_post_accumulate_grad_hook(self._take)
            offset += parameter.numel()
        self._part = self._flat.numel() // ranks
        self._master = nn.Parameter(self._flat.narrow(0, 0, self._part).clone().float())
        self._adam = older_adam.Adam([self._master], lr=lr)
        self._master.grad = torch.zeros(self._part)
        self._adam.step()
        self._master.grad = None
        self._buckets: list[torch.Tensor] = []
        self._filled = 0
        self._mine: list[torch.Tensor] = []

    def backward(self, loss: torch.Tensor) -> None:
        """Make two buckets, of which the first holds all gradients of a small model, and reduce it at the end."""
        self._buckets = [torch.empty(self._bucket_elements, dtype=torch.float16) for _ in range(2)]
        self._filled = 0
        loss.float().backward()
        assert self._filled <= self._bucket_elements
        self._recorder.live.stream = REDUCTION_STREAM
        self._reduce()
        self._recorder.live.stream = 0
        self._buckets.clear()

    def _take(self, parameter: torch.Tensor) -> None:
        """Copy a gradient into the bucket (reduce_independent_p_g_buckets_and_remove_grads)."""
        assert parameter.grad is not None
        place = self._buckets[0].narrow(0, self._filled, parameter.numel())
        parameter.grad = place.copy_(parameter.grad.view(-1)).view_as(parameter)
        self._filled += parameter.numel()

    def _reduce(self) -> None:
        """Reduce the bucket, and keep the gradients of the partition (average_tensor, copy_grads_in_partition)."""
        self._buckets[0].div_(self._ranks)
        first, touched = 0, []
        for parameter in self._parameters:
            if first < self._part:
                touched.append(parameter)
            first += parameter.numel()
        kept = torch.empty(sum(parameter.numel() for parameter in touched), dtype=torch.float16)
        self._mine, offset = [], 0
        for parameter in touched:
            place = kept.narrow(0, offset, parameter.numel()).copy_(parameter.grad.view(-1))  # type: ignore[union-attr]  # it has come
            self._mine.append(place[: self._part - offset])
            offset += parameter.numel()
        for parameter in self._parameters:
            parameter.grad = None

    def step(self) -> None:
        """Look for overflow, take the norm, and update the partition."""
        for gradient in self._mine:
            gradient.float().sum()
        for gradient in self._mine:
            gradient.double().norm(2)
        whole = self._mine[0] if len(self._mine) == 1 else torch.cat(self._mine)
        self._master.grad = whole.float()
        del whole
        self._mine.clear()
        self._master.grad.mul_(1.0)
        self._adam.step()
        self._master.grad = None
        self._flat.narrow(0, 0, self._part).copy_(self._master.data)
