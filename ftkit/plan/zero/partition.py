"""One rank's share of a step: sizes and choices, read off the dictionary that DeepSpeed will receive."""

import math
from dataclasses import dataclass
from typing import Any

from ftkit.engine.ds_config import Sizes
from ftkit.observe.tape import FORWARD, Birth, Tape
from ftkit.plan.zero.gather import FP32

WEIGHTS = ("parameter", "trainable")
"""The roles of what is a weight; the constants of 4-bit weights are none."""


@dataclass(frozen=True)
class Shares:
    """What the arithmetic of a stage is made of.

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
        """Where masters, moments and sums are: `none` is the device itself, or `cpu`, or `nvme`."""
        return self._place("offload_optimizer")

    @property
    def weights_at(self) -> str:
        """Where partitions of weights are, in the same words."""
        return self._place("offload_param")

    @property
    def on_device(self) -> bool:
        """Whether masters, moments and sums are on the device."""
        return self.optimizer_at == "none"

    @property
    def weights_away(self) -> bool:
        """Whether partitions of weights are not."""
        return self.weights_at != "none"

    def _place(self, key: str) -> str:
        return str(self.zero.get(key, {}).get("device", "none"))

    @property
    def trained(self) -> int:
        """P_t."""
        return self.sizes.num_trainable_parameters

    @property
    def part(self) -> int:
        """P_t / W."""
        return math.ceil(self.trained / self.ranks)

    @property
    def bucket(self) -> int:
        """Elements of the bucket."""
        return int(self.zero["reduce_bucket_size"])

    @property
    def weights(self) -> list[Birth]:
        """What is partitioned at stage 3: the constants of 4-bit weights are not."""
        return [birth for birth in self.tape.births if birth.role in WEIGHTS]

    @property
    def host_bytes(self) -> int:
        """Masters, two moments, gradients in fp32; a second sum of gradients, or what stages 1 and 2 copy through."""
        if self.on_device:
            states = 0
        elif self.stage == 3:
            states = 5 * FP32 * self.part
        else:
            states = (4 * FP32 + self.itemsize) * self.part + self.itemsize * self.sizes.largest_trainable
            if self.stage == 2 and not self.is_mixed and self.accumulates:
                states += FP32 * self.part  # what the earlier micro-batches have left
        return states + (sum(birth.size for birth in self.weights) // self.ranks if self.weights_away else 0)

    @property
    def accumulates(self) -> bool:
        """Whether a step has several micro-batches."""
        return any(birth.phase == FORWARD and birth.micro_batch > 0 for birth in self.tape.births)

    @property
    def is_mixed(self) -> bool:
        """Whether the masters are others than the weights."""
        return self.itemsize != FP32

    @property
    def sums_gradients_whole(self) -> bool:
        """Whether DeepSpeed's BF16_Optimizer is at work (engine.py, _do_optimizer_sanity_check)."""
        return self.stage == 1 and "bf16" in self.settings and self.on_device

    @property
    def largest_share(self) -> int:
        """Elements of the largest partition of a trained tensor."""
        return math.ceil(self.sizes.largest_trainable / self.ranks)


def elements(birth: Birth) -> int:
    """Count the elements of a birth."""
    return math.prod(birth.shape)
