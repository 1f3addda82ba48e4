"""The axes of a sweep, and the configurations that their product is made of."""

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftkit.config.files import flat
from ftkit.config.methods import methods
from ftkit.config.recompute import OLD_SHARE
from ftkit.config.tree import RunConfig
from ftkit.errors import ConfigError, FtkitError, nearest

if TYPE_CHECKING:
    from ftkit.engine.resolve import ResolvedRun

WORLD_SIZE = "world_size"
"""The one axis that is not a key of a configuration: the ranks."""

Settings = dict[str, str]
"""Dotted key to its value as YAML."""
Build = Callable[[list[str], int], "ResolvedRun"]


@dataclass(frozen=True)
class Trial:
    """One configuration of a sweep.

    Attributes:
        name: its folder's name.
        settings: what the axes say of it.
        world_size: ranks.
        run: what runs, resolved for this machine; None where it is refused.
        refusal: why it is refused.
    """

    name: str
    settings: Settings
    world_size: int = 1
    run: "ResolvedRun | None" = None
    refusal: str | None = None

    @property
    def config(self) -> RunConfig | None:
        """The configuration, with every `auto` settled; None where it is refused."""
        return self.run.config if self.run else None

    def asked(self) -> dict[str, Any]:
        """Return the configuration as a record has it; of an invalid one, the settings of the axes."""
        return self.config.model_dump(mode="json") if self.config else _nested(self.settings)


def parse_axis(text: str, short: Mapping[str, str] | None = None) -> list[Settings]:
    """Read one `--sweep`.

    Args:
        text: `key=a,b,c`; keys joined by `:` move together, `engine.zero_stage:world_size=null:1,2:2`.
        short: other names of keys, such as `rank` of `method.rank`.

    Returns:
        The settings of each place on the axis.

    Raises:
        ConfigError: no `=`, an unknown key, or a place with another number of values than keys.
    """
    keys_text, separator, values_text = text.partition("=")
    keys = [key.strip() for key in keys_text.split(":")]
    if not separator or not all(keys) or not values_text.strip():
        raise ConfigError(f"--sweep {text!r}: write key=value,value, such as engine.zero_stage=1,2,3")
    keys = [_known_key(key, short or {}, "--sweep") for key in keys]
    if len(set(keys)) < len(keys):
        raise ConfigError(f"--sweep {text!r} names a key twice; join different keys by ':'")
    places = []
    for value in _split(values_text, ","):
        parts = _split(value, ":") if len(keys) > 1 else [value]
        if len(parts) != len(keys):
            raise ConfigError(
                f"--sweep {text!r}: {value!r} must have {len(keys)} values joined by ':', one for each key"
            )
        places.append(dict(zip(keys, (part.strip() for part in parts), strict=True)))
    return places


def read_axes(tree: object, short: Mapping[str, str] | None = None) -> list[list[Settings]]:
    """Read the axes of a sweep file.

    Args:
        tree: key to a list of values; `configurations`, or the whole, a list of mappings, each a place on one axis.
        short: other names of keys.

    Returns:
        The axes.

    Raises:
        ConfigError: an unknown key, or something that is not a list.
    """
    if isinstance(tree, list):
        tree = {"configurations": tree}
    if not isinstance(tree, dict):
        raise ConfigError(
            "sweep file: write keys with lists of values, such as method: [lora, full], or a list of both"
        )
    axes = []
    for key, values in tree.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"sweep file: {key} must be a list of values, such as [1, 2, 3]")
        if key == "configurations":
            if not all(isinstance(one, dict) for one in values):
                raise ConfigError("sweep file: each of configurations must map keys to values")
            axes.append([_place(one.items(), short) for one in values])
        else:
            axes.append([_place([(key, value)], short) for value in values])
    return axes


def make_trials(axes: Sequence[Sequence[Settings]], build: Build) -> list[Trial]:
    """Return the product of the axes, the last one varying fastest.

    An axis of a method's own, such as the rank of adapters, does not multiply the methods that have no such thing.

    Args:
        axes: places of each axis.
        build: settings `key=value` and a number of ranks to a run; raises an FtkitError where there can be none.

    Returns:
        The trials; the same product gets the same names again.

    Raises:
        ConfigError: a key is on two axes, so that the values of one would be lost.
    """
    _check_keys(axes)
    found: list[Settings] = []
    for places in itertools.product(*axes):
        settings: Settings = {}
        for place in places:
            settings |= place
        settings = _of_the_method(settings, build)
        if settings not in found:
            found.append(settings)
    return [_trial(number, settings, build) for number, settings in enumerate(found, start=1)]


def _check_keys(axes: Sequence[Sequence[Settings]]) -> None:
    keys = [key for places in axes for key in dict.fromkeys(key for place in places for key in place)]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise ConfigError(f"{twice} is on two axes of the sweep; name all its values on one, such as {twice}=A,B,C")


def _place(entries: Iterable[tuple[str, Any]], short: Mapping[str, str] | None) -> Settings:
    return {_known_key(str(key), short or {}, "sweep file"): json.dumps(value) for key, value in entries}


def _known_key(key: str, short: Mapping[str, str], where: str) -> str:
    """Return the key of a configuration that an axis means."""
    key = short.get(key, key)
    known = list(_keys())
    if key not in known and not any(one.startswith(f"{key}.") for one in known):
        raise ConfigError(f"{where}: no axis {key!r}; {nearest(key, dict.fromkeys([*short, *known]))}")
    return key


def _keys() -> Iterator[str]:
    yield from ("method", WORLD_SIZE, OLD_SHARE)
    for method in methods().values():
        yield from flat(RunConfig(method=method()).model_dump())


def _of_the_method(settings: Settings, build: Build) -> Settings:
    """Leave out settings that another method has a field for and this method has not."""
    own = [key for key in settings if key.startswith("method.") and key != "method.name"]
    rest = {key: value for key, value in settings.items() if key not in own}
    try:
        fields = type(build(_texts(rest), _ranks(rest)).config.method).model_fields
    except FtkitError:
        return settings
    return {key: value for key, value in settings.items() if key in rest or key.split(".")[1] in fields}


def _texts(settings: Settings) -> list[str]:
    words = {"none": "0", "all": "1"}
    given = {key: value for key, value in settings.items() if key != WORLD_SIZE}
    if OLD_SHARE in given:
        given[OLD_SHARE] = words.get(given[OLD_SHARE].strip('"'), given[OLD_SHARE])
    return [f"{key}={value}" for key, value in given.items()]


def _ranks(settings: Settings) -> int:
    ranks = settings.get(WORLD_SIZE, "1")
    if not ranks.isdigit() or int(ranks) < 1:
        raise ConfigError(f"world_size={ranks} is not a number of ranks; give 1 or more")
    return int(ranks)


def _trial(number: int, settings: Settings, build: Build) -> Trial:
    words = [re.sub(r"[^A-Za-z0-9.+-]+", "_", value.strip('"')).strip("_") for value in settings.values()]
    name = "-".join([f"{number:03d}", *(word for word in words if word)])[:100]
    ranks = _ranks(settings)
    try:
        return Trial(name, settings, ranks, build(_texts(settings), ranks))
    except FtkitError as error:
        return Trial(name, settings, ranks, None, str(error))


def _nested(settings: Settings) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, name = ["method", "name"] if key == "method" else key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value.strip('"')
    return tree


def _split(text: str, separator: str) -> list[str]:
    """Split at a separator outside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
