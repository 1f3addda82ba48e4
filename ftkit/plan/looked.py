"""A target whose speed was seen in real steps, for a run on a processor of which no figures are kept."""

from dataclasses import replace

from ftkit.engine.resolve import ResolvedRun
from ftkit.plan.inputs.target import Target
from ftkit.plan.seconds.cpu_rates import look, today
from ftkit.plan.seconds.looks import Kind
from ftkit.plan.seconds.messages import time_wire


def looked(target: Target, run: ResolvedRun) -> Target:
    """Return the target of a run; a CPU that nobody has calibrated or looked at is looked at now.

    Args:
        target: where the run computes; several ranks on a CPU are timed sending messages, where nobody has.
        run: resolved for it.
    """
    if target.gpu is not None:
        return target
    if not target.device(run).timed:
        target = replace(target, looked=look(target.num_threads, Kind.of(run)))
    if target.num_devices > 1 and not target.wire.timed:
        target = replace(target, timed_wire=time_wire(target.num_devices, today()))
    return target
