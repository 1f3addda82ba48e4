"""Give every split its labels: one class, several labels or a number a text, numbered by the training split."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ftkit.config.tree import DataConfig, LabelKind
from ftkit.data.draft import Draft
from ftkit.data.findings import Finding, listed, note
from ftkit.data.labels.checks import contradictions
from ftkit.data.labels.kinds import choose_kind
from ftkit.data.labels.numbers import read_numbers, thousands
from ftkit.data.labels.one_class import MISSING, LabelCoder, RawLabels, choose_names, match_model, read_labels
from ftkit.data.labels.several import SeveralLabels, read_several
from ftkit.data.reading.shards import Split
from ftkit.data.reading.splits import strata
from ftkit.data.standard import refuse_constant
from ftkit.data.table.columns import Columns
from ftkit.data.table.rows import where
from ftkit.errors import DataError, ExcusableDataError
from ftkit.units import counted

ModelNames = tuple[str, ...] | None
"""The label names of a fine-tuned model in its order; None for a model without a head."""


def label(draft: Draft, train: Split, columns: Columns, config: DataConfig, model: ModelNames) -> None:
    """Find the kind of labels, and number them in every split as in the training split.

    Args:
        draft: gets kind, labels and names; loses rows without a label where they may be left out.
        train: the training split as it was read, whose schema may name its classes.
        columns: with one or several columns of labels.
        config: the data section.
        model: the label names of a fine-tuned model in its order, or None.

    Raises:
        DataError: labels that are missing, unknown, of another kind than asked for, or not the model's.
    """
    assert columns.label is not None
    classes = train.classes(columns.label)
    choice = choose_kind(config, draft.rows["train"], columns.label, has_names=classes is not None)
    draft.kind, draft.kind_reason = choice.kind, choice.reason
    _KINDS[choice.kind](draft, classes, columns, config, model)
    for split in list(draft.rows):
        _handle_missing(draft, split, columns.label, config)
    if choice.kind == "regression" and not draft.may_lack_labels:
        refuse_constant(draft.labels["train"], columns.label)
    draft.findings += _contradictions(draft)


def is_missing(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which rows have no label, bool [N]: NaN among numbers, -1 elsewhere."""
    if labels.dtype == np.float64:
        return np.asarray(np.isnan(labels))
    return np.asarray((labels == MISSING).any(axis=1) if labels.ndim == 2 else labels == MISSING)


def _label_single(draft: Draft, classes: ModelNames, columns: Columns, config: DataConfig, model: ModelNames) -> None:
    name = str(columns.label)
    raw = {split: read_labels(rows["label"], name, classes) for split, rows in draft.rows.items()}
    least = 1 if draft.may_lack_labels else 2
    names = choose_names(raw["train"], config.label_names, classes, least)
    coder = match_model(names, model, may_lack=draft.may_lack_labels)
    draft.names = coder.names
    for split in raw:
        draft.labels[split] = coder.encode(raw[split], raw["train"].present, split)
    draft.findings += _spellings(raw.values())


def _label_several(draft: Draft, classes: ModelNames, columns: Columns, config: DataConfig, model: ModelNames) -> None:
    name = str(columns.label)
    several = {
        split: read_several(rows["label"], name, config.label_separator, classes) for split, rows in draft.rows.items()
    }
    names = _several_names(several["train"], classes, columns, config)
    coder = match_model(names, model, may_lack=draft.may_lack_labels)
    draft.names = coder.names
    if num_repeated := sum(one.num_repeated for one in several.values()):
        draft.findings.append(
            note(f"{counted(num_repeated, 'label is', 'labels are')} named twice in one row, and counted once")
        )
    train = several["train"]
    seen = train.raw.present if train.num_places is None else set(train.raw.values)
    for split, labels in several.items():
        draft.labels[split] = labels.matrix(coder, seen, split)
    draft.findings += _spellings(one.raw for one in several.values())


def _several_names(train: SeveralLabels, classes: ModelNames, columns: Columns, config: DataConfig) -> LabelCoder:
    given = columns.several or config.label_names
    if train.num_places is None:
        return choose_names(train.raw, given, classes, least=1)
    names = given or tuple(map(str, range(train.num_places)))
    if len(names) != train.num_places:
        raise DataError(
            f"data.label_names has {len(names)} names, and the lists of 0 and 1 have {train.num_places} places; give "
            "one name for every place"
        )
    return LabelCoder(names, {place: place for place in range(train.num_places)})


