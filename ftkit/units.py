"""Words for numbers and numbers for words: bytes, counts, seconds. Everything inside ftkit is in base units."""

import re

from ftkit.errors import ConfigError

_BINARY = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BYTES = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)

_SECONDS = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", re.IGNORECASE)
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_bytes(text: str) -> int:
    """Return the number of bytes that a text such as `8GiB`, `500 MB` or `24g` names.

    `GiB` and a bare `g` are 2**30, `GB` is 10**9, as on the label of a disk.

    Args:
        text: a number with an optional unit.

    Returns:
        Whole bytes.

    Raises:
        ConfigError: the text is not a size.
    """
    match = _BYTES.fullmatch(text)
    if match is None:
        raise ConfigError(f"{text!r} is not a size in bytes; write a number and a unit, such as 8GiB or 500MB")
    number, prefix, binary = match.groups()
    decimal = not binary and text.strip().lower().endswith("b")
    return round(float(number) * (_DECIMAL if decimal else _BINARY)[prefix.lower()])


def parse_seconds(text: str) -> float:
    """Return the seconds that a text such as `90`, `45s`, `90m`, `1.5h` or `2d` names.

    Args:
        text: a number with an optional unit; seconds without one.

    Raises:
        ConfigError: the text is not a time above 0.
    """
    match = _SECONDS.fullmatch(text)
    seconds = float(match[1]) * _UNITS[match[2].lower()] if match else 0.0
    if seconds <= 0:
        raise ConfigError(f"{text!r} is not a time; write a number and a unit, such as 45s, 90m, 2h or 1d")
    return seconds


def format_bytes(count: float) -> str:
    """Return bytes as a short text in binary units, such as `1.50 GiB`.

    Args:
        count: bytes.

    Returns:
        Three significant digits or so.
    """
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(count) >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} B"


def format_count(count: float) -> str:
    """Return a count as a short text, such as `22.7 M`.

    Args:
        count: any number.

    Returns:
        The number in thousands, millions, billions or trillions.
    """
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(count) >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f}"


def counted(count: int, one: str, several: str | None = None) -> str:
    """Return a count with the words for one or for several, such as `1 row has` and `1,200 rows have`.

    Args:
        count: a whole number.
        one: the words for one.
        several: the words for another number; None: those for one, with an s behind.
    """
    return f"{count:,} {one if count == 1 else several or f'{one}s'}"


def format_seconds(seconds: float) -> str:
    """Return a duration as `1 h 05 min`, `3 min 20 s` or `4.2 s`.

    Args:
        seconds: a duration.

    Returns:
        The two largest units.
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
