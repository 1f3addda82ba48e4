"""Make small models with random weights, and texts for them, to try and to time a machine with."""

import csv
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

_WORDS = ("good", "bad", "film", "plot", "dull", "fine", "the", "a", "very", "not")
_SPECIAL = {"[UNK]": 0, "[PAD]": 1, "[END]": 2}
_ROWS = 40


def encoder(width: int, num_layers: int = 2) -> PretrainedConfig:
    """Return a BERT of usual proportions, with its dropout.

    Args:
        width: of its layers, a multiple of 64.
        num_layers: of it.
    """
    return BertConfig(
        vocab_size=8192, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=num_layers,
        num_attention_heads=width // 32, pad_token_id=1, max_position_embeddings=512,
    )  # fmt: skip


def decoder(width: int, num_layers: int = 2, vocabulary: int = 8192) -> PretrainedConfig:
    """Return a Llama of usual proportions; 64 wide, its matrices are whole blocks of 4-bit weights.

    Args:
        width: of its layers, a multiple of 64.
        num_layers: of it.
        vocabulary: its tokens.
    """
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=num_layers,
        num_attention_heads=width // 32, num_key_value_heads=1, pad_token_id=1, max_position_embeddings=512,
    )  # fmt: skip


def make_model(folder: Path, config: Any) -> Path:
    """Save a model of random weights with a tokenizer of ten words.

    Args:
        folder: gets the files.
        config: of the model.

    Returns:
        The folder.
    """
    make_tokenizer(folder)
    kind: Any = AutoModelForCausalLM if isinstance(config, LlamaConfig) else AutoModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind.from_config(config).save_pretrained(folder)
    return folder


def make_tokenizer(folder: Path) -> None:
    """Save a tokenizer of ten words into a folder."""
    words = _SPECIAL | {word: number for number, word in enumerate(_WORDS, start=len(_SPECIAL))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "eos_token": "[END]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def make_texts(file: Path) -> Path:
    """Write a CSV of short labelled texts in those words; returns the file."""
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(("text", "label"))
        for number in range(_ROWS):
            word, other = _WORDS[number % 6], _WORDS[(number * 5 + number // 6) % len(_WORDS)]
            writer.writerow((f"the film {word} {other} {_WORDS[number // 4]}", ("bad", "good")[number % 2]))
    return file
