"""Write a planned configuration as YAML, and give the command that trains it."""

import shlex
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ftkit.config.files import as_settings, dump_config
from ftkit.errors import ConfigError
from ftkit.models.sources.known import hub_name, unpacked_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ftkit.config.tree import RunConfig
    from ftkit.plan.inputs.target import Target


def check_file(file: Path | None, flag: str, example: str) -> None:
    """Refuse a file that cannot be written before anything is planned.

    Args:
        file: what was asked for; None: nothing was.
        flag: that names it.
        example: a name for such a file.

    Raises:
        ConfigError: it is a folder, or its folder is not there.
    """
    if file is None:
        return
    with explained(file, flag):
        is_folder = file.is_dir()
    if is_folder:
        raise ConfigError(f"{flag} {file} is a folder; name a file in it, such as {file / example}")
    if not file.parent.is_dir():
        raise ConfigError(f"{flag} {file}: there is no folder {file.parent}; make it, or name a file elsewhere")


def write_config(file: Path, config: "RunConfig", target: "Target") -> None:
    """Write a configuration with what the target settles, and with the name by which the hub knows its model."""
    from ftkit.engine.resolve import resolve

    text = dump_config(_by_hub_name(resolve(config, target.devices).config))
    with explained(file, "--write"):
        file.write_text(text, encoding="utf-8")


@contextmanager
def explained(file: Path, flag: str) -> "Iterator[None]":
    """Say in a sentence that a file which a flag names cannot be written."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}; name another file with {flag}") from None


def train_command(config: "RunConfig", target: "Target", written: Path | None) -> str:
    """Return the command that runs what was planned: by the launcher that the plan has taken for several devices."""
    from ftkit.engine.resolve import EngineKind, resolve

    start = "ftkit train"
    if target.num_devices > 1:
        is_plain = resolve(config, target.devices).engine is EngineKind.PLAIN
        start = (
            f"torchrun --nproc-per-node {target.num_devices} -m ftkit train"
            if is_plain
            else f"deepspeed --num_accelerators {target.num_devices} --module ftkit train"
        )
    settings = [f"--set {shlex.quote(setting)}" for setting in as_settings(_by_hub_name(config))]
    return " ".join((start, *([f"--config {shlex.quote(str(written))}"] if written else settings)))


def _by_hub_name(config: "RunConfig") -> "RunConfig":
    """Return a configuration that training can load: with the whole name, and of a copy in 4 bits its base."""
    name = unpacked_name(config.model.name) or hub_name(config.model.name)
    return config.model_copy(update={"model": config.model.model_copy(update={"name": name})})
