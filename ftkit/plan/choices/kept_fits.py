"""Answers of what fits, kept in the cache: a card takes minutes, and an answer is some hundred bytes."""

import hashlib
from pathlib import Path

from pydantic import ValidationError

from ftkit.config.tree import RunConfig
from ftkit.engine.resolve import resolve
from ftkit.machine.disk import is_of_disk
from ftkit.machine.kept_files import KeptFiles
from ftkit.machine.versions import source_digest, versions
from ftkit.models.sources.known import find_row
from ftkit.plan.inputs.target import Target
from ftkit.records.fits import Fit

_LIMIT = 2**25
"""Bytes of all answers, some hundred each: all models on each card, for some settings."""


def question(config: RunConfig, target: Target) -> str | None:
    """Return the key of an answer: a digest of all that decides it.

    The versions of the libraries, ftkit's own files, which hold the shapes of the models, the run, and the device with
    its rates, measured ones too.

    Args:
        config: the run, with its model and its method.
        target: the devices.

    Returns:
        64 characters; None where the model is not in ftkit's table, so that its shapes may change under its name.

    Raises:
        ConfigError: the settings do not go together.
        DeviceError: the target cannot compute in the precision asked for.
    """
    if find_row(config.model.name) is None:
        return None
    device = target.device(resolve(config, target.devices))
    run = config.model_dump_json(exclude={"output"})
    facts = (sorted(versions().items()), source_digest(), run, target, target.calibration, device)
    return hashlib.sha256(repr(facts).encode()).hexdigest()


class KeptFits:
    """The answers that were found before."""

    def __init__(self) -> None:
        """Open the folder of answers, which need not be there yet."""
        self._files = KeptFiles("fits", _LIMIT, ".json")

    def get(self, key: str) -> Fit | None:
        """Return the answer of a key; None where there is none that can be read.

        A damaged file is removed. One that is whole and holds no such answer stays until it is written anew.
        """
        file = self._files.find(key)
        try:
            return None if file is None else Fit.model_validate_json(file.read_bytes())
        except (FileNotFoundError, ValidationError):  # another process has made room, or another ftkit has written it
            return None

    def put(self, key: str, fit: Fit) -> None:
        """Keep the answer of a key; on a disk that is full or read-only nothing is kept, and the next call finds it."""

        def write(file: Path) -> None:
            file.write_text(fit.model_dump_json(), encoding="utf-8")

        try:
            self._files.put(key, write)
        except OSError as error:
            if not is_of_disk(error):
                raise
