"""A model in GGUF is dequantized once, into a folder that loads as any other."""

import threading
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType

from ftkit.config.tree import ModelConfig
from ftkit.errors import DeviceError, ModelError
from ftkit.models.sources.gguf import as_safetensors, if_converted
from ftkit.models.sources.source import Source, load_config, load_tokenizer, resolve_source
from tests.helpers import logits_of, ragged_split
from tests.made_gguf import interleaved, write_gguf


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def source_of(path):
    return resolve_source(ModelConfig(name=str(path)), "causal-lm")


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (GGMLQuantizationType.F32, torch.float32),
        (GGMLQuantizationType.F16, torch.float16),
        (GGMLQuantizationType.Q8_0, torch.bfloat16),
        (GGMLQuantizationType.Q4_1, torch.bfloat16),
    ],
)
def test_what_is_converted_has_the_weights_of_the_file_and_loads_plainly(kind, dtype, tmp_path):
    expected = write_gguf(tmp_path / "tiny.gguf", kind)
    for parameter in expected.parameters():
        parameter.data = parameter.data.to(dtype).float()
    source = as_safetensors(source_of(tmp_path / "tiny.gguf"), lambda _: None)
    found = transformers.AutoModelForCausalLM.from_pretrained(source.name)
    assert found.dtype == dtype
    assert not hasattr(found.config, "quantization_config")
    assert found.state_dict().keys() == expected.state_dict().keys()
    for name, weight in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name].float(), weight), name
    split = ragged_split("causal-lm")
    found = transformers.AutoModelForCausalLM.from_pretrained(source.name, dtype=torch.float32)
    assert torch.equal(logits_of(found, split), logits_of(expected, split))
    tokenizer = load_tokenizer(source)
    assert tokenizer.tokenize("good") == ["good"]
    assert load_config(source, None, tokenizer.pad_token_id).pad_token_id == tokenizer.pad_token_id == 2


def test_a_file_is_converted_once_whatever_its_name_and_however_many_ask_at_once(tmp_path, cache):
    write_gguf(tmp_path / "tiny.gguf", GGMLQuantizationType.Q8_0)
    (tmp_path / "copy.gguf").write_bytes((tmp_path / "tiny.gguf").read_bytes())
    said: list[str] = []
    found: list[Source] = []
    ask = [
        threading.Thread(target=lambda name=name: found.append(as_safetensors(source_of(tmp_path / name), said.append)))
        for name in ("tiny.gguf", "copy.gguf", "tiny.gguf")
    ]
    for one in ask:
        one.start()
    for one in ask:
        one.join()
    assert len({source.name for source in found}) == 1
    assert len([text for text in said if text.startswith("converting")]) == 1
    assert len([path for path in (cache / "gguf").iterdir() if path.is_dir()]) == 1


def test_what_is_not_converted_yet_stays_where_it_is(tmp_path):
    write_gguf(tmp_path / "tiny.gguf", GGMLQuantizationType.F32)
    source = source_of(tmp_path / "tiny.gguf")
    assert if_converted(source) == source
    assert if_converted(source) != as_safetensors(source, lambda _: None) == if_converted(source)


@pytest.mark.parametrize("kept", [0, 3, 100, 3000, -100])
def test_a_truncated_file_is_one_sentence_and_leaves_nothing(kept, tmp_path, cache):
    write_gguf(tmp_path / "whole.gguf", GGMLQuantizationType.Q8_0)
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "whole.gguf").read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"cut\.gguf") as caught:
        as_safetensors(source_of(tmp_path / "cut.gguf"), lambda _: None)
    assert "\n" not in str(caught.value)
    assert not [path for path in cache.rglob("*") if not path.name.endswith(".lock") and path.name != "gguf"]


def test_a_cache_that_cannot_be_written_is_one_sentence_with_the_cure(tmp_path, monkeypatch):
    write_gguf(tmp_path / "tiny.gguf", GGMLQuantizationType.Q8_0)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(DeviceError, match="set FTKIT_CACHE"):
        as_safetensors(source_of(tmp_path / "tiny.gguf"), lambda _: None)


def test_the_interleaving_undoes_what_transformers_does():
    from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

    weight = np.arange(64 * 4.0, dtype=np.float32).reshape(64, 4)
    undone = LlamaTensorProcessor()._reverse_permute_weights(interleaved(weight, 2), 2, 2)
    assert np.array_equal(undone, weight)


@pytest.mark.slow
def test_the_embedded_language_model_knows_its_english(tmp_path):
    source = as_safetensors(resolve_source(ModelConfig(), "causal-lm"), lambda _: None)
    tokenizer = load_tokenizer(source)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(source.name)
    asked = tokenizer("The capital of France is", return_tensors="pt")
    said = tokenizer.decode(model.generate(**asked, max_new_tokens=2, do_sample=False)[0])
    assert said.startswith("The capital of France is Paris")
