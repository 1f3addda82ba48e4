"""Settle what a run starts from: settings that follow from the model as it came, and what is new in it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftkit.config.tree import ModelConfig, RunConfig
from ftkit.errors import ModelError
from ftkit.models.sources.source import Source, own_config, own_label_names


@dataclass(frozen=True)
class Start:
    """The start of a training, where it is more than the weights as they came.

    Attributes:
        head: names of the modules that are the task's own; they train whole.
        rows: numbers of the new rows of the tables of tokens.
        adapter: the folder of the adapter to go on from.
        has_new_head: whether the head is drawn, and not the one of `adapter`.
    """

    head: tuple[str, ...] = ()
    rows: range = range(0)
    adapter: Path | None = None
    has_new_head: bool = False


def settle_start(config: RunConfig, source: Source, tokenizer: Any) -> RunConfig:
    """Settle what a configuration leaves to the model.

    Args:
        config: the run.
        source: where its model is.
        tokenizer: the model's.

    Returns:
        The run, with the number of rows where `model.resize_embeddings` says that they follow the tokenizer.

    Raises:
        ModelError: the tokenizer has tokens that the model has no rows for.
    """
    return config.model_copy(update={"model": _settle_rows(config.model, source, tokenizer)})


def kept_label_names(config: RunConfig, source: Source) -> tuple[str, ...] | None:
    """Return the label names of the head that a run goes on with; None where it draws one.

    Args:
        config: the run.
        source: where its model is.
    """
    keeps_head = config.task == "sequence-classification" and not config.model.new_head
    return own_label_names(source) if keeps_head else None


def _settle_rows(config: ModelConfig, source: Source, tokenizer: Any) -> ModelConfig:
    """Refuse a tokenizer with tokens that the tables have no rows for, unless they shall grow."""
    num_rows = int(own_config(source).get_text_config().vocab_size)
    asked = max(num_rows, len(tokenizer)) if config.resize_embeddings is True else int(config.resize_embeddings)
    if beyond := _tokens_beyond(tokenizer, max(num_rows, asked)):
        raise ModelError(
            f"the tokenizer of {source.name} has {len(tokenizer)} tokens and the model's table of tokens {num_rows} "
            f"rows, none of them for {beyond[0]!r}; take the tokenizer that belongs to the model, or let the table "
            "grow with --set model.resize_embeddings=true"
        )
    return config.model_copy(update={"resize_embeddings": asked or False})


def _tokens_beyond(tokenizer: Any, num_rows: int) -> list[str]:
    """Return the tokens that have no row, but for special ones without a part to play.

    transformers adds the end-of-text token of GPT-2 to any tokenizer of its kind that names no unknown token.
    """
    added = tokenizer.added_tokens_decoder
    idle = {
        number for number, token in added.items() if token.special and token.content not in tokenizer.all_special_tokens
    }
    vocabulary = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number >= num_rows)
    return [token for number, token in vocabulary if number not in idle]
