"""Words for the time of a whole job and the bytes that it writes."""

from ftkit.records.job import JobPlan
from ftkit.units import counted, format_bytes, format_seconds

_UNKNOWN = "give --samples, the number of training sequences, or --dataset"


def time_words(job: JobPlan | None, num_steps: int | None) -> str:
    """Return how long a job takes, as a plan says it.

    Args:
        job: the plan; None: there is none.
        num_steps: of the run; None: not known.
    """
    if job is None or job.seconds is None or job.steps_seconds is None:
        return _UNKNOWN
    steps = "the steps" if num_steps is None else counted(num_steps, "step")
    return f"about {format_seconds(job.seconds)}, of it {format_seconds(job.steps_seconds)} for {steps}"


def disk_words(job: JobPlan) -> str:
    """Return what a job writes, as a plan says it."""
    if job.num_bytes is None:
        return f"{format_bytes(job.checkpoint_bytes + job.result_bytes)}, and the cache: {_UNKNOWN}"
    return format_bytes(job.num_bytes)


def job_lines(job: JobPlan | None) -> list[str]:
    """Return the same as a run says it before it starts; nothing where no time is known."""
    if job is None or job.seconds is None or job.num_bytes is None:
        return []
    return [f"the whole job: about {format_seconds(job.seconds)}, and {format_bytes(job.num_bytes)} on the disk"]


def job_rows(job: JobPlan | None) -> list[tuple[str, str]]:
    """Return the parts of both, as names and texts; what is not known is left out."""
    if job is None:
        return []
    times = {
        "start": job.start_seconds,
        "data": job.data_seconds,
        "frozen layers": job.trunk_seconds,
        "steps": job.steps_seconds,
        f"scores ({counted(job.num_validations or 0, 'validation')})": job.evaluation_seconds,
        f"{counted(job.num_checkpoints or 0, 'checkpoint')} and the result": job.save_seconds,
    }
    sizes = {"checkpoints": job.checkpoint_bytes, "the result": job.result_bytes, "the cache": job.cache_bytes}
    known = {name: format_seconds(one) for name, one in times.items() if one}
    known |= {name: format_bytes(one) for name, one in sizes.items() if one is not None}
    return [(f"  {name}", text) for name, text in known.items()]
