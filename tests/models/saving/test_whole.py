"""A model is written a tensor at a time to the files that transformers would have made of all of it at once."""

from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers.core_model_loading import Chunk, WeightConverter

from ftkit.models.partitions import own_tensors
from ftkit.models.saving.whole import save_whole
from tests.helpers import save_tiny_model


def loaded(folder, family):
    is_bert = family == "bert"
    kind: Any = transformers.AutoModelForSequenceClassification if is_bert else transformers.AutoModelForCausalLM
    return kind.from_pretrained(save_tiny_model(folder / "base", family)).eval()


def stored(folder):
    return {name: one for path in folder.glob("*.safetensors") for name, one in load_file(path).items()}


def same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], one) and found[name].dtype == one.dtype for name, one in expected.items())


@pytest.mark.parametrize("family", ["gpt2", "bert", "llama", "mixtral"])
def test_the_files_have_the_tensors_of_those_that_transformers_writes(family, tmp_path):
    model = loaded(tmp_path, family)
    model.save_pretrained(tmp_path / "theirs")

    save_whole(model, tmp_path / "ours", iter(own_tensors(model).items()), torch.float32)

    same(stored(tmp_path / "ours"), stored(tmp_path / "theirs"))
    assert [path.name for path in (tmp_path / "ours").glob("*.safetensors")] == ["model.safetensors"]
    for name in ("config.json", "generation_config.json"):
        ours, theirs = tmp_path / "ours" / name, tmp_path / "theirs" / name
        assert ours.exists() == theirs.exists()
        assert not ours.exists() or ours.read_text() == theirs.read_text()


def test_experts_that_lie_in_several_files_are_loaded_as_they_were(tmp_path):
    model = loaded(tmp_path, "mixtral")

    save_whole(model, tmp_path / "ours", iter(own_tensors(model).items()), torch.float32, max_shard_bytes=20_000)

    assert len(list((tmp_path / "ours").glob("model-*-of-*.safetensors"))) > 2
    again = type(model).from_pretrained(tmp_path / "ours")
    same(again.state_dict(), model.state_dict())


def test_tensors_that_a_file_has_as_one_are_joined_when_the_last_of_a_layer_has_come(tmp_path):
    model = loaded(tmp_path, "llama")
    ours = [f"self_attn.{one}_proj.weight" for one in "qkv"]
    model._weight_conversions = [WeightConverter("self_attn.qkv.weight", ours, operations=[Chunk(dim=0)])]
    given: list[str] = []

    def weights():
        for name, one in own_tensors(model).items():
            given.append(name)
            yield name, one

    save_whole(model, tmp_path / "ours", weights(), torch.float32)

    found, state = stored(tmp_path / "ours"), model.state_dict()
    for layer in range(model.config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        expected = torch.cat([state[prefix + one] for one in ours])
        assert torch.equal(found[f"{prefix}self_attn.qkv.weight"], expected)
    assert set(given) == set(own_tensors(model))
    assert not any("q_proj" in name for name in found)
