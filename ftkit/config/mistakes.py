"""Say what is wrong with a configuration, from what pydantic says of it."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from ftkit.config.methods import UNKNOWN, methods, section_of
from ftkit.config.training import MAPPINGS
from ftkit.config.tree import RunConfig
from ftkit.errors import nearest


def sentences(problems: list[dict[str, Any]], tree: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each problem; those of a value that may be of several types are one problem.

    Args:
        problems: as pydantic lists them.
        tree: what was checked.
    """
    places: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for problem in problems:
        place = _place_of_key(problem["loc"])
        places.setdefault(place, []).append(problem | {"loc": place})
    merged = []
    for same in places.values():
        messages = [str(problem["msg"]) for problem in same]
        others = [message[:1].lower() + message[1:] for message in messages[1:]]
        merged.append(same[0] | {"msg": ", or ".join([messages[0], *others])})
    return [_sentence(problem, tree) for problem in merged]


def _place_of_key(place: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return where a problem is without what pydantic adds of the type that it tried, such as `constrained-int`."""
    section, *rest = place or ("",)
    if section == "method" or len(rest) < 2 or rest[0] in MAPPINGS:
        return place
    return section, rest[0], *(part for part in rest[1:] if isinstance(part, int))


def _unknown_key(place: tuple[Any, ...], tree: Mapping[str, Any]) -> str:
    """Say which key was meant: one of the section, or one of that very name in another."""
    name = str(place[-1])
    if len(place) == 1 and (homes := _homes(name)):
        return f"did you mean {' or '.join(map(repr, homes))}?"
    if place[0] == "method":
        having = [label for label, section in methods().items() if name in section.model_fields]
        if having:
            chosen = section_of(tree["method"])
            known = ", ".join(field for field in chosen.model_fields if field != "name") if chosen else ""
            return f"{' and '.join(having)} have it; this method has: {known}"
    return nearest(name, _fields_at(place[:-1], tree))


def _homes(name: str) -> list[str]:
    """Return the dotted keys of that name: of every section, and of every method."""
    sections = [(key, field.annotation) for key, field in RunConfig.model_fields.items()]
    sections += [("method", section) for section in methods().values()]
    homes = [f"{key}.{name}" for key, section in sections if name in getattr(section, "model_fields", ())]
    return list(dict.fromkeys(homes))


def _sentence(problem: dict[str, Any], tree: Mapping[str, Any]) -> str:
    place = problem["loc"]
    key = ".".join(str(part) for part in place) or "the configuration"
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r}; {_unknown_key(place, tree)}"
    if problem["type"] == UNKNOWN:
        given = problem["input"].get("name") if isinstance(problem["input"], dict) else problem["input"]
        return f"unknown method {given!r}; {nearest(str(given), methods())}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if message.split()[0][1:].islower():  # a word, and no name such as ZeRO
        message = message[:1].lower() + message[1:]
    given = problem["input"]
    if problem["type"] == "value_error" or isinstance(given, dict):
        return f"{key}: {message}"
    return f"{key}={given!r}: {message}"


def _fields_at(place: tuple[Any, ...], tree: Mapping[str, Any]) -> list[str]:
    """Return the names of the fields of the section at `place`."""
    section: Any = RunConfig
    for part in place:
        if part == "method":
            section = section_of(tree[part])
        elif (field := section.model_fields.get(part)) is not None:
            section = field.annotation
    is_section = isinstance(section, type) and issubclass(section, BaseModel)
    return list(section.model_fields) if is_section else list(RunConfig.model_fields)
