"""Records for the tests of the report, written as a run would write them; nothing here was measured."""

import itertools
import random
from pathlib import Path

from ftkit.config.files import build_config
from ftkit.records.figures import LiveTensor, MemoryBreakdown
from ftkit.records.files import RecordWriter
from ftkit.records.schema import (
    EvaluationLine,
    Measurement,
    PhaseMeasurement,
    Prediction,
    ResultLine,
    RunLine,
    StepLine,
    TimelineLine,
)

METHODS = ("feature-extraction", "lora", "qlora", "full")
STAGES = (None, 1, 2, 3)
MIB = 2**20


def write_runs(folder: Path, num_runs: int, seed: int = 0) -> Path:
    """Write `num_runs` records of different configurations below `folder`; every ninth ran out of memory."""
    draw = random.Random(seed)
    product = itertools.cycle(itertools.product((1, 2), ("none", "layer"), STAGES, METHODS))
    for number, (seed_of_run, level, stage, method) in zip(range(num_runs), product, strict=False):
        name = f"{number:03d}-{method}-{'plain' if stage is None else f'zero{stage}'}"
        settings = {
            "method": {"name": method},
            "model": {"recompute": level},
            "engine": {"zero_stage": stage} if stage else {},
            "training": {"seed": seed_of_run},
        }
        write_run(folder / name, settings, draw, failed=number % 9 == 8)
    return folder


def write_run(
    folder: Path, settings: dict, draw: random.Random, failed: bool = False, name: str | None = None, steps: int = 40
) -> Path:
    """Write one record of a run with plausible figures."""
    folder.mkdir(parents=True)
    config = build_config(settings)
    writer = RecordWriter(folder / "record.jsonl")
    breakdown, stage = _breakdown(config, draw), config.engine.zero_stage
    active = breakdown.total_bytes
    predicted = Prediction(
        device="cpu", peak_active_bytes=int(active * draw.uniform(0.98, 1.02)), peak_breakdown=breakdown,
        step_seconds=0.5,
    )  # fmt: skip
    writer.write(
        RunLine(
            name=name or folder.name, started=f"2026-11-20T10:{draw.randrange(60):02d}:00+00:00",
            config=config.model_dump(mode="json"), versions={"torch": "2.13.0"}, device="cpu", precision="bf16",
            engine="deepspeed" if stage else "plain", world_size=2 if stage else 1, num_steps=steps,
            prediction=predicted,
        )
    )  # fmt: skip
    if failed:
        end = ResultLine(
            status="failed", failure="out of memory", reason="the 3rd step asked for 1.2 GiB more than there was",
            num_steps=2, train_seconds=3.0, total_seconds=9.0, measurement=Measurement(),
        )  # fmt: skip
    else:
        _write_progress(writer, draw, steps)
        writer.write(_timeline(breakdown))
        end = ResultLine(
            status="completed", num_steps=steps, train_seconds=steps * 0.5, total_seconds=steps * 0.6,
            measurement=_measurement(breakdown, draw),
        )  # fmt: skip
    writer.write(end)
    writer.close()
    return folder


def write_baseline(folder: Path) -> None:
    """Write the record of a baseline, which has neither an engine nor a peak."""
    folder.mkdir(parents=True)
    with RecordWriter(folder / "record.jsonl") as writer:
        writer.write(
            RunLine(
                name=folder.name, started="2026-11-20T10:00:00+00:00", config={"method": {"name": "TF-IDF"}},
                versions={}, device="cpu", precision="", engine="none", world_size=1, num_steps=0, purpose="baseline",
            )
        )  # fmt: skip
        writer.write(
            ResultLine(status="completed", num_steps=0, train_seconds=1.0, total_seconds=1.0, measurement=Measurement())
        )


