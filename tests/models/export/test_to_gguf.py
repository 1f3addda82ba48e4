"""A model is written as GGUF so that another program reads the same weights, tokens and settings out of it."""

import string

import numpy as np
import pytest
import torch
import transformers
from gguf import GGUFReader
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from ftkit.config.files import load_config
from ftkit.errors import ModelError
from ftkit.inference.opened import open_config
from ftkit.models.export.to_gguf import write_gguf
from ftkit.models.sources.gguf import as_safetensors
from ftkit.models.sources.source import Source, resolve_source
from tests.helpers import logits_of, ragged_split, save_tiny_model, tiny_config

CONFIG = load_config(settings=["task=causal-lm"])


def save_model(folder, family):
    """Save a tiny model with a byte-level BPE tokenizer, as Llama 3, Qwen and SmolLM2 have one."""
    save_tiny_model(folder, family)
    letters = ["Ġ", *string.ascii_letters][: tiny_config(family).vocab_size - 6]  # fewer tokens than rows of the table
    words = {"<unk>": 0, "<pad>": 1, "<end>": 2, "go": 3} | {one: place for place, one in enumerate(letters, start=4)}
    tokenizer = Tokenizer(models.BPE(words, [("g", "o")], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "<end>"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = "{{ messages }}"
    fast.save_pretrained(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_another_reader_finds_the_same_logits_in_the_file(family, tmp_path):
    expected = save_model(tmp_path, family)
    write_gguf(CONFIG, Source(str(tmp_path)), tmp_path / "model.gguf", "fp32", "tiny")
    # transformers takes 128 for the size of Qwen3's heads whatever a file says, so that it is told.
    found = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32, config=expected.config
    )
    split = ragged_split("causal-lm")
    assert torch.equal(logits_of(found, split), logits_of(expected, split))


@pytest.mark.parametrize(("precision", "rounding"), [("fp16", 2**-11), ("bf16", 2**-8), ("q8_0", 1 / 254)])
def test_matrices_are_rounded_as_is_asked_for_and_vectors_are_not(precision, rounding, tmp_path):
    expected = save_model(tmp_path, "llama")
    write_gguf(CONFIG, Source(str(tmp_path)), tmp_path / "model.gguf", precision, "tiny")
    found = load_gguf_checkpoint(tmp_path / "model.gguf", return_tensors=True, model_to_load=expected)["tensors"]
    for name, weight in expected.state_dict().items():
        error = (torch.as_tensor(np.array(found[name])).float() - weight).abs().max()
        # A block of 8 bits has 127 steps to its largest number, and each number is at most half a step off.
        assert error <= (rounding * 1.01 * weight.abs().max() if weight.dim() > 1 else 0), name


def test_the_tokenizer_and_its_template_are_in_the_file(tmp_path):
    save_model(tmp_path, "llama")
    write_gguf(CONFIG, Source(str(tmp_path)), tmp_path / "model.gguf", "fp32", "tiny")
    fields = {name: field.contents() for name, field in GGUFReader(tmp_path / "model.gguf").fields.items()}
    assert fields["tokenizer.ggml.tokens"][:4] == ["<unk>", "<pad>", "<end>", "go"]
    assert fields["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1]  # CONTROL three times, then NORMAL
    assert fields["tokenizer.ggml.merges"] == ["g o"]
    assert (fields["tokenizer.ggml.eos_token_id"], fields["tokenizer.ggml.padding_token_id"]) == (2, 1)
    assert fields["tokenizer.chat_template"] == "{{ messages }}"
    written = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert (
        written("go good")["input_ids"] == transformers.AutoTokenizer.from_pretrained(tmp_path)("go good")["input_ids"]
    )


def test_a_folder_with_one_gguf_file_is_that_model_and_one_of_several_is_to_be_named(tmp_path):
    save_model(tmp_path / "saved", "llama")
    folder = tmp_path / "gguf"
    folder.mkdir()
    write_gguf(CONFIG, Source(str(tmp_path / "saved")), folder / "one.gguf", "fp16", "tiny")
    config = open_config(str(folder))
    assert config.task == "causal-lm"
    assert resolve_source(config.model, config.task) == Source(str(folder), "one.gguf")
    (folder / "two.gguf").write_bytes((folder / "one.gguf").read_bytes())
    with pytest.raises(ModelError, match=r"has 2 GGUF files; name one of them: one\.gguf, two\.gguf"):
        open_config(str(folder))


def test_what_is_not_written_right_is_refused_with_the_program_that_can(tmp_path):
    save_tiny_model(tmp_path / "gpt2", "gpt2")
    with pytest.raises(ModelError, match=r"this is gpt2; run llama\.cpp's convert_hf_to_gguf\.py"):
        write_gguf(CONFIG, Source(str(tmp_path / "gpt2")), tmp_path / "x.gguf", "fp16", "tiny")
    save_tiny_model(tmp_path / "llama", "llama")  # its tokenizer has whole words
    with pytest.raises(ModelError, match=r"byte-level BPE tokenizers alone"):
        write_gguf(CONFIG, Source(str(tmp_path / "llama")), tmp_path / "x.gguf", "fp16", "tiny")
    save_model(tmp_path / "scaled", "llama")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "scaled")
    config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    config.save_pretrained(tmp_path / "scaled")
    with pytest.raises(ModelError, match=r"rotary positions of type linear"):
        write_gguf(CONFIG, Source(str(tmp_path / "scaled")), tmp_path / "x.gguf", "fp16", "tiny")


def test_a_file_that_transformers_reads_in_other_shapes_is_not_opened_with_drawn_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / "cache"))
    save_model(tmp_path / "qwen3", "qwen3")  # with heads of 16 numbers
    write_gguf(CONFIG, Source(str(tmp_path / "qwen3")), tmp_path / "qwen3.gguf", "fp32", "tiny")
    with pytest.raises(ModelError, match=r"does not read qwen3\.gguf as it was written: model\.layers\.0.*at random"):
        as_safetensors(Source(str(tmp_path), "qwen3.gguf"), lambda _: None)
