"""YAML files, presets and `section.field=value` settings in, a RunConfig out; and back."""

import contextlib
import json
import sys
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError

from ftkit.config.methods import DEFAULT, methods, section_of
from ftkit.config.mistakes import sentences
from ftkit.config.training import MAPPINGS
from ftkit.config.tree import CUTS, RunConfig
from ftkit.errors import ConfigError, nearest

Tree = dict[str, Any]
Configuration = RunConfig | Mapping[str, Any] | Path | str
_UNICODE_BREAKS = {"\x85", "\u2028", "\u2029"}


class UnsoundConfigError(ConfigError):
    """Sections that are not valid, one line for each problem, and what can be looked at all the same."""

    def __init__(self, sentences: str, sections: frozenset[str], sound: RunConfig | None) -> None:
        """Keep what is sound.

        Args:
            sentences: one line for each problem.
            sections: those that have one, which are as by default in `sound`.
            sound: the rest; None where sections contradict one another.
        """
        super().__init__(sentences)
        self.sections = sections
        self.sound = sound


def load_config(
    file: Path | None = None,
    preset: str | None = None,
    settings: Iterable[str] = (),
    overrides: Mapping[str, object] | None = None,
) -> RunConfig:
    """Build a RunConfig; what comes later wins: preset, file, settings, overrides.

    Args:
        file: a YAML file of sections, or None.
        preset: the name of a shipped preset, or None.
        settings: texts `section.field=value`, the value in YAML.
        overrides: dotted key to value; None values are left out.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: an unknown key, file or preset, or a value that is not valid.
    """
    tree: Tree = {}
    if preset is not None:
        tree = _merge(tree, read_yaml(preset_path(preset)))
    if file is not None:
        tree = _lay_over(tree, [read_yaml(file)])
    laid_over: list[Tree] = []
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or not all(key.strip().split(".")):
            lacks = "lacks a name before its '='" if separator else "has no '='"
            raise ConfigError(f"--set {setting!r} {lacks}; write section.field=value, such as training.epochs=2")
        laid_over.append(_nested(key.strip(), _parse_value(key, text)))
    laid_over += [_nested(key, value) for key, value in (overrides or {}).items() if value is not None]
    return build_config(_lay_over(tree, laid_over))


def as_config(config: Configuration) -> RunConfig:
    """Return the configuration that a caller of the Python API gives in one of several forms.

    Args:
        config: a RunConfig, a tree of plain values as `build_config` takes it, or a YAML file.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: it is none of these, or does not describe a run.
    """
    match config:
        case RunConfig():
            return config
        case Mapping():
            return build_config(config)
        case str() | Path():
            return load_config(Path(config))
    raise ConfigError(f"a configuration is a RunConfig, a mapping or a YAML file, not a {type(config).__name__}")


def build_config(tree: Mapping[str, Any]) -> RunConfig:
    """Check a tree of plain values.

    Args:
        tree: section to field to value; `method` may be a bare name.

    Returns:
        The configuration.

    Raises:
        UnsoundConfigError: every problem in one message, one line each.
    """
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        told = "\n".join(sentences([dict(problem) for problem in error.errors()], tree))
        sections = frozenset(str(next(iter(problem["loc"]), "")) for problem in error.errors())
        raise UnsoundConfigError(told, sections, _without(tree, sections)) from None


def _without(tree: Mapping[str, Any], sections: frozenset[str]) -> RunConfig | None:
    """Return a configuration without some sections, or None where the others do not make one."""
    try:
        return RunConfig.model_validate({key: value for key, value in tree.items() if key not in sections})
    except ValidationError:
        return None


def dump_config(config: RunConfig) -> str:
    """Return the whole configuration as YAML that `load_config` reads back to the same."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    if not _UNICODE_BREAKS & set(text):
        return text
    # PyYAML writes them as they are and reads a line break; escaped, they come back.
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=False)


def as_settings(config: RunConfig) -> list[str]:
    """Return what a configuration changes of the defaults, as `key=value` that `load_config` reads back to the same."""
    changed = changed_values(config.model_dump(mode="json"))
    if config.method.name != DEFAULT:
        changed = {"method.name": config.method.name} | changed
    return [f"{key}={_as_text(key, value)}" for key, value in changed.items()]


def changed_values(tree: Tree) -> dict[str, Any]:
    """Return what is not as ftkit would have chosen, given the method.

    Args:
        tree: a dumped RunConfig, perhaps of another schema.

    Returns:
        Dotted key to value.
    """
    usual = flat(_defaults(tree).model_dump(mode="json"))
    return {key: value for key, value in flat(tree).items() if key not in usual or usual[key] != value}


def unusual_values(tree: Tree) -> dict[str, Any]:
    """Return of a run's configuration, whose learning rate and cut are settled, what ftkit would not have chosen.

    Args:
        tree: a dumped RunConfig, perhaps of another schema.

    Returns:
        Dotted key to value.
    """
    usual = [flat(one.model_dump(mode="json")) for one in _settled_defaults(tree)]
    changed = changed_values(tree).items()
    return {key: value for key, value in changed if all(key not in one or one[key] != value for one in usual)}


def _settled_defaults(tree: Tree) -> list[RunConfig]:
    """Return the defaults as each kind of device settles them: a CPU by its precision."""
    defaults = _defaults(tree)
    in_bf16 = defaults.model_copy(update={"model": defaults.model.model_copy(update={"precision": "bf16"})})
    cut_in_bf16 = in_bf16.settled("cpu").model_copy(update={"model": defaults.model})
    return [defaults.settled("cpu"), cut_in_bf16, defaults.settled("cuda")]


def _defaults(tree: Tree) -> RunConfig:
    chosen = section_of(tree.get("method"))
    return RunConfig(method=chosen()) if chosen else RunConfig()


def flat(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """Return a tree's values by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if _is_section(key, value) else {f"{prefix}{key}": value}
    return found


