"""Answer texts, a thousand at a time, in the cut of training: the same texts get the very scores of training."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ftkit.data.arrays import TokenSplit
from ftkit.data.asked import Asked, as_tokens
from ftkit.data.batching import check_cut
from ftkit.errors import ConfigError
from ftkit.inference.generate import Sampling, write
from ftkit.inference.opened import Opened
from ftkit.models.build import check_positions
from ftkit.training.answers import probabilities_of
from ftkit.training.checks.padding import settle_padding
from ftkit.training.evaluate import SORTED_TOGETHER, evaluate
from ftkit.training.results.metrics import answers_of
from ftkit.units import counted


@dataclass(frozen=True)
class Answered:
    """The answers to some texts, in their order.

    Attributes:
        texts: each one, or the two of a pair.
        places: where each came from.
        answers: the names of its labels, one name of its class, or its number.
        probabilities: float64 [N, C]; None of numbers.
    """

    texts: list[tuple[str, ...]]
    places: list[str]
    answers: list[Any]
    probabilities: NDArray[np.float64] | None


def predict(opened: Opened, asked: Asked, note: Callable[[str], None]) -> Iterator[Answered]:
    """Answer texts.

    Args:
        opened: a classifier, or a model of numbers.
        asked: N texts.
        note: told of texts that were cut, and of what is unusual.

    Yields:
        The answers, a part at a time, in the order of the texts.

    Raises:
        ConfigError: the model is a language model.
    """
    if opened.labels is None:
        raise ConfigError(f"{opened.name} is a language model, which writes; it does not answer with labels")
    split, num_cut = as_tokens(asked, opened.tokenizer, opened.config.data, opened.labels)
    if num_cut:
        limit = opened.config.data.max_length
        cut = f"{num_cut:,} of {counted(split.num_texts, 'text')} {'is' if num_cut == 1 else 'are'} cut"
        note(f"warning: {cut} at data.max_length={limit}, as in training")
    longest = int(split.lengths.max())
    check_positions(opened.reader.model, longest)
    run, padding = settle_padding(opened.run, opened.reader, [split], opened.tokenizer, note)
    check_cut(run.config.batch, longest)
    for start in range(0, split.num_texts, SORTED_TOGETHER):
        part = _part(split, start, min(start + SORTED_TOGETHER, split.num_texts))
        _, logits = evaluate(opened.reader, part, run.config.batch, padding, opened.labels)
        assert logits is not None
        places = range(start, start + part.num_texts)
        yield Answered(
            [asked.examples.texts(place) for place in places],
            [asked.examples.where(place) for place in places],
            _named(opened, answers_of(logits, opened.labels)),
            probabilities_of(logits, opened.labels),
        )


def _part(split: TokenSplit, start: int, stop: int) -> TokenSplit:
    """Return the texts from `start` to before `stop`."""
    windows = None if split.windows is None else split.windows[start : stop + 1]
    begin, end = (start, stop) if windows is None else (int(windows[0]), int(windows[-1]))
    first, last = split.offsets[begin], split.offsets[end]
    segments = None if split.segments is None else split.segments[first:last]
    return replace(
        split,
        tokens=split.tokens[first:last],
        offsets=split.offsets[begin : end + 1] - first,
        labels=split.labels[start:stop],
        segments=segments,
        windows=None if windows is None else windows - begin,
    )


def _named(opened: Opened, answers: NDArray[Any]) -> list[Any]:
    assert opened.labels is not None
    names = opened.labels.names
    if opened.labels.kind == "regression":
        return list(answers.tolist())
    if opened.labels.kind == "multi":
        return [[name for name, is_so in zip(names, row, strict=True) if is_so] for row in answers.tolist()]
    return [names[number] for number in answers.tolist()]


def written(opened: Opened, asked: Asked, sampling: Sampling, note: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Let a language model write behind each text.

    Args:
        opened: the model.
        asked: N prompts.
        sampling: how the next token is chosen.
        note: told of answers that were cut.

    Yields:
        Where the prompt stood, the prompt, and what was written.

    Raises:
        ConfigError: a prompt, which is named, leaves the model no position to write at.
    """
    num_cut = 0
    for place in range(len(asked.examples)):
        (prompt, *_) = asked.examples.texts(place)
        where = asked.examples.where(place)
        try:
            answer = write(opened, [{"role": "user", "content": prompt}], sampling)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        num_cut += answer.cut_at is not None
        yield {"row": where, "prompt": prompt, "answer": answer.text}
    if num_cut:
        cut = f"{num_cut:,} of {counted(len(asked.examples), 'answer')} {'is' if num_cut == 1 else 'are'} cut"
        note(f"warning: {cut}, at --max-new-tokens {sampling.max_new_tokens} or where the model's positions end")
