"""The files that a saved model keeps of its run, so that a copy of its folder is opened as the run was scored.

The name of each begins with ftkit's, since a folder of the hub may have a `config.yaml` or a `labels.json` of its own.
"""

from pathlib import Path

from pydantic import ValidationError

from ftkit.config.files import dump_config, load_config
from ftkit.config.output import OutputConfig
from ftkit.config.paths import private_names
from ftkit.config.tree import RunConfig
from ftkit.errors import DataError
from ftkit.records.files import RECORD, read_record
from ftkit.records.schema import LabelsLine

SETTINGS, LABELS = "ftkit.yaml", "ftkit-labels.json"


def write_origin(folder: Path, config: RunConfig, labels: LabelsLine | None) -> None:
    """Write the settings and the labels of its run beside a saved model.

    Args:
        folder: of the saved model.
        config: the run; where its results went is left out.
        labels: None for a language model.
    """
    settings = config.model_copy(update={"output": OutputConfig()})
    (folder / SETTINGS).write_text(dump_config(settings), encoding="utf-8")
    if labels is not None:
        (folder / LABELS).write_text(labels.model_dump_json(indent=2) + "\n", encoding="utf-8")


def private_files(folder: Path) -> list[str]:
    """Return those of the two files of a saved model that name files or folders of this machine, there still or not.

    Args:
        folder: of the saved model.
    """
    file = folder / SETTINGS
    return [SETTINGS] if file.is_file() and any(private_names(load_config(file))) else []


def kept_labels(folder: Path) -> LabelsLine | None:
    """Return the labels of a saved model: those beside it, or those of the run that it is in; None where neither is.

    Args:
        folder: of the saved model.

    Raises:
        DataError: the file is there, and does not hold labels.
    """
    file = folder / LABELS
    if file.is_file():
        try:
            return LabelsLine.model_validate_json(file.read_bytes())
        except ValidationError:
            raise DataError(f"{file} does not hold the labels of a run; export or copy the model again") from None
    return next(
        (read_record(place).run.labels for place in (folder, folder.parent) if (place / RECORD).is_file()), None
    )
