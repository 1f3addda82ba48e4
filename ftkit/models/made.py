"""Make a model of two small layers with random weights, and texts for it, to try a machine with."""

import csv
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_WORDS = ("good", "bad", "film", "plot", "dull", "fine", "the", "a", "very", "not")
_SPECIAL = {"[UNK]": 0, "[PAD]": 1, "[END]": 2}
_ROWS = 40


def make_model(folder: Path) -> Path:
    """Save a decoder of two layers, 64 wide, which is a block of 4-bit weights, with a tokenizer of ten words.

    Args:
        folder: gets the files.

    Returns:
        The folder.
    """
    words = _SPECIAL | {word: number for number, word in enumerate(_WORDS, start=len(_SPECIAL))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "eos_token": "[END]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, pad_token_id=1, max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_texts(file: Path) -> Path:
    """Write a CSV of short labelled texts in those words; returns the file."""
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(("text", "label"))
        for number in range(_ROWS):
            word, other = _WORDS[number % 6], _WORDS[(number * 5 + number // 6) % len(_WORDS)]
            writer.writerow((f"the film {word} {other} {_WORDS[number // 4]}", ("bad", "good")[number % 2]))
    return file
