"""The planner's one public function: a configuration and a GPU in, a prediction out."""

from ftkit.config.files import Configuration, as_config
from ftkit.machine.hub import work_offline_if_unreachable
from ftkit.models.sources.known import find_row
from ftkit.plan.choices.cut import settle_cut
from ftkit.plan.choices.search import options_at
from ftkit.plan.inputs.shapes import Sequences
from ftkit.plan.inputs.target import find_target
from ftkit.plan.job import with_job
from ftkit.plan.predicted import AnyPrediction


def plan(  # noqa: PLR0913  # as many as the command has flags for it
    config: Configuration,
    gpu: str | None = None,
    *,
    gpus: int | None = None,
    memory_budget: str | None = None,
    memory_used: str | None = None,
    ram_budget: str | None = None,
    samples: int | None = None,
) -> AnyPrediction:
    """Predict peak memory, speed and disk of a configuration, on any GPU, without that GPU.

    Args:
        config: the run: what `ftkit.load_config` returns, a tree of plain values, or a YAML file.
        gpu: where to run: `t4`, `rtx3060`, `2x3090`, `cpu`, ...; None: this machine.
        gpus: how many of them; None: one, or as `gpu` says.
        memory_budget: what one device has, such as `8GiB`; None: what the table of GPUs says, and of this machine no
            more than `engine.memory_budget`.
        memory_used: what other programs have of one device, such as `2GiB`.
        ram_budget: what the host has, such as `32GiB`.
        samples: training sequences, for the number of steps and the total time.

    Returns:
        The prediction of the run as it trains: a cut that is not named and does not fit is smaller. `fits` says
        whether it fits, `reason` why not. A `TracedPrediction` has times too; where the model's code cannot be traced
        it is a `FormulaPrediction`, which has none.

    Raises:
        FtkitError: an unknown model or GPU, or a configuration that is not valid.
    """
    run = as_config(config)
    if find_row(run.model.name) is None:
        work_offline_if_unreachable((run.model.name,))
    target = find_target(gpu, gpus, memory_budget, ram_budget, memory_used=memory_used)
    target = target.within(None if memory_budget else run.engine.budget_bytes)
    sequences = None if samples is None else Sequences.unseen(run, samples)
    options = options_at(run, target, sequences=sequences)
    run, prediction, _ = settle_cut(run, options, is_named=run.batch.is_named)
    return with_job(prediction, run, target, options.sequences)
