"""What is known of a trunk by its files: found again where nothing has changed, and never where something has."""

import json
from dataclasses import replace

import pytest
import torch

from ftkit.config import files as config_io
from ftkit.data.batching import Padding
from ftkit.engine.resolve import Devices, resolve
from ftkit.machine.process import ProcessContext
from ftkit.models.sources.source import load_config, resolve_source
from ftkit.models.trunk import known
from ftkit.models.trunk.cut import Cut
from ftkit.training.trunk.warm import Key
from tests.helpers import LABELS, prepared, ragged_split, save_tiny_model

SETTINGS = ["method.name=lora", "method.top_layers=1", "model.precision=fp32"]
CUT = Cut(
    "base_model.model.bert.encoder.layer.1", ("a", "b"), (("c", None), ("d", 2)), torch.bfloat16, 32, False, False
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path):
    return save_tiny_model(tmp_path / "bert", "bert")


def key(model, settings=(), split=None):
    config = config_io.load_config(settings=[f"model.name={model}", *SETTINGS, *settings])
    source, process = resolve_source(config.model, config.task), ProcessContext()
    architecture = load_config(source, LABELS.names, 1, "single")
    data = prepared(split or ragged_split("sequence-classification", 8), config.task)
    return Key.of(resolve(config, Devices.of(process)), process, source, architecture, data, 100).value


def with_other_weights(model):
    content = bytearray((model / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (model / "model.safetensors").write_bytes(content)


def with_other_activation(model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))


def with_another_token(split):
    tokens = split.tokens.copy()
    tokens[3] = 5 if tokens[3] != 5 else 6
    return replace(split, tokens=tokens)


def cut_shorter(split):
    return replace(split, tokens=split.tokens[:-1], offsets=[*split.offsets[:-1], split.offsets[-1] - 1])


@pytest.mark.parametrize("setting", ["training.seed=5", "method.rank=4", "optimizer.learning_rate=1e-3"])
def test_what_decides_nothing_of_the_trunk_leaves_it_known(setting, model):
    assert key(model, [setting]) == key(model)


@pytest.mark.parametrize(
    "setting",
    ["cache.dtype=bf16", "model.precision=bf16", "method.top_layers=2", "model.attention=eager", "model.padding=left"],
)
def test_another_setting_of_the_trunk_is_not_known(setting, model):
    assert key(model, [setting]) != key(model)


@pytest.mark.parametrize("change", [with_other_weights, with_other_activation])
def test_other_files_of_the_model_are_not_known_even_of_the_same_size_and_time(change, model):
    before = key(model)
    change(model)
    assert key(model) != before


@pytest.mark.parametrize("change", [with_another_token, cut_shorter])
def test_other_tokens_of_text_tokenizer_or_length_are_not_known(change, model):
    split = ragged_split("sequence-classification", 8)
    other = change(split)
    other = replace(other, offsets=torch.tensor(other.offsets).numpy())
    assert key(model, split=other) != key(model, split=split)


def test_a_run_that_trains_in_all_layers_asks_for_nothing(model):
    config = config_io.load_config(settings=[f"model.name={model}", "method.name=lora"])
    process, source = ProcessContext(), resolve_source(config.model, config.task)
    data = prepared(ragged_split("sequence-classification", 8), config.task)
    run = resolve(config, Devices.of(process))
    assert Key.of(run, process, source, load_config(source, LABELS.names, 1, "single"), data, 100).value is None


def test_what_is_known_is_read_as_it_was_written():
    found = known.Known(CUT, Padding(3, "left"), True, ("bert.encoder.layer.0",), {"train": "abc", "test": "def"})
    known.keep("k" * 64, found)
    assert known.look_up("k" * 64) == found
    assert known.look_up("j" * 64) is None
