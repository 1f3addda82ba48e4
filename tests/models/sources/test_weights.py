"""Only a head may be new: all else that the weights lack is refused by its name, and what is new is said."""

import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from ftkit.config.files import load_config
from ftkit.errors import ConfigError, ModelError
from ftkit.models.build import build_empty_model, build_model, check_tokens, trainable_parameters
from ftkit.models.sources import source as ftkit_source
from ftkit.models.sources.source import Source
from ftkit.models.sources.start import settle_start
from tests.helpers import VOCABULARY, save_tiny_model, tiny_config


def built(folder, *settings, labels=("a", "b", "c"), empty=False):
    config = load_config(settings=[f"model.name={folder}", "method.name=full", *settings])
    source = ftkit_source.resolve_source(config.model, config.task)
    config = settle_start(config, source, ftkit_source.load_tokenizer(source))
    labels = labels if config.task == "sequence-classification" else None
    architecture = ftkit_source.load_config(source, labels, pad_token_id=1)
    notes: list[str] = []
    if empty:
        return build_empty_model(config, architecture, torch.float32), notes
    return build_model(config, source, architecture, torch.float32, notes.append), notes


def change(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return folder


def save_classifier(folder, family="bert", labels=("x", "y", "z")):
    save_tiny_model(folder, family)
    config = tiny_config(family)
    config.id2label = dict(enumerate(labels))
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("family", "fields", "sentence"),
    [
        ("bert", {"vocab_size": VOCABULARY + 4}, r"word_embeddings.weight is \[64, 64\] in the weights and \[68, 64\]"),
        ("bert", {"num_hidden_layers": 3}, r"layer.2.attention.self.query.weight is missing.* and 13 more"),
        ("bert", {"intermediate_size": 64}, r"layer.0.intermediate.dense.weight is \[128, 64\].* and \[64, 64\]"),
        ("bert", {"num_hidden_layers": 1}, r"hold layers that its config.json does not ask for \(.*layer.1"),
        ("gpt2", {"n_layer": 3}, r"h.2.ln_1.weight is missing"),
        ("gpt2", {"n_layer": 1}, r"hold layers that its config.json does not ask for \(.*h.1"),
        ("llama", {"num_hidden_layers": 1}, r"hold layers that its config.json does not ask for \(.*layers.1"),
        ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 2}, r"k_proj.weight is \[32, 64\]"),
    ],
)
@pytest.mark.parametrize("method", ["full", "lora", "feature-extraction"])
def test_a_trunk_that_is_not_whole_is_refused_by_its_tensors(family, fields, sentence, method, tmp_path):
    folder = change(save_tiny_model(tmp_path, family), **fields)
    with pytest.raises(ModelError, match=sentence):
        built(folder, f"method.name={method}")


def test_a_language_model_without_its_output_layer_is_refused(tmp_path):
    save_tiny_model(tmp_path, "llama")
    transformers.AutoModel.from_config(tiny_config("llama")).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"lm_head.weight is missing; it is not a model for causal-lm"):
        built(tmp_path, "task=causal-lm")


def test_a_new_head_is_said(tmp_path):
    assert built(save_tiny_model(tmp_path, "bert"))[1] == ["new, drawn by the seed: classifier"]


def test_an_encoder_without_a_pooler_gets_a_new_one_that_trains(tmp_path):
    """As masked language models are saved."""
    save_tiny_model(tmp_path, "bert")
    transformers.BertForMaskedLM(tiny_config("bert")).save_pretrained(tmp_path)
    model, notes = built(tmp_path, "method.name=lora")
    assert notes[0] == "new, drawn by the seed: bert.pooler, classifier"
    assert notes[1:] == [
        "weights that this model has no place for, and does not use: cls.predictions.bias, "
        "cls.predictions.transform.LayerNorm.bias, cls.predictions.transform.LayerNorm.weight, and 2 more"
    ]
    assert any("pooler" in name for name in trainable_parameters(model))


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
@pytest.mark.parametrize("labels", [("a", "b"), ("a", "b", "c")])
def test_a_trained_head_is_drawn_anew_on_request_whatever_its_size(family, labels, tmp_path):
    trained = save_classifier(tmp_path, family)
    model, notes = built(tmp_path, "model.new_head=true", labels=labels)
    head: Any = {"bert": "classifier", "roberta": "classifier", "gpt2": "score"}[family]
    assert len(notes) == 1
    assert notes[0].endswith(head)
    assert model.num_labels == len(labels)
    old, new = trained.state_dict(), model.state_dict()
    weights = [name for name in old if name.startswith(head) and name.endswith("weight")]
    assert weights
    assert not any(old[name].shape == new[name].shape and torch.equal(old[name], new[name]) for name in weights)
    assert all(torch.equal(old[name], new[name]) for name in old if not name.startswith(head))


def test_a_trained_head_of_another_size_is_refused_with_the_cure(tmp_path):
    save_classifier(tmp_path)
    with pytest.raises(ModelError, match=r"classifier.weight is \[3, 64\].* and \[2, 64\].*model.new_head=true"):
        built(tmp_path, labels=("a", "b"))


def test_a_language_model_has_no_head_to_draw(tmp_path):
    with pytest.raises(ConfigError, match=r"model\.new_head=true draws the head of a classifier"):
        built(save_tiny_model(tmp_path, "llama"), "task=causal-lm", "model.new_head=true")


