"""What ZeRO makes of a step: arithmetic over the very dictionary that DeepSpeed will receive.

The plain engine's tape says what the model does. Of that, ZeRO replaces what it owns: masters, moments, gradient sums
and, at stage 3, the weights. Per rank, with P_t trained elements, P all elements, c bytes of the compute dtype and W
ranks (deepspeed/runtime/{bf16_optimizer, zero/stage_1_and_2, zero/stage3}.py, as allocated by 0.19):

    stage 1   flat weights c P_t, fp32 gradient sums 4 P_t, fp32 masters 4 P_t / W, half gradients c P_t until the step
    stage 2   flat weights c P_t, fp32 masters 4 P_t / W, a gradient buffer of the partition, sums 4 P_t / W, the bucket
    stage 3   weights c P / W, masters 4 P_t / W, sums 4 P_t / W, the bucket in fp32, a window of gathered weights
    moments   8 P_t / W from the first step on, in all of them

Offloading moves masters, moments and sums into host memory, and offloaded parameters' share too; nvme moves them on.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

from ftkit.config import RunConfig
from ftkit.ds_config import Sizes, deepspeed_dict
from ftkit.plan.place import Place
from ftkit.plan.tape import BACKWARD, FORWARD, LOAD, OPTIMIZER, Birth, Tape
from ftkit.plan.timeline import kinds

FP32 = 4
_ITEMSIZE = {"fp32": 4, "fp16": 2, "bf16": 2}
PCIE_BYTES_PER_SECOND = 12e9
"""What pinned copies over PCIe 3.0 x16 reach of its 16 GB/s (NVIDIA's bandwidthTest)."""
CPU_ADAM_BYTES_PER_SECOND = 20e9
"""DeepSpeedCPUAdam is bound by host memory; two DDR4 channels read and write about this much."""


@dataclass(frozen=True)
class Sharing:
    """One rank's part.

    Attributes:
        tape: the step with what this rank holds.
        host_bytes: host memory of one rank.
        pinned_bytes: the locked part of it.
        nvme_bytes: on the disk, of one rank.
        wire_bytes: sent by one rank in one step.
        offload_seconds: copies to the host and the update there.
    """

    tape: Tape
    host_bytes: int = 0
    pinned_bytes: int = 0
    nvme_bytes: int = 0
    wire_bytes: float = 0.0
    offload_seconds: float = 0.0


@dataclass
class _Changes:
    """What is added to a tape, and how its own storages shrink.

    Attributes:
        scale: storage to the factor of its size; 0 takes it out.
        at_load: (role, bytes) held from the start.
        in_passes: (role, bytes) held during every forward and backward.
        in_backward: (role, bytes) held during every backward.
        until_update: (role, bytes) held from the first gradient of a step to its update.
        at_backward_end: bytes that the last reduction needs for a moment.
        from_first_update: (role, bytes) made by the first step and kept.
    """

    scale: dict[int, float] = field(default_factory=dict)
    at_load: list[tuple[str, int]] = field(default_factory=list)
    in_passes: list[tuple[str, int]] = field(default_factory=list)
    in_backward: list[tuple[str, int]] = field(default_factory=list)
    until_update: list[tuple[str, int]] = field(default_factory=list)
    at_backward_end: int = 0
    from_first_update: list[tuple[str, int]] = field(default_factory=list)


def uses_deepspeed(config: RunConfig) -> bool:
    """Return whether a plan is for DeepSpeed: asked for by name or by a setting of its own."""
    return config.engine.name == "deepspeed" or (config.engine.name == "auto" and config.engine.wants_deepspeed)


def share_out(tape: Tape, config: RunConfig, precision: str, place: Place, num_trainable: int) -> Sharing:
    """Return what one rank holds and sends.

    Args:
        tape: of the plain engine on one device.
        config: the run.
        precision: `fp16`, `bf16` or `fp32`.
        place: number of ranks and kind of device.
        num_trainable: elements that train.

    Returns:
        One rank's part; the tape itself for one plain process.

    Raises:
        ConfigError: the DeepSpeed template is not usable.
    """
    ranks = place.num_devices
    if not uses_deepspeed(config):
        # A ring sends each element twice but for one share; gradients are fp32.
        return Sharing(tape, wire_bytes=2 * (ranks - 1) / ranks * FP32 * num_trainable)
    sizes = tape_sizes(tape, _ITEMSIZE[precision])
    settings = deepspeed_dict(config, precision, ranks, place.device_type, sizes)
    changes, sharing = plan_changes(tape, settings, _ITEMSIZE[precision], ranks, sizes)
    return Sharing(_Writer(tape, changes).write(), **sharing)


def tape_sizes(tape: Tape, itemsize: int) -> Sizes:
    """Return what DeepSpeed's buckets are sized to, from a tape (as `engine.deepspeed.measure_sizes`).

    Args:
        tape: with roles.
        itemsize: bytes of the compute dtype.
    """
    layers: dict[int, int] = {}
    largest = largest_trainable = trainable = 0
    for birth in tape.births:
        if birth.role in ("parameter", "trainable"):
            elements = birth.size // itemsize
            largest = max(largest, elements)
            if birth.layer is not None:
                layers[birth.layer] = layers.get(birth.layer, 0) + elements
            if birth.role == "trainable":
                trainable += elements
                largest_trainable = max(largest_trainable, elements)
    return Sizes(trainable, largest_trainable, max([largest, *layers.values()]))


def plan_changes(
    tape: Tape, settings: dict[str, Any], itemsize: int, ranks: int, sizes: Sizes
) -> tuple[_Changes, dict[str, Any]]:
    """Compute what a stage changes on one rank.

    Args:
        tape: of the plain engine.
        settings: what `deepspeed.initialize` receives.
        itemsize: bytes of the compute dtype.
        ranks: W.
        sizes: element counts.

    Returns:
        The changes of the tape, and the other figures of a Sharing.
    """
    zero = settings["zero_optimization"]
    stage = zero["stage"]
    trained = sizes.num_trainable_parameters
    part = math.ceil(trained / ranks)
    changes = _Changes()
    offload = zero.get("offload_optimizer", {}).get("device", "none")
    for number, (birth, kind) in enumerate(zip(tape.births, kinds(tape), strict=True)):
        if kind == "optimizer":
            changes.scale[number] = 0.0
        elif kind == "gradient":
            changes.scale[number] = _sum_share(stage, itemsize, ranks, offload)
        elif stage == 3 and birth.role in ("parameter", "trainable") and ".absmax" not in birth.module:
            changes.scale[number] = 1 / ranks
    on_device = offload == "none"
    if on_device:
        changes.at_load.append(("optimizer", FP32 * part))
        changes.from_first_update.append(("optimizer", 2 * FP32 * part))
    elif stage < 3:
        changes.at_load.append(("buffer", FP32 * sizes.largest_trainable))
    # Masters, two moments, two sums of gradients in fp32; below stage 3 a copy of them in the compute dtype.
    host = 0 if on_device else (5 * FP32 + (itemsize if stage < 3 else 0)) * part
    _add_buffers(changes, zero, itemsize, trained, part, on_device)
    if zero.get("offload_param", {}).get("device", "none") != "none":
        weights = sum(birth.size for birth in tape.births if birth.role in ("parameter", "trainable")) // ranks
        host += weights
        for number, birth in enumerate(tape.births):
            if birth.role in ("parameter", "trainable"):
                changes.scale[number] = 0.0
    pinned = host if zero.get("offload_optimizer", zero.get("offload_param", {})).get("pin_memory") else 0
    on_disk = offload == "nvme" or zero.get("offload_param", {}).get("device") == "nvme"
    wire = _wire(stage, ranks, trained, itemsize, tape)
    seconds = (
        0.0 if on_device else 2 * FP32 * part / PCIE_BYTES_PER_SECOND + 7 * FP32 * part / CPU_ADAM_BYTES_PER_SECOND
    )
    figures = {
        "host_bytes": 0 if on_disk else host,
        "pinned_bytes": 0 if on_disk else pinned,
        "nvme_bytes": host if on_disk else 0,
        "wire_bytes": wire,
        "offload_seconds": seconds,
    }
    return changes, figures


def _sum_share(stage: int, itemsize: int, ranks: int, offload: str) -> float:
    """Return what is left of the plain engine's fp32 gradient sums: half gradients, a partition, or nothing of them."""
    if stage == 1:
        return itemsize / FP32 if offload == "none" else 0.0
    return 1 / ranks if stage == 2 else 0.0


def _add_buffers(
    changes: _Changes, zero: dict[str, Any], itemsize: int, trained: int, part: int, on_device: bool
) -> None:
    """Add gradient sums, buckets and windows of a stage."""
    stage, bucket = zero["stage"], int(zero["reduce_bucket_size"])
    filled = min(bucket, trained)
    if stage == 1:
        if on_device:
            changes.at_load.append(("gradient", FP32 * trained))
            changes.at_backward_end = FP32 * trained
        else:
            changes.until_update.append(("gradient", FP32 * trained + FP32 * bucket))
    elif stage == 2:
        if on_device:
            changes.at_load.append(("buffer", FP32 * part))
        changes.in_backward.append(("buffer", bucket * itemsize))
        changes.at_backward_end = (FP32 + itemsize) * filled
    else:
        if on_device:
            changes.at_load.append(("gradient", FP32 * part))
        changes.at_load.append(("buffer", bucket * FP32))
        changes.in_passes.append(("buffer", int(zero["stage3_max_live_parameters"]) * itemsize))
        changes.at_backward_end = 2 * FP32 * filled


def _wire(stage: int, ranks: int, trained: int, itemsize: int, tape: Tape) -> float:
    """Return the bytes that one rank sends: gradients are reduced in fp32, weights gathered in the compute dtype."""
    ring = (ranks - 1) / ranks
    if stage < 3:
        return ring * trained * (2 * FP32 if stage == 1 else FP32 + itemsize)
    weights = sum(birth.size for birth in tape.births if birth.role in ("parameter", "trainable"))
    return ring * (2 * weights + FP32 * trained)


class _Writer:
    """Writes a tape anew with the changes."""

    def __init__(self, tape: Tape, changes: _Changes) -> None:
        self.old, self.changes = tape, changes
        self.new = Tape(costs=tape.costs)
        self.names: dict[int, int] = {}
        self.held: dict[str, list[int]] = {}
        self.step = 0

    def write(self) -> Tape:
        """Return the new tape."""
        marks = [*self.old.marks, (-1, "")]
        turn = 0
        for place in range(len(self.old.events) + 1):
            while place == marks[turn][0]:
                self._end_phase(marks[turn][1])
                turn += 1
                if marks[turn][1] == FORWARD:
                    self._hold("passes", self.changes.in_passes, FORWARD)
            if place < len(self.old.events):
                if _is_first_gradient(self.old, place):
                    self._hold("backward", self.changes.in_backward, BACKWARD)
                    self._hold("sums", self.changes.until_update, BACKWARD)
                self._copy(place)
        return self.new

    def _end_phase(self, name: str) -> None:
        if name == LOAD:
            self._hold("load", self.changes.at_load, LOAD)
            self.step = 1
        if name == BACKWARD:
            self._drop("passes")
            self._hold("end", [("buffer", self.changes.at_backward_end)], BACKWARD)
            self._drop("end")
            self._drop("backward")
        if name == OPTIMIZER:
            self._drop("sums")
            self._hold("moments", self.changes.from_first_update, OPTIMIZER)
            self.step += 1
        self.new.marks.append((len(self.new.events), name))

    def _hold(self, name: str, entries: list[tuple[str, int]], phase: str) -> None:
        """Give birth to what a change adds, unless it lives already."""
        if name not in self.held:
            births = [Birth(size, phase, self.step, 0, "", None, role=role) for role, size in entries]
            self.held[name] = [self._born(birth, None) for birth in births]

    def _drop(self, name: str) -> None:
        self.new.events += [(~number, None) for number in self.held.pop(name, [])]

    def _born(self, birth: Birth, layer: int | None) -> int:
        self.new.births.append(birth)
        self.new.events.append((len(self.new.births) - 1, layer))
        return len(self.new.births) - 1

    def _copy(self, place: int) -> None:
        event, layer = self.old.events[place]
        storage = event if event >= 0 else ~event
        factor = self.changes.scale.get(storage, 1.0)
        if factor == 0.0:
            return
        if event < 0:
            self.new.events.append((~self.names.pop(storage), layer))
            return
        birth = self.old.births[storage]
        self.names[storage] = self._born(replace(birth, size=math.ceil(birth.size * factor)), layer)


def _is_first_gradient(tape: Tape, place: int) -> bool:
    """Return whether the backward is in the layers: the loss's own backward makes no gradient of a weight."""
    event, layer = tape.events[place]
    return layer is not None and event >= 0 and tape.births[event].phase == BACKWARD
