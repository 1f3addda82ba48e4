"""Runs against each other: the efficient front, what tells them apart, the errors of prediction."""

from collections.abc import Sequence

from ftkit.report.collect import Run
from ftkit.report.columns import MEMORY_FIGURES, Column, relative_error


def workload(run: Run) -> tuple[object, ...]:
    """Return what two runs must share for their throughputs to be comparable: model, task, length, device."""
    line = run.record.run
    return (run.setting("model.name"), run.setting("task"), run.setting("data.max_length"), line.device)


def efficient_front(runs: Sequence[Run], memory: str) -> list[int]:
    """Return the runs that no other run of the same workload beats in both memory and throughput.

    Args:
        runs: any runs; those without both figures are left out.
        memory: a figure of memory, such as `peak_active_bytes`.

    Returns:
        Their positions, by workload and rising memory; of equals, the first.
    """
    points = [
        (str(workload(run)), getattr(run.measured, memory), -run.measured.tokens_per_second, position)
        for position, run in enumerate(runs)
        if getattr(run.measured, memory) and run.measured.tokens_per_second
    ]
    front: list[int] = []
    best: dict[str, float] = {}
    for load, _, slowness, position in sorted(points):
        if slowness < best.get(load, 0.0):
            best[load] = slowness
            front.append(position)
    return front


def labels(runs: Sequence[Run], differing: Sequence[Column]) -> list[str]:
    """Return a short name for each run from what tells the runs apart, its own name where that is not enough.

    Args:
        runs: the runs.
        differing: the columns whose values differ between them.

    Returns:
        One label each, such as `LoRA r=8 · ZeRO-2 · recompute layer`.
    """
    if len(runs) == 1:
        return [runs[0].name]
    told = [column for column in differing if column.group == "configuration" and column.key not in ("name", "status")]
    short = [column for column in told if column.key != "learning_rate"]  # methods have rates of their own
    built = _joined(runs, short)
    built = built if len(set(built)) == len(runs) else _joined(runs, told)
    return [label if label and built.count(label) == 1 else run.name for label, run in zip(built, runs, strict=True)]


def _joined(runs: Sequence[Run], columns: Sequence[Column]) -> list[str]:
    return [" · ".join(filter(None, (_part(column, run) for column in columns))) for run in runs]


def _part(column: Column, run: Run) -> str:
    shown = column.show(run)
    prefix = {"recompute": "recompute ", "seed": "seed ", "global_batch_size": "batch "}
    prefix |= {"learning_rate": "rate "}
    suffix = {"world_size": " rank" if shown == "1" else " ranks", "max_length": " tokens"}
    return f"{prefix.get(column.key, '')}{shown}{suffix.get(column.key, '')}" if shown else ""


def prediction_errors(runs: Sequence[Run]) -> dict[str, list[float]]:
    """Return the relative errors of every figure of memory that was both predicted and measured."""
    errors = {field: [relative_error(run, field) for run in runs] for field in MEMORY_FIGURES}
    return {field: kept for field, found in errors.items() if (kept := [error for error in found if error is not None])}