def json_schema() -> str:
    """Return the JSON schema of the configuration, for editors."""
    return json.dumps(RunConfig.model_json_schema(), indent=2)


def preset_names() -> list[str]:
    """Return the names of the shipped presets."""
    files = resources.files("ftkit.config") / "presets"
    return sorted(Path(file.name).stem for file in files.iterdir() if file.name.endswith(".yaml"))


def preset_path(name: str) -> Path:
    """Return the file of a shipped preset.

    Raises:
        ConfigError: there is no such preset.
    """
    if name not in preset_names():
        raise ConfigError(f"no preset {name!r}; {nearest(name, preset_names())}")
    return Path(str(resources.files("ftkit.config") / "presets" / f"{name}.yaml"))


def read_yaml(file: Path) -> Tree:
    """Read a YAML mapping safely.

    Raises:
        ConfigError: no such file, no valid YAML, or no mapping.
    """
    tree = load_yaml(file)
    if tree is None:
        raise ConfigError(f"{file} is empty; write sections such as 'training:' with fields below them")
    if not isinstance(tree, dict):
        held = "a list" if isinstance(tree, list) else f"{str(tree)[:30]!r} alone"
        raise ConfigError(f"{file} holds {held}; write sections such as 'training:' with fields below")
    return _normal(tree)


def load_yaml(file: Path) -> object:
    """Read YAML of any form safely.

    Raises:
        ConfigError: no such file, or no valid YAML.
    """
    try:
        return parse_yaml(file.read_text(encoding="utf-8"), file)
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}; give the path of a YAML file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None


def parse_yaml(text: str, file: Path) -> object:
    """Read YAML of any form, which is from a file, safely.

    Raises:
        ConfigError: it is not valid.
    """
    try:
        return cast(object, yaml.safe_load(text))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{file} is not valid YAML{where}: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None


def _parse_value(key: str, text: str) -> object:
    try:
        value: object = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {key}={text!r}: the value is not valid YAML; quote it") from None
    return value


def _as_text(key: str, value: object) -> str:
    """Return what `_parse_value` reads back to a value: the value itself where that is enough, else quoted."""
    if isinstance(value, str):
        with contextlib.suppress(ConfigError):
            if _parse_value(key, value) == value:
                return value
    return yaml.safe_dump([value], default_flow_style=True, width=sys.maxsize)[1:-2]


def _normal(tree: Tree) -> Tree:
    return {str(key): _normal(value) if _is_section(key, value) else value for key, value in tree.items()}


def _is_section(key: object, value: object) -> bool:
    """Whether a value's keys are fields; those of a mapping are a user's own names."""
    return isinstance(value, dict) and key not in MAPPINGS


def _nested(key: str, value: object) -> Tree:
    head, _, rest = key.partition(".")
    return {head: _nested(rest, value) if rest else value}


def _lay_over(base: Tree, others: list[Tree]) -> Tree:
    """Lay what is said in one place over what lies below; a cut of the batch that is said replaces the one below."""
    batches = [tree["batch"] for tree in others if isinstance(tree.get("batch"), dict)]
    below = base.get("batch")
    if isinstance(below, dict) and any(batch.get(key) is not None for batch in batches for key in CUTS):
        base = {**base, "batch": {key: value for key, value in below.items() if key not in CUTS}}
    for tree in others:
        base = _merge(base, tree)
    return base


def _merge(base: Tree, top: Tree) -> Tree:
    """Lay `top` over `base`; another method replaces the section, since its fields are its own."""
    merged = dict(base)
    for key, value in top.items():
        if key == "method":
            merged[key] = merge_method(merged.get(key), value)
        elif _is_section(key, value) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def merge_method(base: object, top: object) -> Tree:
    """Lay a method over another, and keep of the old what the new one has a field for: `qlora` keeps a file's rank.

    Args:
        base: a name, or a mapping of a method's fields, or None.
        top: the same.

    Returns:
        A mapping of the new method's fields.
    """
    old = {"name": base} if isinstance(base, str) else dict(base) if isinstance(base, dict) else {"name": DEFAULT}
    new = {"name": top} if isinstance(top, str) else dict(top) if isinstance(top, dict) else {"name": top}
    chosen = methods().get(str(new.get("name", old.get("name"))))
    if chosen is None or new.get("name", old.get("name")) == old.get("name"):
        return {**old, **new}
    return {**{key: value for key, value in old.items() if key in chosen.model_fields}, **new}
