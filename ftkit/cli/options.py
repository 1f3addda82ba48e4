"""Flags that fill a RunConfig, each one key of the configuration, whose help it takes; and the types of all flags."""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin

import click
from click.types import StringParamType
from pydantic.fields import FieldInfo

from ftkit.config.files import load_config, preset_names
from ftkit.config.flags import KEYS, method_flags
from ftkit.config.methods import default_method, methods
from ftkit.config.recompute import LEVELS, OLD_SHARE
from ftkit.config.section import EMPTY
from ftkit.config.tree import RunConfig, Task
from ftkit.errors import ConfigError, DeviceError, FtkitError, PeerLostError, nearest
from ftkit.machine.disk import is_full
from ftkit.machine.memory import quiet_collector
from ftkit.machine.process import end_now, is_one_of_several


class Share(click.ParamType[float]):
    """A share of the layers: `none`, `all`, or a number from 0 to 1."""

    name = "none|all|share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        words = {"none": 0.0, "all": 1.0}
        try:
            return words[value] if value in words else float(value)
        except ValueError:
            self.fail(f"{value!r} is not a share of the layers; write none, all, or a number from 0 to 1", param, ctx)


class Name(StringParamType):
    """A text that names something and is not empty, as `"$UNSET"` is in a shell: that would stand for no flag."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the text.

        Raises:
            click.BadParameter: it is empty.
        """
        return super().convert(_filled(self, value, param, ctx), param, ctx)


