"""Files of a cache whose names vouch for their content: `STEM-<SHA-256>.safetensors`, or with another suffix."""

import hashlib
from pathlib import Path

SUFFIX = ".safetensors"


def seal(aside: Path, stem: str, suffix: str = SUFFIX) -> Path:
    """Give a file that is on the disk the name that vouches for it.

    Args:
        aside: the file, flushed.
        stem: begins the name.
        suffix: ends it.

    Returns:
        Its path, in the same folder.
    """
    return aside.rename(aside.with_name(f"{stem}-{digest_of(aside)}{suffix}"))


def find_sealed(folder: Path, stem: str, suffix: str = SUFFIX) -> Path | None:
    """Return the file that a stem and a suffix name, None where there is none."""
    return next(iter(folder.glob(f"{stem}-*{suffix}")), None)


def is_sound(file: Path) -> bool:
    """Return whether a file holds what was written."""
    return file.stem.partition("-")[2] == digest_of(file)


def digest_of(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
