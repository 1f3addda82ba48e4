"""The space of a search: which keys of a configuration vary, and between what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ftkit.config.files import as_settings, flat, load_config
from ftkit.config.methods import methods
from ftkit.config.tree import RunConfig
from ftkit.errors import ConfigError, nearest

METHOD = "method.name"
_FACTOR = 10.0
"""By how much a learning rate may lie below and above the default of its method."""
_RANGE = {"low", "high", "log"}


class Chooser(Protocol):
    """What chooses a value; an Optuna trial does."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...  # noqa: D102  # Optuna's
    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...  # noqa: D102  # Optuna's
    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...  # noqa: D102  # Optuna's


@dataclass(frozen=True)
class Axis:
    """One key that varies.

    Attributes:
        key: dotted, such as `optimizer.learning_rate`.
        choices: its values, as YAML; empty for a range.
        low: the least value of a range.
        high: the largest.
        log: whether a range is searched by factors and not by differences.
    """

    key: str
    choices: tuple[str, ...] = ()
    low: float | int = 0
    high: float | int = 0
    log: bool = False

    def choose(self, chooser: Chooser) -> str:
        """Return a value, as YAML."""
        if self.choices:
            return str(chooser.suggest_categorical(self.key, self.choices))
        if isinstance(self.low, int) and isinstance(self.high, int):
            return str(chooser.suggest_int(self.key, self.low, self.high, log=self.log))
        return f"{chooser.suggest_float(self.key, float(self.low), float(self.high), log=self.log):.4g}"

    def place_of(self, value: Any) -> Any:
        """Return a value as this axis has it; None where it has not."""
        if self.choices:
            return next((choice for choice in self.choices if _is_same(choice, value)), None)
        return value if isinstance(value, int | float) and self.low <= value <= self.high else None


@dataclass(frozen=True)
class Space:
    """What a search varies.

    Attributes:
        base: the configuration that all others start from.
        axes: the method first, where it varies.
    """

    base: RunConfig
    axes: tuple[Axis, ...]

    def choose(self, chooser: Chooser) -> dict[str, str]:
        """Return a setting for each axis; those of a method's own only where the method that was chosen has them."""
        settings: dict[str, str] = {}
        for axis in self.axes:
            if _applies(axis.key, settings.get(METHOD, self.base.method.name)):
                settings[axis.key] = axis.choose(chooser)
        return settings

    def first(self) -> dict[str, Any]:
        """Return the point of the space that is the base, as far as the space holds it."""
        known = flat(self.base.model_dump(mode="json"))
        if known.get("optimizer.learning_rate") is None:
            known["optimizer.learning_rate"] = methods()[self.base.method.name].default_learning_rate
        points = ((axis.key, axis.place_of(known.get(axis.key))) for axis in self.axes)
        return {key: point for key, point in points if point is not None}

    def config(self, settings: Mapping[str, str]) -> RunConfig:
        """Return the configuration with some settings.

        Raises:
            ConfigError: they do not go together.
        """
        given = [f"{key}={value}" for key, value in settings.items()]
        return load_config(settings=[*as_settings(self.base), *given])


def usual_space(base: RunConfig, names: Sequence[str]) -> Space:
    """Return the space that is searched where nobody names one.

    Args:
        base: the configuration that all others start from.
        names: of the methods; one alone does not vary.

    Returns:
        Learning rate, warm-up and epochs; rank and targets of adapters; the method, where there are several.
    """
    rates = [methods()[name].default_learning_rate for name in names]
    axes = [Axis(METHOD, tuple(names))] if len(names) > 1 else []
    axes.append(Axis("optimizer.learning_rate", low=min(rates) / _FACTOR, high=max(rates) * _FACTOR, log=True))
    axes.append(Axis("schedule.warmup_ratio", ("0.0", "0.06", "0.2")))
    if base.training.max_steps is None:
        axes.append(Axis("training.epochs", ("1", "2", "3", "5")))
    if any("rank" in methods()[name].model_fields for name in names):
        axes.append(Axis("method.rank", ("4", "8", "16", "32")))
        axes.append(Axis("method.targets", ("[attention]", "[all-linear]")))
    return Space(base, tuple(axes))


def read_space(base: RunConfig, tree: object) -> Space:
    """Return the space that a YAML file describes.

    Args:
        base: the configuration that all others start from.
        tree: dotted keys, each with a list of values or with `low`, `high` and perhaps `log`.

    Returns:
        The space.

    Raises:
        ConfigError: it is something else, or a value that the key cannot have.
    """
    if not isinstance(tree, dict) or not tree:
        raise ConfigError(
            "a space is keys with lists of values, or with low and high, such as "
            "{method.rank: [4, 8], optimizer.learning_rate: {low: 1e-5, high: 1e-3, log: true}}"
        )
    axes = sorted((_axis(str(key), given) for key, given in tree.items()), key=lambda axis: axis.key != METHOD)
    space = Space(base, tuple(axes))
    for axis in axes:
        for value in axis.choices or (str(axis.low), str(axis.high)):
            method = {METHOD: _owner(axis.key, axes, base)} if axis.key != METHOD else {}
            space.config(method | {axis.key: value})  # raises of a key or a value that is not valid
    return space


def _axis(key: str, given: object) -> Axis:
    if isinstance(given, list) and given:
        return Axis(key, tuple(_yaml(value) for value in given))
    if not isinstance(given, dict) or not {"low", "high"} <= given.keys() <= _RANGE:
        raise ConfigError(f"space: {key} must be a list of values, or low and high and perhaps log: true")
    low, high = (_number(key, given[name]) for name in ("low", "high"))
    if not low < high or (given.get("log") and low <= 0):
        raise ConfigError(f"space: {key} goes from {low} to {high}; give a range from low to high, above 0 for log")
    return Axis(key, low=low, high=high, log=bool(given.get("log", False)))


def _number(key: str, value: object) -> float | int:
    """Return a number; YAML reads `1e-5` as a text, since it has no dot."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    try:
        return float(str(value))
    except ValueError:
        raise ConfigError(f"space: {key} has {value!r}, which is not a number") from None


def _yaml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return str(value)


def _is_same(choice: str, value: Any) -> bool:
    """Return whether a choice, which is YAML, is a value."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(choice) == value
        except ValueError:
            return False
    return choice == _yaml(list(value) if isinstance(value, tuple) else value)


def _applies(key: str, method: str) -> bool:
    """Return whether a method has a key; all have those that are not a method's own."""
    section, _, field = key.partition(".")
    return section != "method" or key == METHOD or field in methods()[method].model_fields


def _owner(key: str, axes: Sequence[Axis], base: RunConfig) -> str:
    """Return a method that has a key, among those of the space.

    Raises:
        ConfigError: none has it.
    """
    named = next((axis.choices for axis in axes if axis.key == METHOD), (base.method.name,))
    unknown = next((name for name in named if name not in methods()), None)
    if unknown is not None:
        raise ConfigError(f"space: no method {unknown!r}; {nearest(unknown, methods())}")
    owner = next((name for name in named if _applies(key, name)), None)
    if owner is None:
        raise ConfigError(f"space: none of the methods {', '.join(named)} has {key}; leave it out")
    return owner