def add_tokens(folder, number):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    size = VOCABULARY - len(tokenizer) + number
    tokenizer.add_tokens([f"<new{one}>" for one in range(size)])
    tokenizer.save_pretrained(folder)
    assert len(tokenizer) == VOCABULARY + number
    return folder


def test_a_tokenizer_larger_than_the_table_is_refused_with_the_cure(tmp_path):
    folder = add_tokens(save_tiny_model(tmp_path, "llama"), 3)
    for settings in ([], ["model.resize_embeddings=66"]):
        with pytest.raises(
            ModelError, match=r"has 67 tokens .* 64 rows, none of them for '<new\d+>'; .*model.resize_embeddings=true"
        ):
            built(folder, "task=causal-lm", *settings)


def test_a_special_token_that_plays_no_part_needs_no_row_until_a_text_has_it(tmp_path):
    folder = save_tiny_model(tmp_path, "llama")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    words = [transformers.AddedToken(f"<idle{one}>", special=True) for one in range(VOCABULARY - len(tokenizer) + 1)]
    tokenizer.add_tokens(words)
    tokenizer.save_pretrained(folder)
    model, _ = built(folder, "task=causal-lm", "method.name=lora")
    check_tokens(model, VOCABULARY - 1)
    with pytest.raises(ConfigError, match=r"token number 64, .* 64 rows; .*model.resize_embeddings=true"):
        check_tokens(model, tokenizer(f"<idle{len(words) - 1}>").input_ids[0])


@pytest.mark.parametrize(("family", "task"), [("llama", "causal-lm"), ("gpt2", "causal-lm"), ("bert", None)])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_the_tables_grow_on_request_and_their_new_rows_train(family, task, method, tmp_path):
    folder = add_tokens(save_tiny_model(tmp_path, family), 3)
    settings = [f"method.name={method}", "model.resize_embeddings=true", *([f"task={task}"] if task else [])]
    model, notes = built(folder, *settings)
    empty, _ = built(folder, *settings, empty=True)
    assert "new: rows 64 to 66 of the table of tokens; they train" in notes
    trained = trainable_parameters(model)
    assert {name: value.shape for name, value in trained.items()} == {
        name: value.shape for name, value in trainable_parameters(empty).items()
    }
    if method != "full":
        rows = [value.shape for name, value in trained.items() if "trainable_tokens" in name]
        assert rows == [(3, 64)] * (2 if family == "llama" else 1)  # its two tables are not tied
    old = transformers.AutoModel.from_pretrained(folder).get_input_embeddings().weight
    table = next(value for name, value in model.state_dict().items() if value.shape == (67, 64))
    assert torch.equal(table[:64], old)


def test_a_model_without_weights_leaves_the_configuration_that_weights_are_loaded_for(tmp_path):
    folder = add_tokens(save_tiny_model(tmp_path, "bert"), 3)
    config = load_config(settings=[f"model.name={folder}", "method.name=full", "model.resize_embeddings=67"])
    source = ftkit_source.resolve_source(config.model, config.task)
    architecture = ftkit_source.load_config(source, ("a", "b"), pad_token_id=1)
    build_empty_model(config, architecture, torch.float32)  # as a plan does before
    model = build_model(config, source, architecture, torch.float32, lambda _: None)
    assert model.get_input_embeddings().num_embeddings == 67


def test_weights_that_the_model_has_no_place_for_are_named(tmp_path):
    file = save_tiny_model(tmp_path, "bert") / "model.safetensors"
    save_file(load_file(file) | {"encoder.layer.0.adapter.weight": torch.ones(2)}, file, {"format": "pt"})
    assert "does not use: encoder.layer.0.adapter.weight" in built(tmp_path)[1][-1]


def test_a_table_that_is_large_enough_stays_as_it_is(tmp_path):
    model, notes = built(save_tiny_model(tmp_path, "llama"), "task=causal-lm", "model.resize_embeddings=true")
    assert model.get_input_embeddings().num_embeddings == VOCABULARY
    assert notes == []


def test_feature_extraction_trains_no_rows(tmp_path):
    folder = add_tokens(save_tiny_model(tmp_path, "bert"), 3)
    with pytest.raises(ModelError, match="rows that feature-extraction does not train; choose method lora or full"):
        built(folder, "method.name=feature-extraction", "model.resize_embeddings=true")


def test_a_disk_that_is_full_is_not_told_as_a_model_that_cannot_be_loaded():
    with pytest.raises(OSError, match="No space left"), ftkit_source.explained_loading(Source("m"), "weights"):
        Path("/dev/full").write_bytes(b"merged")
    with pytest.raises(ModelError, match="cannot load weights"), ftkit_source.explained_loading(Source("m"), "weights"):
        Path("nowhere/at/all").read_bytes()


def test_a_new_head_is_told_once_and_not_warned_of(tmp_path, monkeypatch):
    monkeypatch.delenv("FTKIT_VERBOSE", raising=False)
    save_tiny_model(tmp_path, "bert")
    told = io.StringIO()
    handler = logging.StreamHandler(told)
    transformers.utils.logging.add_handler(handler)
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_warning()  # as it is in a notebook
    try:
        _, notes = built(tmp_path)
        assert transformers.utils.logging.get_verbosity() == logging.WARNING, "it is left as it was"
    finally:
        transformers.utils.logging.set_verbosity(before)
        transformers.utils.logging.remove_handler(handler)
    assert notes == ["new, drawn by the seed: classifier"]
    assert told.getvalue() == ""
