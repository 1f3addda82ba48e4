"""A target whose speed was seen in real steps, for a run on a processor of which no figures are kept."""

from dataclasses import replace

from ftkit.engine.resolve import ResolvedRun
from ftkit.plan.inputs.target import Target
from ftkit.plan.seconds.cpu_rates import look
from ftkit.plan.seconds.looks import Kind
from ftkit.plan.seconds.speed import MEASURED_NOW


def looked(target: Target, run: ResolvedRun) -> Target:
    """Return the target of a run; a CPU that nobody has calibrated or looked at is looked at now.

    Args:
        target: where the run computes.
        run: resolved for it.
    """
    if target.device(run).source != MEASURED_NOW:
        return target
    return replace(target, looked=look(target.num_threads, Kind.of(run)))
