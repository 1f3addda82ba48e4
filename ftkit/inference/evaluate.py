"""Score a trained model on data: that of its own run, or another file with the same labels."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ftkit.config.tree import DataConfig, Task
from ftkit.data.arrays import PreparedData, TokenSplit
from ftkit.data.batching import check_cut
from ftkit.data.prepare import prepare_data
from ftkit.data.standard import AS_THEY_ARE
from ftkit.errors import ConfigError, DataError
from ftkit.inference.opened import Opened, find_settings
from ftkit.machine.disk import check_writable, replace_text
from ftkit.machine.kept_arrays import kept_tokens
from ftkit.models.build import check_positions
from ftkit.records.answers import Answers, as_lines
from ftkit.records.schema import EvaluationLine
from ftkit.training.answers import answers_to
from ftkit.training.checks.loss_form import settle_loss
from ftkit.training.checks.padding import settle_padding
from ftkit.training.evaluate import evaluate


@dataclass(frozen=True)
class Scored:
    """The scores of a trained model on a split.

    Attributes:
        line: the figures, as training records them.
        answers: what each example was answered; None of a language model and of the training split.
    """

    line: EvaluationLine
    answers: Answers | None


def score(opened: Opened, dataset: str | None, split: str | None, note: Callable[[str], None]) -> Scored:
    """Score a trained model.

    Args:
        opened: the model.
        dataset: other data; None: that of its run, split as it was.
        split: `train`, `validation` or `test`; None: of its run the test split, of a file all of it.
        note: told what the data's report says.

    Returns:
        The scores, and the answers.

    Raises:
        DataError: the data cannot be used, or has other labels than the model.
    """
    data = _prepared(opened, dataset)
    for told in data.report.lines():
        note(told)
    name = split or ("test" if data.test is not None else "train" if dataset else "validation")
    chosen = data.named.get(name)
    if chosen is None:
        raise DataError(f"the data has no {name} split; choose --split {' or '.join(data.named)}")
    check_positions(opened.reader.model, int(chosen.lengths.max()))
    run, padding = settle_padding(opened.run, opened.reader, [chosen], opened.tokenizer, note)
    settle_loss(opened.reader, chosen, padding, note)
    check_cut(run.config.batch, int(chosen.lengths.max()))
    scores, logits = evaluate(opened.reader, chosen, run.config.batch, padding, opened.labels)
    line = EvaluationLine(step=0, epoch=0.0, split=name, **scores.model_dump())
    examples, labels = data.examples.get(name), opened.labels
    if logits is None or labels is None or examples is None:
        return Scored(line, None)
    return Scored(line, answers_to(examples, chosen.labels, labels, logits, line))


def _prepared(opened: Opened, dataset: str | None) -> PreparedData:
    """Return the data as the model learned its labels: numbers are standardised by its own mean and deviation."""
    config, labels = opened.config, opened.labels
    names = labels.names if labels else None
    store = kept_tokens(config.cache)
    if dataset is None:
        if find_settings(opened.name) is None and "dataset" not in config.data.model_fields_set:
            raise ConfigError(f"nothing says which data {opened.name} was trained on; name some with --dataset")
        return prepare_data(config.data, config.task, opened.tokenizer, config.data_seed, names, store=store)
    section = _all_of(config.data, dataset, opened)
    seed = config.data_seed
    data = prepare_data(section, config.task, opened.tokenizer, seed, names, may_lack_labels=True, store=store)
    if labels is None or labels.standard == AS_THEY_ARE:
        return data
    standard = labels.standard

    def learned(split: TokenSplit | None) -> TokenSplit | None:
        return None if split is None else replace(split, labels=standard.standardized(split.labels))

    train = replace(data.train, labels=standard.standardized(data.train.labels))
    return replace(data, train=train, validation=learned(data.validation), test=learned(data.test))


def _all_of(section: DataConfig, dataset: str, opened: Opened) -> DataConfig:
    """Return the section for other data, of which no row is split off or left out."""
    kind = opened.labels.kind if opened.labels else section.label_kind
    changes = {"dataset": dataset, "validation_share": 0.0, "test_share": 0.0, "group_column": None}
    changes |= {"max_train_samples": None, "max_eval_samples": None, "standardize_targets": False, "label_kind": kind}
    return section.model_copy(update=changes)


def check_output(path: Path, task: Task, dataset: str | None, split: str | None) -> None:
    """Refuse to keep answers before anything is scored.

    Args:
        path: the file for `keep`.
        task: of the model.
        dataset: as `score`.
        split: as `score`.

    Raises:
        ConfigError: the file cannot be written, or there will be no answers to keep.
    """
    if task == "causal-lm":
        raise ConfigError("--output keeps the answers of a classifier, and this is a language model; leave it out")
    if dataset is None and split == "train":
        raise ConfigError("--output keeps no answers to the texts that trained; name their file with --dataset")
    with _explained(path):
        check_writable(path.parent)


def keep(scored: Scored, path: Path) -> None:
    """Write the answers into a file, as runs keep theirs.

    Args:
        scored: what `score` returned.
        path: the file, of which `check_output` found nothing wrong.

    Raises:
        ConfigError: the file cannot be written.
    """
    assert scored.answers is not None
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, as_lines(scored.answers))


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; name another file with --output") from None
