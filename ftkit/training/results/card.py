"""The model card of a run: what the model is, how it scores, how to load it."""

from pathlib import Path
from typing import Any

from torch import nn

from ftkit.config.paths import from_root
from ftkit.config.tree import RunConfig
from ftkit.data.arrays import Labels, PreparedData
from ftkit.data.chat.template import wants_parts
from ftkit.data.standard import AS_THEY_ARE
from ftkit.models.card import Card
from ftkit.models.experts import packed_experts
from ftkit.models.methods import method_of
from ftkit.records.files import CARD, MODEL
from ftkit.records.schema import RunRecord
from ftkit.records.scores import Scores
from ftkit.report.metrics import BASELINES, METRICS, taken
from ftkit.report.text import escape_markdown
from ftkit.report.words import place
from ftkit.training.results.folder import summary_rows

_SHOWN_LABELS = 50


def write_cards(
    folder: Path, config: RunConfig, record: RunRecord, data: PreparedData, tokenizer: Any, model: nn.Module
) -> None:
    """Write the card of a finished run into its folder and beside its model, where PEFT leaves an empty form.

    Args:
        folder: the result folder.
        config: the run.
        record: its figures so far.
        data: what it was trained on.
        tokenizer: the run's.
        model: what trained.
    """
    is_chat = data.report.example == "chat"
    card = Card(
        folder=from_root(folder) / MODEL,
        task=config.task,
        labels=data.labels,
        pad_token_id=tokenizer.pad_token_id,
        precision=record.run.precision,
        max_length=config.data.max_length,
        example="chat in parts" if is_chat and wants_parts(tokenizer) else data.report.example,
        experts=packed_experts(model),
    )
    lines = [
        f"# {from_root(folder).name}",
        "",
        f"{place(config.model.name)} trained with {config.method.label} for {config.task} on "
        f"{place(config.data.dataset)} by ftkit.",
        "",
        *([f"Labels: {', '.join(data.label_names)}.", ""] if data.label_names else []),
        *_score_table(record),
        "",
        *_label_table(record),
        *(f"- {name}: {value}" for name, value in summary_rows(record)),
        "",
        "```python",
        *method_of(config).loading_code(card),
        "```",
        *([] if data.labels is None else ["", _answer(data.labels)]),
    ]
    for card_file in (folder / CARD, folder / MODEL / CARD):
        card_file.write_text("\n".join(lines) + "\n", encoding="utf-8")


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


def _answer(labels: Labels) -> str:
    """Say how the logits of a saved model are read."""
    if labels.kind == "single":
        return "The answer is the class of the largest logit, `model.config.id2label[int(logits.argmax())]`."
    if labels.kind == "multi":
        return "A label applies where its logit is above 0, which is a sigmoid of one half."
    if labels.standard == AS_THEY_ARE:
        return f"The logit is the predicted {labels.names[0]}."
    mean, deviation = labels.standard.mean, labels.standard.deviation
    return f"The predicted {labels.names[0]} is `logit * {deviation!r} + {mean!r}`."
