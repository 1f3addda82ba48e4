"""One rank's share of a step: sizes and choices, read off the dictionary that DeepSpeed will receive."""

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from ftkit.engine.ds_config import Sizes
from ftkit.observe.tape import Birth, Role, Tape
from ftkit.plan.zero.heap import FP32
from ftkit.step.observer import Phase

WEIGHTS = (Role.PARAMETER, Role.TRAINABLE)
"""The roles of weights; the constants of 4-bit weights are not among them."""


@dataclass(frozen=True)
class Partition:
    """The numbers that a stage computes with.

    Attributes:
        tape: of the plain engine.
        settings: what `deepspeed.initialize` receives.
        itemsize: bytes of the compute dtype.
        ranks: W.
        sizes: element counts.
        device_type: `cuda` or `cpu`.
    """

    tape: Tape
    settings: dict[str, Any]
    itemsize: int
    ranks: int
    sizes: Sizes
    device_type: str

    @property
    def zero(self) -> dict[str, Any]:
        """The section `zero_optimization`."""
        section: dict[str, Any] = self.settings["zero_optimization"]
        return section

    @property
    def stage(self) -> int:
        """1, 2 or 3."""
        return int(self.zero["stage"])

    @property
    def optimizer_at(self) -> str:
        """The place of masters, moments and sums: `none` is the device itself, or `cpu`, or `nvme`."""
        return self._place("offload_optimizer")

    @property
    def weights_at(self) -> str:
        """The place of the parts of weights, in the same words."""
        return self._place("offload_param")

    @property
    def on_device(self) -> bool:
        """Whether masters, moments and sums are on the device."""
        return self.optimizer_at == "none"

    @property
    def weights_away(self) -> bool:
        """Whether parts of weights are in another memory than the device's."""
        return self.weights_at != "none"

    @property
    def weights_away_bytes(self) -> int:
        """This rank's parts of weights there."""
        return sum(birth.size for birth in self.weights) // self.ranks if self.weights_away else 0

    def _place(self, key: str) -> str:
        return str(self.zero.get(key, {}).get("device", "none"))

    @property
    def trained(self) -> int:
        """P_t."""
        return self.sizes.num_trainable_parameters

    @property
    def trained_part(self) -> int:
        """P_t / W."""
        return math.ceil(self.trained / self.ranks)

    @property
    def bucket(self) -> int:
        """Elements of a bucket of gradients."""
        return int(self.zero["reduce_bucket_size"])

    @property
    def num_buckets(self) -> int:
        """The number of buckets: one is filled while another is sent."""
        return 2 if self.zero.get("overlap_comm") else 1

    @property
    def weights(self) -> list[Birth]:
        """All weights of the model."""
        return [birth for birth in self.tape.births if birth.role in WEIGHTS]

    @property
    def host_bytes(self) -> int:
        """The masters, moments and sums that are offloaded, what they are copied through, and offloaded weights."""
        if self.on_device:
            states = 0
        elif self.stage == 3:
            states = 5 * FP32 * self.trained_part  # masters, two moments, and gradients twice
        else:
            states = (4 * FP32 + self.itemsize) * self.trained_part + self.itemsize * self.sizes.largest_trainable
            if self.stage == 2 and not self.is_mixed and self.accumulates:
                states += FP32 * self.trained_part  # what the earlier micro-batches have left
        return states + self.weights_away_bytes

    @property
    def accumulates(self) -> bool:
        """Whether a step has several micro-batches."""
        return any(birth.phase is Phase.FORWARD and birth.micro_batch > 0 for birth in self.tape.births)

    @property
    def is_mixed(self) -> bool:
        """Whether the masters are tensors of their own, because the weights are in half precision."""
        return self.itemsize != FP32

    @property
    def has_bf16_optimizer(self) -> bool:
        """Whether DeepSpeed's BF16_Optimizer is at work (runtime/engine.py, _do_optimizer_sanity_check)."""
        return self.stage == 1 and "bf16" in self.settings and self.on_device

    @property
    def largest_part(self) -> int:
        """Elements of the largest part of a trained tensor."""
        return math.ceil(self.sizes.largest_trainable / self.ranks)

    @property
    def groups(self) -> tuple[list[int], list[int]]:
        """Elements of the trained tensors: of those that decay, and of those that do not (`engine.optim`)."""
        trained = [birth for birth in self.weights if birth.role is Role.TRAINABLE]
        matrices, rest = (
            [elements(one) for one in trained if (len(one.shape) > 1) is decays] for decays in (True, False)
        )
        return matrices, rest

    @property
    def touched(self) -> int:
        """Elements of the trained tensors of which a rank owns at least a part, of the rank with most of them."""
        by_rank = [_touched(group, self.ranks) for group in self.groups]
        return max(map(sum, zip(*by_rank, strict=True)))


def _touched(sizes: list[int], ranks: int) -> list[int]:
    """Return for each rank the elements of the tensors that its part of a group begins, ends or lies in.

    Args:
        sizes: of the tensors, one behind the other, which are cut into equal parts.
        ranks: W.
    """
    part, ends = math.ceil(sum(sizes) / ranks), list(accumulate(sizes))
    return [
        sum(size for size, end in zip(sizes, ends, strict=True) if end > rank * part and end - size < (rank + 1) * part)
        for rank in range(ranks)
    ]


def elements(birth: Birth) -> int:
    """Count the elements of a birth."""
    return math.prod(birth.shape)
