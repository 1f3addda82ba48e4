"""The result folder: where it is, and what a finished run leaves in it.

config.yaml     the configuration, with the learning rate, the precision and the cut that were used
record.jsonl    every figure, as it happened
checkpoints/    what a run needs to go on
model/          adapters or weights as plain PEFT or transformers load them, and the tokenizer
README.md       the model card
report.html     the page of `ftkit report`
memory_snapshot_rank0.pickle   where it was asked for, what torch's viewer of a GPU's memory opens
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from ftkit.config.tree import DEMO, RunConfig
from ftkit.engine.protocol import Engine
from ftkit.errors import CheckpointError, ConfigError
from ftkit.models.card import Card
from ftkit.models.methods import Method, method_of
from ftkit.models.source import PROBLEM_TYPES
from ftkit.records.files import CARD, CHECKPOINTS, CONFIG, LIMITS, MODEL, PAGE, RANKS, RECORD, read_record
from ftkit.records.schema import LabelsLine, RunRecord, Scores
from ftkit.report.metrics import BASELINES, METRICS, taken
from ftkit.report.text import escape_markdown
from ftkit.report.words import distribution
from ftkit.training.checkpoint import ENDS
from ftkit.units import format_bytes, format_count, format_seconds

Labels = tuple[str, ...] | None
_SHOWN_LABELS = 50


def check_folder(config: RunConfig, *, is_resumed: bool) -> None:
    """Refuse a result folder that cannot be used, before anything is read; nothing is changed.

    Args:
        config: names it, or leaves it to be found below `runs/`.
        is_resumed: whether an earlier run goes on there.

    Raises:
        ConfigError: another run has filled it, or it cannot be made or written to.
        CheckpointError: the run that would go on is finished.
    """
    folder = Path(config.output.folder or "runs")
    with _explained(folder):
        tempfile.TemporaryFile(dir=next(place for place in (folder, *folder.parents) if place.exists())).close()
    if config.output.folder is None or not (folder / RECORD).exists():
        return
    if not is_resumed and not config.output.overwrite:
        raise ConfigError(
            f"{folder} holds a run; go on with --resume {folder}, empty it with --overwrite, or name another"
        )
    if is_resumed:
        _check_unfinished(config, folder)


def _check_unfinished(config: RunConfig, folder: Path) -> None:
    """Refuse to go on with a run that is finished, unless another end is asked for."""
    record = read_record(folder)
    earlier = record.run.config.get("training", {})
    asked = config.training.model_dump(mode="json")
    if record.result is not None and all(asked[key] == earlier.get(key) for key in ENDS):
        raise CheckpointError(
            f"the run in {folder} is finished; train it for longer with --resume {folder} and a higher --epochs or "
            "--max-steps, or start another with another --output"
        )


def open_folder(config: RunConfig, *, is_resumed: bool) -> Path:
    """Make the result folder of a run, or find it again; with `output.overwrite` what another run left there goes.

    Args:
        config: names it, or leaves it to be found below `runs/`.
        is_resumed: whether an earlier run goes on there.

    Returns:
        The folder.

    Raises:
        FtkitError: as `check_folder`, since another run may have filled it in the meantime.
    """
    check_folder(config, is_resumed=is_resumed)
    named = config.output.folder
    folder = Path(named) if named else _free_folder(config)
    with _explained(folder):
        if (folder / RECORD).exists() and not is_resumed:
            for name in (RECORD, CONFIG, CHECKPOINTS, MODEL, CARD, PAGE, LIMITS, RANKS):
                path = folder / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"cannot write to the result folder {folder}: {error.strerror}; name another with --output"
        ) from None


def save_model(engine: Engine, method: Method, tokenizer: Any, folder: Path) -> None:
    """Write the trained model as plain PEFT or transformers load it; called by every rank, written by the first.

    Args:
        engine: holds the weights, partitioned or not.
        method: knows which of them are the result, and how they are written.
        tokenizer: saved beside them.
        folder: the result folder.
    """
    weights = engine.trainable_state() if method.is_adapter else engine.full_state()
    if not engine.process.is_main:
        return
    if method.is_adapter:  # masters, in fp32
        weights = {name: tensor.to(engine.dtype) for name, tensor in weights.items()}
    method.save(engine.model, folder / MODEL, weights)
    tokenizer.save_pretrained(folder / MODEL)


def written_bytes(folder: Path) -> int:
    """Return what a run has written into its folder: the checkpoints that are kept, the result, the record."""
    roots = [folder / name for name in (RECORD, CONFIG, CHECKPOINTS, MODEL)]
    files = [file for root in roots for file in (root.rglob("*") if root.is_dir() else [root])]
    return sum(file.stat().st_size for file in files if file.is_file())


def write_card(folder: Path, config: RunConfig, record: RunRecord, label_names: Labels, pad_token_id: int) -> None:
    """Write the model card: what it is, how it scores, how to load it.

    Args:
        folder: the result folder.
        config: the run.
        record: its figures so far.
        label_names: the classes, or None.
        pad_token_id: the tokenizer's.
    """
    labels = record.run.labels
    problem_type = None if labels is None else PROBLEM_TYPES[labels.kind]
    card = Card(folder / MODEL, config.task, label_names, pad_token_id, record.run.precision, problem_type)
    lines = [
        f"# {folder.name}",
        "",
        f"{config.model.name} trained with {config.method.name} for {config.task} on {config.data.dataset} by ftkit.",
        "",
    ]
    lines += [f"Labels: {', '.join(label_names)}.", ""] if label_names else []
    lines += [
        *_score_table(record),
        "",
        *_label_table(record),
        *(f"- {name}: {value}" for name, value in summary_rows(record)),
        "",
        "```python",
        *method_of(config).loading_code(card),
        "```",
        *([] if labels is None else ["", _answer(labels)]),
    ]
    (folder / CARD).write_text("\n".join(lines) + "\n", encoding="utf-8")


def score_words(scores: Scores) -> dict[str, str]:
    """Return what an evaluation found, heading to figure: the baseline stands behind what it is to be compared with."""
    words = {}
    for name, value in taken(scores).items():
        metric = METRICS[name]
        words[metric.heading] = format(value, metric.form)
        if name in BASELINES and scores.baseline is not None:
            words["Baseline"] = format(scores.baseline, metric.form)
    return words


def _score_table(record: RunRecord) -> list[str]:
    """Return the newest scores of each split as lines of Markdown."""
    lines = [line for split in ("validation", "test") if (line := record.last_evaluation(split)) is not None]
    headings = list(dict.fromkeys(heading for line in lines for heading in score_words(line)))
    table = [["split", *headings, "sequences"], ["---"] * (len(headings) + 2)]
    for line in lines:
        words = score_words(line)
        table.append([line.split, *(words.get(heading, "") for heading in headings), str(line.num_samples)])
    return [f"| {' | '.join(row)} |" for row in table]


def _label_table(record: RunRecord) -> list[str]:
    """Return how each label was answered on the split of the scores, as lines of Markdown."""
    line = record.last_evaluation("test") or record.last_evaluation("validation")
    if line is None or line.per_label is None:
        return []
    rows = [
        f"| {escape_markdown(one.name)} | {one.precision:.4f} | {one.recall:.4f} | {one.f1:.4f} | {one.support} |"
        for one in line.per_label[:_SHOWN_LABELS]
    ]
    rest = len(line.per_label) - len(rows)
    more = ["", f"The record has {rest} more labels."] if rest else []
    return [f"| label ({line.split}) | precision | recall | F1 | rows |", "| --- " * 5 + "|", *rows, *more, ""]


def _answer(labels: LabelsLine) -> str:
    """Say how the logits of a saved model are read."""
    if labels.kind == "single":
        return "The answer is the class of the largest logit, `model.config.id2label[int(logits.argmax())]`."
    if labels.kind == "multi":
        return "A label applies where its logit is above 0, which is a sigmoid of one half."
    if (labels.mean, labels.deviation) == (0.0, 1.0):
        return f"The logit is the predicted {labels.names[0]}."
    return f"The predicted {labels.names[0]} is `logit * {labels.deviation!r} + {labels.mean!r}`."


def summary_rows(record: RunRecord) -> list[tuple[str, str]]:
    """Return what a run took, as names and texts."""
    rows = [
        (
            "engine",
            f"{distribution(record.run)}, {record.run.world_size} x {record.run.device}, {record.run.precision}",
        ),
        ("steps planned", str(record.run.num_steps)),
    ]
    if record.result is None:
        return rows
    measured = record.result.measurement
    figures = [
        ("steps taken", str(record.result.num_steps)),
        ("trainable parameters", _share(measured.num_trainable_parameters, measured.num_parameters)),
        ("training time", format_seconds(record.result.train_seconds)),
        ("total time", format_seconds(record.result.total_seconds)),
        ("throughput", _of(measured.tokens_per_second, lambda rate: f"{format_count(rate)} tokens/s")),
        ("peak of live tensors", _of(measured.peak_active_bytes, format_bytes)),
        ("peak of one process", _of(measured.peak_process_bytes, format_bytes)),
    ]
    return rows + [(name, text) for name, text in figures if text]


def _of(value: float | None, form: Any) -> str:
    return "" if value is None else str(form(value))


def _share(part: int | None, whole: int | None) -> str:
    return "" if not part or not whole else f"{format_count(part)} of {format_count(whole)} ({part / whole:.2%})"


def _free_folder(config: RunConfig) -> Path:
    """Return a new folder below runs/, named for the data, the model and the method."""
    data, model = (Path(name).stem if name != DEMO else DEMO for name in (config.data.dataset, config.model.name))
    base = Path("runs") / f"{data}-{model}-{config.method.name}"
    return next(
        path
        for number in count(1)
        if not (path := base if number == 1 else base.with_name(f"{base.name}-{number}")).exists()
    )