class Place(click.Path):
    """The path of a file or a folder, and not empty: an empty path would be the folder where the command runs."""

    def __init__(self, *, file_okay: bool = True, dir_okay: bool = True) -> None:
        """Say whether it may be a file that is there, and whether a folder."""
        super().__init__(path_type=Path, file_okay=file_okay, dir_okay=dir_okay)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path.

        Raises:
            click.BadParameter: it is empty, or of a file or folder where it may not be.
        """
        return super().convert(_filled(self, value, param, ctx), param, ctx)


def config_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the flags of a configuration; `read_config` makes a RunConfig of what it receives."""
    usual = default_method().label
    options = [
        click.option("--method", type=click.Choice(list(methods())), help=f"What trains; {usual} when not named."),
        click.option("--task", type=click.Choice(get_args(Task)), help=_help(_field("task"))),
        click.option("--preset", type=click.Choice(preset_names()), help="Start from settings that ship with ftkit."),
        click.option("--config", "file", type=Place(), help="Start from a YAML file."),
        click.option(
            "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any key, such as method.layers=[4,5]."
        ),
        *(_option(flag, key, _field(key)) for flag, key in KEYS.items()),
        *(
            _option(flag, f"method.{name}", section.model_fields[name], f"{section.label}: ")
            for flag, (section, name) in method_flags().items()
        ),
        click.option(
            "--tracker",
            _variable("output.trackers"),
            multiple=True,
            type=Name(),
            metavar="NAME",
            callback=lambda _, __, names: tuple(name for one in names for name in one.split(",")),
            help=_help(_field("output.trackers")),
        ),
        click.option(
            "--recompute",
            _variable("model.recompute"),
            type=click.Choice(LEVELS),
            help=_help(_field("model.recompute")),
        ),
        click.option("--gradient-checkpointing", _variable(OLD_SHARE), type=Share(), hidden=True),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def note(text: str) -> None:
    """Say something beside what a command prints."""
    click.echo(text, err=True)


def read_config(flags: dict[str, Any]) -> RunConfig:
    """Take the configuration's flags out of what a command received, and build it.

    Args:
        flags: parameter name to value; what belongs to the configuration is removed.

    Returns:
        The configuration.

    Raises:
        ConfigError: as `load_config`.
    """
    overrides = {"method": flags.pop("method"), "task": flags.pop("task")}
    for name in [name for name in flags if "__" in name]:
        value = flags.pop(name)
        overrides[name.replace("__", ".")] = None if value == () else value
    return load_config(flags.pop("file"), flags.pop("preset"), flags.pop("settings"), overrides)


def named_columns(**names: str | None) -> list[str]:
    """Return the settings that name columns.

    Args:
        names: `text` or `label` to the name of that column; None: it is to be found.
    """
    given = {role: json.dumps(name, ensure_ascii=False) for role, name in names.items() if name is not None}
    return [f"data.{role}_column={name}" for role, name in given.items()]


def named_methods(names: str) -> list[str]:
    """Return the methods that `--methods A,B` names, each once.

    Raises:
        ConfigError: it names none, or one that does not exist.
    """
    wanted = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    for name in wanted or [names]:
        if name not in methods():
            raise ConfigError(f"--methods: no method {name!r}; {nearest(name, methods())}")
    return wanted


def given_flags() -> list[str]:
    """Return the flags that the command line names, such as `--json`, in the order of the command's help."""
    context = click.get_current_context()
    return [
        one.opts[-1]
        for one in context.command.params
        if isinstance(one, click.Option)
        and context.get_parameter_source(str(one.name)) is click.core.ParameterSource.COMMANDLINE
    ]


@contextmanager
def user_errors(rank: int = 0) -> Iterator[None]:
    """Print a user's mistake as one sentence and exit with its code; our own mistakes keep their traceback."""
    try:
        yield
    except FtkitError as error:
        _fail(error, rank)
    except KeyboardInterrupt as error:
        click.echo("; ".join(["interrupted", *map(str, error.args)]), err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except OSError as error:
        told = _told_of_system(error)
        if told is None:
            raise
        _fail(told, rank)
    except Exception:
        if not is_one_of_several():
            raise
        traceback.print_exc()
        end_now(1)


def _told_of_system(error: OSError) -> FtkitError | None:
    """Return what a user is told of an error of the system; None: it is a mistake of ours."""
    if isinstance(error, PermissionError) and error.filename is not None:
        cure = "`ls -ld` shows whose it is: ask for the right, or name another"
        return ConfigError(f"{error.filename}: {error.strerror}; {cure}")
    if not is_full(error):
        return None
    if error.filename is None:  # standard output, which Python would try once more as it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    place = error.filename or "what comes out"
    return DeviceError(f"cannot write {place}: {error.strerror}; free some space, or write elsewhere")


@quiet_collector(trusts=True)  # of the libraries, which are imported for that
def quieten() -> None:
    """Turn down the chatter of libraries; FTKIT_VERBOSE=1 leaves it as it is."""
    import logging
    import warnings

    if os.environ.get("FTKIT_VERBOSE"):
        return
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", module=r"deepspeed|torch\.distributed")
    for name in ("bitsandbytes", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # A filter: importing DeepSpeed, which transformers does too, sets its level anew and already has something to say.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _fail(error: FtkitError, rank: int) -> NoReturn:
    """Say what was wrong.

    Other ranks than the first wait a moment: where the first has said the same, the launcher ends them. Who has only
    lost another rank waits longer, for that one to say why, if it can.
    """
    if is_one_of_several():
        time.sleep((0 if error.is_unexplained else 5) if isinstance(error, PeerLostError) else 3 if rank else 0)
    click.echo(f"{'error' if rank == 0 else f'error on rank {rank}'}: {error}", err=True)
    if click.get_current_context().obj == "debug":
        traceback.print_exc()
    if is_one_of_several():
        end_now(error.exit_code)
    sys.exit(error.exit_code)


def _option(flag: str, key: str, field: FieldInfo, of: str = "") -> Callable[..., Any]:
    """Return the option of a field; one of several values may be given several times."""
    is_several = get_origin(field.annotation) is tuple
    return click.option(flag, _variable(key), type=_type(field), multiple=is_several, help=of + _help(field))


def _variable(key: str) -> str:
    return key.replace(".", "__")


def _field(key: str) -> FieldInfo:
    model: Any = RunConfig
    *sections, name = key.split(".")
    for section in sections:
        model = model.model_fields[section].annotation
    field: FieldInfo = model.model_fields[name]
    return field


def _help(field: FieldInfo) -> str:
    text = " ".join((field.description or "").replace("`", "").split())
    return text if text.endswith(".") else f"{text}."


def _type(field: FieldInfo) -> Any:
    """Return click's type for a field: a choice, a number or text; pydantic checks the rest."""
    leaves = [leaf for leaf in _leaves(field.annotation) if leaf not in (type(None), ...)]
    kinds = [leaf for leaf in leaves if leaf in (int, float)]
    literals = [leaf for leaf in leaves if not isinstance(leaf, type)]
    if literals:
        return Name() if kinds else click.Choice(literals)
    return kinds[0] if kinds else Name()


def _leaves(annotation: Any) -> list[Any]:
    """Return the types and the literal values that a union, however nested, is made of."""
    inner = get_args(annotation)
    if get_origin(annotation) is Literal:
        return list(inner)
    if get_origin(annotation) is Annotated:
        return _leaves(inner[0])
    return [leaf for one in inner for leaf in _leaves(one)] if inner else [annotation]


def _filled(kind: click.ParamType[Any], value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
    if value == "":
        kind.fail(EMPTY, param, ctx)
    return value
