"""`ftkit plan`: what a configuration needs, before any of it runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ftkit.cli.grouped_help import GroupedHelp
from ftkit.cli.opening import say_begun
from ftkit.cli.options import Name, Place, config_options, given_flags, quieten, read_config, user_errors
from ftkit.cli.plan.advise import show_advice
from ftkit.cli.plan.asked import Asked, check_alone, check_questions
from ftkit.cli.plan.known import known_lines
from ftkit.cli.plan.prediction import show_prediction
from ftkit.cli.plan.search import show_search
from ftkit.cli.plan.solve import AXES, show_solution
from ftkit.cli.plan.what_fits import check_page, show_what_fits
from ftkit.cli.plan.writing import check_file
from ftkit.machine.hub import work_offline_if_unreachable
from ftkit.machine.memory import quiet_collector
from ftkit.models.sources.known import find_row

if TYPE_CHECKING:
    from ftkit.config.tree import RunConfig
    from ftkit.plan.inputs.target import Target


@click.command(cls=GroupedHelp, context_settings={"help_option_names": ["-h", "--help"]})
@config_options
@click.option("--gpu", type=Name(), help="Where to run: t4, rtx3060, 2x3090, cpu, ...; this machine when not named.")
@click.option("--gpus", type=click.IntRange(min=1), help="How many of them; 1 when not named.")
@click.option("--memory-budget", type=Name(), metavar="SIZE", help="What one device has, such as 8GiB.")
@click.option(
    "--memory-used", type=Name(), metavar="SIZE", help="What other programs have of one device, such as 2GiB."
)
@click.option("--ram-budget", type=Name(), metavar="SIZE", help="What the host has.")
@click.option("--samples", type=click.IntRange(min=1), help="Training sequences, for the number of steps.")
@click.option("--search", "is_search", is_flag=True, help="Rank what fits by speed.")
@click.option("--advise", is_flag=True, help="Say what each knob costs and saves, and the largest values that fit.")
@click.option("--solve", type=click.Choice(AXES), help="Find the largest of this that fits, all else as it is.")
@click.option(
    "--what-fits",
    is_flag=True,
    help="Find the longest text of each known model with each method on one card or several, t4,l4; minutes at first.",
)
@click.option("--html", "page", type=Place(), help="With --what-fits: write the table as a page.")
@click.option(
    "--write",
    type=Place(),
    help="Write the configuration, if it fits, as YAML for train: the one asked for, or that of --search or --solve.",
)
@click.option("--exact", is_flag=True, help="Trace every layer instead of unrolling the layers that are alike.")
@click.option("--explain", "is_explained", is_flag=True, help="Say what the plan rests on, and what lowers the peak.")
@click.option("--list", "is_list", is_flag=True, help="Print the cards and the models that are known by name.")
@click.option("--json", "as_json", is_flag=True, help="Print the prediction as JSON.")
def plan(  # noqa: PLR0913  # one parameter is one flag
    gpu: str | None,
    gpus: int | None,
    memory_budget: str | None,
    memory_used: str | None,
    ram_budget: str | None,
    samples: int | None,
    solve: Literal["max_length", "micro_batch_size", "rank", "model"] | None,
    write: Path | None,
    page: Path | None,
    *,
    advise: bool,
    what_fits: bool,
    is_search: bool,
    exact: bool,
    is_explained: bool,
    is_list: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Predict memory, speed and disk of a configuration, on any GPU, without that GPU.

    Takes the flags of `ftkit train`. Exits with 0 where the configuration fits or `may not fit`, with 8 where it
    `does not fit`, and with another number where that cannot be told: a wrong flag, or a model or a card that nobody
    knows.
    """
    if is_list:
        with user_errors():
            check_alone(given_flags())
        click.echo("\n".join(known_lines()))
        return
    # The collector would take a sixth of a plan's time, and finds nothing in what the imports bring.
    with user_errors(), quiet_collector(trusts=True):
        config = read_config(flags)
        check_questions(given_flags())
        check_file(write, "--write", "best.yaml")
        check_page(page, is_asked=what_fits)
        if what_fits:
            cards = dict.fromkeys(card.strip() for card in gpu.split(",")) if gpu else (None,)
            found = [_find_target(config, card, gpus, memory_budget, ram_budget, memory_used) for card in cards]
            show_what_fits(config, found, page, as_json=as_json)
            return
        say_begun("planning", config, is_quiet=as_json)
        target = _find_target(config, gpu, gpus, memory_budget, ram_budget, memory_used)
        if solve is not None:
            show_solution(config, target, solve, samples, write, as_json=as_json)
            return
        asked = Asked.of(config, target, samples)
        if is_search:
            show_search(asked, write, as_json=as_json)
            return
        if advise:
            fits = show_advice(asked, as_json=as_json)
        else:
            fits = show_prediction(asked, write, exact=exact, as_json=as_json, is_explained=is_explained)
    if not fits:
        click.get_current_context().exit(8)


def _find_target(
    config: "RunConfig",
    gpu: str | None,
    gpus: int | None,
    memory_budget: str | None,
    ram_budget: str | None,
    memory_used: str | None,
) -> "Target":
    """Return the target that the flags name, with the budget of the configuration where they name none."""
    if find_row(config.model.name) is None:
        work_offline_if_unreachable((config.model.name,))
    quieten()
    from ftkit.plan.inputs.target import find_target

    target = find_target(gpu, gpus, memory_budget, ram_budget, memory_used=memory_used)
    return target.within(None if memory_budget else config.engine.budget_bytes)


if __name__ == "__main__":
    plan()
