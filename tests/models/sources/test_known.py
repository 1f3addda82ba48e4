"""The table of known models: short names, the hub's names, and who shares whose shapes."""

import pytest
from transformers import AutoConfig

from ftkit.config.tree import ModelConfig
from ftkit.errors import ModelError
from ftkit.models.sources.known import find_row, hub_name, shapes, table_names, unpacked_name
from ftkit.models.sources.source import Source, own_config, resolve_source


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("google-bert/bert-base-uncased", "bert-base"),
        ("Llama-2-7b-hf", "llama-2-7b"),
        ("gpt2-xl", "gpt2-xl"),
        ("llama-3.1-8b", "llama-3.1-8b"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b"),
        ("mistralai/Mistral-7B-v0.3", "mistral-7b-v0.3"),
        ("mistralai/Mistral-7B-Instruct-v0.2", "mistral-7b-v0.2"),
        ("tinyllama", "tinyllama-1.1b"),
        ("unsloth/llama-3-8b-bnb-4bit", "llama-3-8b"),
        ("unsloth/Meta-Llama-3.1-8B-Instruct-unsloth-bnb-4bit", "llama-3.1-8b"),
        ("unsloth/mistral-7b-instruct-v0.3-bnb-4bit", "mistral-7b-v0.3"),
    ],
)
def test_a_model_what_was_trained_from_it_and_copies_in_4_bits_share_a_row(name, row):
    assert find_row(name) == row
    assert find_row(f"{name}-of-somebody") is None


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("qwen2.5-7b", "Qwen/Qwen2.5-7B"),
        ("qwen2.5-7b-instruct", "Qwen/Qwen2.5-7B-Instruct"),
        ("llama-3-8b-instruct", "meta-llama/Meta-Llama-3-8B-Instruct"),
        ("tinyllama", "TinyLlama/TinyLlama-1.1B-Chat-v1.0"),
        ("somebody/Qwen2.5-7B", "somebody/Qwen2.5-7B"),
        ("nobody-knows", "nobody-knows"),
    ],
)
def test_training_loads_a_short_name_from_its_own_place_on_the_hub_and_other_names_as_they_are(name, full):
    assert hub_name(name) == full
    assert resolve_source(ModelConfig(name=name), "causal-lm").name == full


def test_every_row_is_an_architecture_that_transformers_knows():
    for row in table_names():
        fields = shapes(row)
        kind = fields.pop("model_type")
        assert AutoConfig.for_model(kind, **fields).model_type == kind


def test_a_copy_in_4_bits_is_refused_with_the_model_that_it_was_made_from(tmp_path):
    folder = tmp_path / "llama-3-8b-bnb-4bit"
    folder.mkdir()
    packed = AutoConfig.for_model("llama", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    packed.save_pretrained(folder)

    with pytest.raises(ModelError, match=r"packed already.*--model meta-llama/Meta-Llama-3-8B, with --method qlora"):
        own_config(Source(str(folder)))
    assert unpacked_name("unsloth/other-1b-bnb-4bit") == "unsloth/other-1b"


def test_a_hub_that_is_out_of_reach_is_told_in_a_line(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    with pytest.raises(ModelError, match=r"cannot load a configuration from 'nobody/nothing': it is not in the hub's"):
        own_config(Source("nobody/nothing"))