def _breakdown(config, draw: random.Random) -> MemoryBreakdown:
    weights = {"qlora": 24, "full": 88}.get(config.method.name, 86) * MIB
    trained = {"feature-extraction": 1, "lora": 3, "qlora": 3}.get(config.method.name, 88) * MIB
    activations = int((240 if config.model.recompute.saving == 0 else 60) * draw.uniform(0.8, 1.4)) * MIB
    return MemoryBreakdown(
        parameter_bytes=weights,
        gradient_bytes=trained,
        optimizer_bytes=3 * trained,
        activation_bytes=activations if config.method.name != "feature-extraction" else 12 * MIB,
        temporary_bytes=22 * MIB,
        buffer_bytes=MIB,
    )


def _write_progress(writer: RecordWriter, draw: random.Random, steps: int) -> None:
    floor = draw.uniform(0.3, 0.5)
    for step in range(1, steps + 1):
        loss = floor + (0.7 - floor) * 2.0 ** (-6 * step / steps) + draw.gauss(0, 0.01)
        writer.write(
            StepLine(
                step=step, epoch=3 * step / steps, loss=loss, learning_rate=5e-4, grad_norm=1.0, step_seconds=0.5,
                tokens_per_second=4000,
            )
        )  # fmt: skip
        if step % max(1, steps // 8) == 0:
            _write_scores(writer, "validation", step, 3 * step / steps, loss + 0.03)
    _write_scores(writer, "test", steps, 3.0, floor + 0.04)


def _write_scores(writer: RecordWriter, split: str, step: int, epoch: float, loss: float) -> None:
    writer.write(
        EvaluationLine(
            step=step, epoch=epoch, split=split, loss=loss, accuracy=1.1 - loss, f1_macro=1.08 - loss,
            f1_weighted=1.09 - loss, confusion=[[70, 9], [11, 60]], num_samples=150, seconds=1.0,
        )
    )  # fmt: skip


def _measurement(breakdown: MemoryBreakdown, draw: random.Random) -> Measurement:
    active = breakdown.total_bytes
    process = active + 420 * MIB
    tokens = draw.uniform(1500, 6000)
    phases = (("load", 0.4), ("forward", 0.9), ("backward", 1.0), ("optimizer", 0.7))
    return Measurement(
        device="cpu", peak_active_bytes=active, peak_process_bytes=process, peak_breakdown=breakdown,
        peak_phase="backward", num_parameters=22_700_000, num_trainable_parameters=666_000,
        step_seconds=2048 / tokens, step_seconds_spread=0.02, num_timed_steps=8, tokens_per_second=tokens,
        samples_per_second=tokens / 40, active_source="counted storages", process_source="resident set",
        phases=tuple(
            PhaseMeasurement(phase=phase, peak_active_bytes=int(active * share), peak_process_bytes=process)
            for phase, share in phases
        ),
        largest_tensors=tuple(
            LiveTensor(
                num_bytes=breakdown.activation_bytes // (index + 4), kind="activation", op="gelu.default",
                module=f"bert.encoder.layer.{index % 6}.intermediate",
            )
            for index in range(10)
        ),
    )  # fmt: skip


def _timeline(breakdown: MemoryBreakdown, points: int = 120) -> TimelineLine:
    third = points // 3
    rise = [min(1.0, index / third) if index < third else max(0.0, 2 - index / third) for index in range(points)]
    return TimelineLine(
        step=2,
        events=tuple(index * 11 for index in range(points)),
        phases=("forward",) * third + ("backward",) * third + ("optimizer",) * (points - 2 * third),
        live_bytes={
            "parameter": (breakdown.parameter_bytes,) * points,
            "gradient": tuple(int(breakdown.gradient_bytes * (index >= third)) for index in range(points)),
            "optimizer": (breakdown.optimizer_bytes,) * points,
            "activation": tuple(int(breakdown.activation_bytes * share) for share in rise),
            "temporary": tuple(breakdown.temporary_bytes if index % 3 else 0 for index in range(points)),
            "buffer": (breakdown.buffer_bytes,) * points,
        },
    )
