"""What ZeRO makes of a step: arithmetic over the very dictionary that DeepSpeed will receive.

The plain engine's tape says what the model does. Of that, ZeRO replaces what it owns: masters, moments, gradient sums
and, at stage 3, the weights. Per rank, with P_t trained elements, P all elements, c bytes of the compute dtype and W
ranks (deepspeed/runtime/{bf16_optimizer, zero/stage_1_and_2, zero/stage3}.py, as allocated by 0.19):

    stage 1   flat weights c P_t, fp32 gradient sums 4 P_t, fp32 masters 4 P_t / W, half gradients c P_t until the step
    stage 2   flat weights c P_t, fp32 masters 4 P_t / W, the bucket in each backward, and from the first reduction of a
              step, which comes when the bucket is full or the backward at its end, to the update, sums 4 P_t / W
    stage 3   weights c P / W, masters 4 P_t / W, sums 4 P_t / W, the bucket in fp32, a window of gathered weights
    moments   8 P_t / W from the first step on, in all of them

Offloading moves masters, moments and sums into host memory, and offloaded parameters' share too; nvme moves them on.
Below stage 3 the sums of half gradients stay on the device all the same, and the host holds a copy of them. At
stage 1 a run that is offloaded or not in bf16 has the optimizer of stage 2, which then keeps whole gradients until the
last micro-batch.
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from ftkit.engine.ds_config import Sizes
from ftkit.engine.plain import BUCKET_ELEMENTS
from ftkit.engine.resolve import EngineKind, ResolvedRun
from ftkit.observe.peaks import kinds
from ftkit.observe.tape import Tape
from ftkit.plan.zero.gather import FP32, FP64, Limits, Storages, Weight, Window
from ftkit.plan.zero.module_events import GRADIENT, Visit
from ftkit.plan.zero.partition import WEIGHTS, Shares, elements
from ftkit.plan.zero.rewrite import Changes, Reduction, rewrite

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


def share_out(tape: Tape, run: ResolvedRun, num_trainable: int) -> Sharing:
    """Return what one rank holds and sends.

    Args:
        tape: of the plain engine on one device.
        run: the run, with its number of ranks and kind of device.
        num_trainable: elements that train.

    Returns:
        One rank's part; the tape itself for one plain process.
    """
    ranks, device_type = run.devices.world_size, run.devices.device_type
    if run.engine is EngineKind.PLAIN:
        if ranks == 1:
            return Sharing(tape)
        changes = Changes(before_update=[FP32 * _largest_bucket(tape)])
        # A ring sends each element twice but for one share; gradients are fp32.
        return Sharing(rewrite(tape, changes), wire_bytes=2 * (ranks - 1) / ranks * FP32 * num_trainable)
    sizes = tape_sizes(tape)
    settings = run.deepspeed_dict(sizes)
    changes, sharing = _change(Shares(tape, settings, run.dtype.itemsize, ranks, sizes, device_type))
    return Sharing(rewrite(tape, changes), **sharing)


def _largest_bucket(tape: Tape) -> int:
    """Return the elements of the largest flat bucket in which the plain engine sums gradients over ranks."""
    largest = filled = 0
    for birth in tape.births:
        if birth.role == "trainable":
            filled += elements(birth)
            largest = max(largest, filled)
            filled = filled if filled < BUCKET_ELEMENTS else 0
    return largest


def tape_sizes(tape: Tape) -> Sizes:
    """Return what DeepSpeed's buckets are sized to, from a tape (as `engine.deepspeed.measure_sizes`)."""
    layers: Counter[int] = Counter()
    weights = [birth for birth in tape.births if birth.role in WEIGHTS]
    for birth in weights:
        if birth.layer is not None:
            layers[birth.layer] += elements(birth)
    trained = [elements(birth) for birth in weights if birth.role == "trainable"]
    largest = max(layers.values(), default=0) or max(map(elements, weights))
    return Sizes(sum(trained), max(trained), largest)


def _change(shares: Shares) -> tuple[Changes, dict[str, Any]]:
    """Compute what a stage changes on one rank: the changes of the tape, and the other figures of a Sharing."""
    changes = _scales(shares)
    {1: _add_stage_1, 2: _add_stage_2, 3: _add_stage_3}[shares.stage](changes, shares)
    host = shares.host_bytes
    zero = shares.zero
    pinned = host if zero.get("offload_optimizer", zero.get("offload_param", {})).get("pin_memory") else 0
    on_disk = "nvme" in (shares.optimizer_at, shares.weights_at)
    moved = 0 if shares.on_device else shares.part
    return changes, {
        "host_bytes": 0 if on_disk else host,
        "pinned_bytes": 0 if on_disk else pinned,
        "nvme_bytes": host if on_disk else 0,
        "wire_bytes": _wire(shares),
        "offload_seconds": 2 * FP32 * moved / PCIE_BYTES_PER_SECOND + 7 * FP32 * moved / CPU_ADAM_BYTES_PER_SECOND,
    }


