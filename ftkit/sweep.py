"""Many configurations, each in a process of its own: what fails is a row with its reason, and the sweep goes on."""

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from ftkit.config import RunConfig
from ftkit.distributed import PEER_LOST
from ftkit.errors import ConfigError, DataError, DoesNotFitError
from ftkit.records import Measurement, Prediction, RecordWriter, ResultLine, RunLine, RunRecord, read_record

RECORD, OUTPUT = "record.jsonl", "output.txt"
WORLD_SIZE = "world_size"
"""The one axis that is no key of a configuration: the ranks."""

Failure = Literal["out of memory", "crash", "time limit", "refused"]
Settings = dict[str, str]
"""Dotted key to its value as YAML."""

_OUT_OF_MEMORY = re.compile(
    r"OutOfMemoryError|CUDA out of memory|can't allocate memory|MemoryError|std::bad_alloc|Cannot allocate memory"
)
_SAID = re.compile(r"error(?: on rank \d+)?: (.*)")
_ERROR = re.compile(r"(\[rank\d+\]: )?[\w.]*(Error|Exception)\b")
_KILLED = {-signal.SIGKILL, 128 + signal.SIGKILL, 256 - signal.SIGKILL}
"""How a process ends that the system's out-of-memory killer took; the last as a launcher passes it on."""


@dataclass(frozen=True)
class Trial:
    """One configuration of a sweep.

    Attributes:
        name: its folder's name.
        settings: what the axes say of it.
        world_size: ranks.
        config: the checked configuration, or None where it cannot be.
        refusal: why it cannot be.
    """

    name: str
    settings: Settings
    world_size: int = 1
    config: RunConfig | None = None
    refusal: str | None = None


def parse_axis(text: str) -> list[Settings]:
    """Read one `--sweep`.

    Args:
        text: `key=a,b,c`; keys joined by `:` move together, `engine.zero_stage:world_size=null:1,2:2`.

    Returns:
        The settings of each place on the axis.

    Raises:
        ConfigError: no `=`, or a place with another number of values than keys.
    """
    keys_text, separator, values_text = text.partition("=")
    keys = [key.strip() for key in keys_text.split(":")]
    if not separator or not all(keys) or not values_text.strip():
        raise ConfigError(f"--sweep {text!r}: write key=value,value, such as engine.zero_stage=1,2,3")
    places = []
    for value in _split(values_text, ","):
        parts = _split(value, ":") if len(keys) > 1 else [value]
        if len(parts) != len(keys):
            raise ConfigError(
                f"--sweep {text!r}: {value!r} must have {len(keys)} values joined by ':', one for each key"
            )
        places.append(dict(zip(keys, (part.strip() for part in parts), strict=True)))
    return places


def read_axes(tree: Mapping[str, Any]) -> list[list[Settings]]:
    """Read the axes of a sweep file.

    Args:
        tree: key to a list of values; `configurations` to a list of mappings, each a place on one axis.

    Returns:
        The axes.

    Raises:
        ConfigError: something that is no list.
    """
    axes = []
    for key, values in tree.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"sweep file: {key} must be a list of values, such as [1, 2, 3]")
        if key == "configurations":
            if not all(isinstance(one, dict) for one in values):
                raise ConfigError("sweep file: each of configurations must map keys to values")
            axes.append([{name: json.dumps(value) for name, value in one.items()} for one in values])
        else:
            axes.append([{key: json.dumps(value)} for value in values])
    return axes


def make_trials(axes: Sequence[Sequence[Settings]], build: Callable[[list[str]], RunConfig]) -> list[Trial]:
    """Return the product of the axes, the last one varying fastest.

    Args:
        axes: places of each axis.
        build: settings `key=value` to a configuration; raises a ConfigError where there can be none.

    Returns:
        The trials; the same product gets the same names again.
    """
    trials = []
    for number, places in enumerate(itertools.product(*axes), start=1):
        settings: Settings = {}
        for place in places:
            settings |= place
        words = [re.sub(r"[^A-Za-z0-9.+-]+", "_", value.strip('"')).strip("_") for value in settings.values()]
        name = "-".join([f"{number:03d}", *(word for word in words if word)])[:100]
        trials.append(_trial(name, settings, build))
    return trials


def run_sweep(
    trials: Iterable[Trial],
    folder: Path,
    command: Callable[[Trial, Path], list[str]],
    predict: Callable[[Trial], Prediction | None],
    time_limit: float,
) -> Iterator[tuple[Trial, RunRecord, bool]]:
    """Run each trial that has not been run yet.

    Args:
        trials: what to run.
        folder: gets a folder for each trial.
        command: a trial and its folder to the command line of its process.
        predict: a trial to what the plan says of it, or None.
        time_limit: seconds after which a trial is ended.

    Yields:
        The trial, its record, and whether it had been run before.
    """
    for trial in trials:
        place = folder / trial.name
        done = _done(trial, place)
        yield trial, done or _run(trial, place, command, predict, time_limit), done is not None


