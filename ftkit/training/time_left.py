"""How long a run still takes: steps as those before, and what is around them as planned."""

from statistics import mean

from ftkit.plan.predicted import AnyPrediction
from ftkit.training.state import Progress


def seconds_left(progress: Progress, num_steps: int, planned: AnyPrediction | None) -> float:
    """Return the seconds from the last step to the end of the run, without an early stop.

    The first tenth of the steps that this process took is left out of their mean: there kernels are compiled and the
    heap grows.

    Args:
        progress: one step or more was timed.
        num_steps: of the run.
        planned: the run; None: what is around the steps is not known, and not counted.
    """
    taken = progress.step_seconds
    each = mean(taken[len(taken) // 10 :])
    left = (num_steps - progress.step) * each
    plan = None if planned is None else planned.job
    if plan is None:
        return left
    validations = plan.num_validations or 0
    share = (validations + 1 - len(progress.validations)) / (validations + 1)  # the end counts as one more
    between = (plan.evaluation_seconds or 0.0) + max(0.0, (plan.save_seconds or 0.0) - plan.end_seconds)
    return left + max(0.0, share) * between + plan.end_seconds