def _scales(shares: Shares) -> Changes:
    """Shrink what the plain engine has of its own."""
    changes = Changes()
    sizes = {FP32 * elements(birth) for birth in shares.weights if birth.role == "trainable"}
    for number, (birth, kind) in enumerate(zip(shares.tape.births, kinds(shares.tape), strict=True)):
        if kind == "optimizer":
            changes.scale[number] = 0.0
        elif kind == "gradient" and shares.sums_gradients_whole:
            changes.scale[number] = shares.itemsize / FP32  # the half gradients; the sums are there from the start
        elif kind == "gradient" and (shares.stage == 3 or birth.size in sizes):  # a loss survives a backward too
            changes.gradients.add(number)
        elif shares.stage == 3 and birth.role in WEIGHTS:
            changes.parts[number] = 0 if shares.weights_away else math.ceil(birth.size / shares.ranks)
            if shares.device_type != "cpu":
                changes.scale[number] = 0.0
    return changes


def _add_states(changes: Changes, shares: Shares) -> None:
    """Add masters and moments, or the buffer through which gradients of stages 1 and 2 leave."""
    if shares.on_device:
        if shares.stage < 3 or shares.is_mixed:  # stage 3 updates fp32 weights where they are
            changes.at_load.append(("optimizer", FP32 * shares.part))
        changes.from_first_update.append(("optimizer", 2 * FP32 * shares.part))
    elif shares.stage < 3:
        changes.at_load.append(("buffer", shares.itemsize * shares.sizes.largest_trainable))


def _add_stage_1(changes: Changes, shares: Shares) -> None:
    if not shares.sums_gradients_whole:
        _add_stage_2(changes, shares)
        return
    _add_states(changes, shares)
    changes.at_load.append(("gradient", FP32 * shares.trained))
    changes.at_last_backward = FP32 * shares.trained


def _add_stage_2(changes: Changes, shares: Shares) -> None:
    """Add what stage_1_and_2.py holds, which is also stage 1 where it is offloaded or not in bf16.

    On the last rank: it owns the weights whose gradients come first, and so has its sums before the others.
    """
    _add_states(changes, shares)
    is_whole = shares.stage == 1
    buckets = shares.bucket * (2 if shares.zero.get("overlap_comm") else 1)
    if is_whole and shares.is_mixed:
        changes.until_update.append(("buffer", FP32 * buckets))  # gradients become views of it
    else:
        changes.in_backward.append(("buffer", shares.itemsize * buckets))
    norm = FP64 * min(shares.sizes.largest_trainable, shares.part)
    # A bucket is copied to be sent, and a half one copied to fp32; only 16-bit gradients have sums beside the bucket.
    changes.reduction = Reduction(
        bucket=shares.bucket,
        trained=shares.trained,
        bytes_per_element=FP32 + (0 if is_whole or not shares.is_mixed else shares.itemsize),
        sums=FP32 * shares.part if shares.is_mixed or shares.on_device else 0,
        sums_come_first=shares.is_mixed,
        later=0 if shares.is_mixed or not shares.on_device else FP32 * shares.part,
        norm=0 if shares.on_device else norm,
        at_last=is_whole,
    )
    if shares.on_device:
        changes.before_update.append(norm)  # in fp64 (zero/utils.py, get_norm_dtype)
        if not shares.is_mixed:
            changes.in_update.append(("gradient", FP32 * shares.part))  # made one flat tensor


def _add_stage_3(changes: Changes, shares: Shares) -> None:
    _add_states(changes, shares)
    changes.at_load.append(("buffer", FP32 * shares.bucket))
    if shares.on_device:
        changes.at_load.append(("gradient", FP32 * shares.part))
        # Norms are taken in fp64 (zero/utils.py, get_norm_dtype), and each group's gradients are made one flat tensor.
        changes.before_update.append(FP64 * shares.largest_share)
        decays = sum(elements(birth) for birth in shares.weights if birth.role == "trainable" and len(birth.shape) > 1)
        flat = max(decays, shares.trained - decays) / shares.ranks
        changes.in_update.append(("gradient", FP32 * math.ceil(flat)))
    changes.window = lambda storages: _window(shares, storages)


def _window(shares: Shares, storages: Storages) -> Window:
    weights = {
        (birth.layer, birth.module): Weight(
            elements(birth),
            birth.size // max(1, elements(birth)),
            number,
            birth.role == "trainable",
            len(birth.shape) > 1,
        )
        for number, birth in enumerate(shares.weights)
    }
    gradients = Counter(
        (birth.step, birth.micro_batch)
        for birth in shares.tape.births
        if isinstance(birth, Visit) and birth.op == GRADIENT
    )
    is_far = shares.device_type != "cpu"
    limits = Limits(
        ranks=shares.ranks,
        prefetch=int(shares.zero["stage3_prefetch_bucket_size"]),
        live=int(shares.zero["stage3_max_live_parameters"]),
        reuse=int(shares.zero["stage3_max_reuse_distance"]),
        persist=int(shares.zero["stage3_param_persistence_threshold"]),
        bucket=shares.bucket,
        copies=0 if is_far else 1,
        weights_come=is_far and shares.weights_away,
        sums_come=is_far and not shares.on_device,
        norms_early=not shares.on_device,
    )
    return Window(weights, gradients, limits, storages)


def _wire(shares: Shares) -> float:
    """Return the bytes that one rank sends: gradients are reduced in fp32, weights gathered in the compute dtype."""
    ring = (shares.ranks - 1) / shares.ranks
    if shares.stage < 3:
        return ring * shares.trained * (2 * FP32 if shares.stage == 1 else FP32 + shares.itemsize)
    return ring * (2 * sum(birth.size for birth in shares.weights) + FP32 * shares.trained)