def _trial(name: str, settings: Settings, build: Callable[[list[str]], RunConfig]) -> Trial:
    given = dict(settings)
    ranks = given.pop(WORLD_SIZE, "1")
    if not ranks.isdigit() or int(ranks) < 1:
        raise ConfigError(f"world_size={ranks} is no number of ranks; give 1 or more")
    if given.get("model.gradient_checkpointing") in ("none", "all"):
        given["model.gradient_checkpointing"] = {"none": "0", "all": "1"}[given["model.gradient_checkpointing"]]
    try:
        config = build([f"{key}={value}" for key, value in given.items()])
    except ConfigError as error:
        return Trial(name, settings, int(ranks), None, str(error))
    return Trial(name, settings, int(ranks), config)


def _done(trial: Trial, place: Path) -> RunRecord | None:
    """Return the record of a trial that came to an end earlier, if it was of this very configuration."""
    try:
        record = read_record(place)
    except (DataError, OSError):
        return None
    same = trial.config is None or record.run.config == trial.config.model_dump(mode="json")
    return record if same and record.result is not None else None


def _run(
    trial: Trial,
    place: Path,
    command: Callable[[Trial, Path], list[str]],
    predict: Callable[[Trial], Prediction | None],
    time_limit: float,
) -> RunRecord:
    place.mkdir(parents=True, exist_ok=True)
    (place / RECORD).unlink(missing_ok=True)
    prediction = None
    if trial.config is not None:
        from ftkit.config_io import dump_config

        (place / "config.yaml").write_text(dump_config(trial.config), encoding="utf-8")
        prediction = predict(trial)
    if prediction is not None:
        (place / "prediction.json").write_text(prediction.model_dump_json(), encoding="utf-8")
    failure = (
        ("refused", str(trial.refusal)) if trial.config is None else _attend(command(trial, place), place, time_limit)
    )
    if failure is not None:
        _write_failure(trial, place, prediction, failure[0], failure[1])  # type: ignore[arg-type]  # a Failure
    return read_record(place)


def _attend(command: list[str], place: Path, time_limit: float) -> tuple[str, str] | None:
    """Run a command to its end or its time; return the kind and the reason of its failure, or None."""
    with (place / OUTPUT).open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            code = process.wait(time_limit)
        except subprocess.TimeoutExpired:
            return "time limit", f"not done after {time_limit:g} s; ended"
        finally:
            _end_group(process)
    if code == 0 and _has_result(place):
        return None
    return explain_failure(code, (place / OUTPUT).read_text(encoding="utf-8", errors="replace"))


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a process and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _has_result(place: Path) -> bool:
    try:
        return read_record(place).result is not None
    except DataError:
        return False


def explain_failure(code: int, output: str) -> tuple[Failure, str]:
    """Say why a process failed.

    Args:
        code: what it exited with.
        output: what it wrote.

    Returns:
        The kind, and the sentence that says most.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for line in reversed(lines):
        if _OUT_OF_MEMORY.search(line):
            return "out of memory", line[:300]
    said = _causes(found[1] for line in lines if (found := _SAID.match(line)))
    if said:
        kind: Failure = "out of memory" if code == DoesNotFitError.exit_code else "refused"
        return kind, said[-1][:300]
    if code in _KILLED:
        return "out of memory", "killed by the system, as it does where memory runs out"
    errors = _causes(line for line in lines if _ERROR.match(line))
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    last = (errors or lines or [""])[-1][:300]
    return "crash", f"{how}: {last}" if last else how


def _causes(lines: Iterable[str]) -> list[str]:
    """Return the lines that say why, without those that only say that another rank is gone."""
    return [line for line in lines if not PEER_LOST.search(line)]


def _write_failure(trial: Trial, place: Path, prediction: Prediction | None, failure: Failure, reason: str) -> None:
    """End the record of a trial that could not end it itself."""
    try:
        read_record(place)
        is_begun = True
    except DataError:
        is_begun = False
    writer = RecordWriter(place / RECORD)
    if not is_begun:
        config = trial.config.model_dump(mode="json") if trial.config else _nested(trial.settings)
        wants_deepspeed = trial.config is not None and (trial.config.engine.wants_deepspeed or trial.world_size > 1)
        writer.write(
            RunLine(
                name=trial.name, started=datetime.now(UTC).isoformat(timespec="milliseconds"), config=config,
                engine="deepspeed" if wants_deepspeed else "plain", precision=str(_at(config, "model", "precision")),
                world_size=trial.world_size, device="unknown", num_steps=0, prediction=prediction, purpose="profile",
            )
        )  # fmt: skip
    writer.write(
        ResultLine(
            status="failed", failure=failure, reason=reason, num_steps=0, train_seconds=0.0, total_seconds=0.0,
            measurement=Measurement(),
        )
    )  # fmt: skip
    writer.close()


def _nested(settings: Settings) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, name = ["method", "name"] if key == "method" else key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return tree


def _at(tree: Mapping[str, Any], section: str, key: str) -> Any:
    found = tree.get(section)
    return found.get(key, "unknown") if isinstance(found, dict) else "unknown"


def _split(text: str, separator: str) -> list[str]:
    """Split at a separator that stands in no brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