def _label_numbers(
    draft: Draft,
    classes: ModelNames,  # noqa: ARG001  # each kind is called alike
    columns: Columns,
    config: DataConfig,
    model: ModelNames,
) -> None:
    name = str(columns.label)
    names = config.label_names or (name,)
    if len(names) != 1 or len(model or names) != 1:
        raise DataError(
            f"a number to predict has one name and one output, and data.label_names has {len(names)}, the model "
            f"{len(model or names)}; give one name, or start from a model without a classification head"
        )
    draft.names = names
    for split, rows in draft.rows.items():
        draft.labels[split] = read_numbers(rows, name)
    draft.findings += thousands(draft.rows["train"], name)
    test, train = draft.labels.get("test"), draft.labels["train"]
    if test is not None and (test == MISSING).all() and not (train == MISSING).any():
        test[:] = np.nan  # hidden, as public test splits have it


def _spellings(raws: Iterable[RawLabels]) -> list[Finding]:
    """Name the labels that are written in several ways and read as one."""
    ways: dict[int | str, set[str]] = {}
    for raw in raws:
        for label, written in raw.spellings.items():
            ways.setdefault(label, set()).update(written)
    return [
        note(f"label {str(label)!r} is written in {len(written)} ways, read as one: {listed(sorted(written))}")
        for label, written in ways.items()
    ]


_KINDS: dict[LabelKind, Callable[[Draft, ModelNames, Columns, DataConfig, ModelNames], None]] = {
    "single": _label_single,
    "multi": _label_several,
    "regression": _label_numbers,
}


def _handle_missing(draft: Draft, split: str, column: str, config: DataConfig) -> None:
    """Refuse rows without a label, or leave them out; of the test split they are left out, being common there."""
    missing = is_missing(draft.labels[split])
    if not missing.any():
        return
    is_hidden = split == "test" and bool(missing.all())
    if config.unlabelled == "no_label" and not is_hidden:
        _take_as_none(draft, split, missing)
        return
    if split != "test" and config.unlabelled == "refuse":
        empty = "empty" if draft.kind == "regression" else "empty or -1"
        raise ExcusableDataError(
            f"{where(draft.rows[split], int(np.argmax(missing)))} has no label in {column!r} ({empty}; "
            f"{missing.sum():,} such rows of the {split} split); "
            f"label or remove them, or leave them out with --set data.unlabelled=drop{_other_cure(draft)}",
            {"unlabelled": "drop"},
        )
    draft.num_unlabelled += int(missing.sum())
    if not is_hidden and missing.all():
        raise DataError(f"no row of the {split} split has a label in {column!r}; name another column or split")
    draft.keep(split, np.flatnonzero(~missing))
    if is_hidden and config.test_split is not None:
        raise DataError(
            f"no row of the split {config.test_split!r} has a label, so nothing is scored; name another one"
        )
    if is_hidden:
        draft.discard(split)


def _take_as_none(draft: Draft, split: str, missing: NDArray[np.bool_]) -> None:
    if draft.kind != "multi":
        raise DataError(
            f"data.unlabelled=no_label is for texts of several labels, and these have one ({draft.kind}: "
            f"{draft.kind_reason}); choose drop or refuse"
        )
    draft.labels[split][missing] = 0
    rows = counted(
        int(missing.sum()),
        f"row of the {split} split without a label has",
        f"rows of the {split} split without a label have",
    )
    taken = f"{rows} none of them"
    draft.findings.append(note(f"{taken} (data.unlabelled=no_label)"))


def _contradictions(draft: Draft) -> list[Finding]:
    splits = list(draft.rows)
    ends = np.cumsum([len(draft.labels[split]) for split in splits])[:-1]
    labels = np.split(strata(np.concatenate([draft.labels[split] for split in splits])), ends)
    return contradictions(
        {split: draft.hashes(split) for split in splits},
        dict(zip(splits, labels, strict=True)),
        lambda split, place: where(draft.rows[split], place),
    )


def _other_cure(draft: Draft) -> str:
    return {
        "single": "; where -1 is a class, name all classes: --set 'data.label_names=[...]'",
        "multi": "; where it means that none of the labels applies, --set data.unlabelled=no_label",
    }.get(draft.kind or "", "")
