"""The first words and refusals of a command, before it imports what takes seconds."""

import os
from pathlib import Path

import click

from ftkit.config.paths import is_there, looks_like_path
from ftkit.config.tree import RunConfig
from ftkit.errors import ModelError, nearest
from ftkit.machine.hub import is_cached, work_offline_if_unreachable
from ftkit.models.sources.adapters import asked_names


def begin_with(run: str) -> None:
    """Say what is opened; let the hub's client, which is imported next, use its cache where the hub does not answer.

    Args:
        run: the folder of a run or of a model, or a name of the hub.

    Raises:
        ModelError: it is the path of nothing.
    """
    is_here = is_there(run)
    if not is_here and looks_like_path(run):
        raise _not_there(run)
    click.echo(f"opening {run}", err=True)
    work_offline_if_unreachable(asked_names(run))
    # `runs/mine` might be the hub's too, which only the hub can tell.
    if not is_here and os.environ.get("HF_HUB_OFFLINE") and _is_in_a_folder(run) and not is_cached(run):
        raise _not_there(run)


def say_begun(doing: str, config: RunConfig, *, is_quiet: bool = False) -> None:
    """Say what begins: the libraries that it needs take seconds to load, in which nothing else would be seen.

    Args:
        doing: such as `training`.
        config: the run.
        is_quiet: say nothing.
    """
    if not is_quiet:
        click.echo(f"{doing} {config.model.name} with {config.method.label} on {config.data.dataset}", err=True)


def check_named(config: RunConfig) -> None:
    """Refuse a run whose model or data is not there or cannot be used, before the first of several that are like it.

    Args:
        config: the run; its data is read as far as that goes without a tokenizer.

    Raises:
        FtkitError: as a training refuses them.
    """
    work_offline_if_unreachable((*asked_names(config.model.name), config.data.dataset))
    from ftkit.data.prepare import check_rows
    from ftkit.models.sources.source import resolve_source

    resolve_source(config.model, config.task)
    check_rows(config.data, config.task, config.data_seed)


def _is_in_a_folder(run: str) -> bool:
    return "/" in run and is_there(Path(run).parent)


def _not_there(run: str) -> ModelError:
    parent = Path(run).expanduser().parent
    beside = sorted(str(place) for place in parent.iterdir() if place.is_dir()) if is_there(parent) else []
    near = f"; {nearest(str(Path(run)), beside)}" if beside else ""
    what = "file" if run.endswith(".gguf") else "folder"
    return ModelError(
        f"there is no {what} {run}; give a run's folder, a folder that a model was saved in, or a hub name{near}"
    )
