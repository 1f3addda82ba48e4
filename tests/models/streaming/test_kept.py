"""Layers in 4 bits are packed once, from the files of the model, and found again by what these hold."""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from ftkit.machine.disk import cache_folder
from ftkit.models.activations.recompute import set_level
from ftkit.models.bnb import hidden_tensors
from ftkit.models.build import count_parameters
from ftkit.models.foreign import checkpointing_layers, is_packed
from ftkit.models.streaming.host import HostLayers
from ftkit.models.streaming.stream import stream_of, values_of
from ftkit.models.streaming.window import StaleWeightsError
from tests.families import COMMON, GROUPED
from tests.models.streaming.conftest import deep_model, engine_of, from_ram, take_step

QLORA, DISK = "method.name=qlora", "engine.stream_layers=disk"


@pytest.fixture(scope="module")
def resident(deep):
    return engine_of(deep("llama"), QLORA)


@pytest.fixture
def streamed(deep):
    return engine_of(deep("llama"), QLORA, DISK)


def as_bytes(tensor):
    """Return the bytes of a tensor: packed weights may look like NaN, which equals nothing."""
    return tensor.reshape(-1).view(torch.uint8).cpu()


def packed_files():
    return sorted((cache_folder() / "packed").glob("??/*"))


def test_values_and_constants_are_those_of_the_resident_model(resident, streamed):
    ours, theirs = (dict(one.model.named_parameters()) for one in (streamed, resident))
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        wanted, found = values_of(weight), values_of(ours[name])
        assert found.keys() == wanted.keys()
        if not weight.requires_grad:
            assert all(map(torch.equal, map(as_bytes, found.values()), map(as_bytes, wanted.values())))
    assert len(hidden_tensors(resident.model)) == len(hidden_tensors(streamed.model))
    assert count_parameters(streamed.model) == count_parameters(resident.model)


def test_layers_are_packed_once_and_anew_where_a_weight_has_changed(streamed, deep, tmp_path):
    del streamed
    first = packed_files()
    assert len(first) == 6
    engine_of(deep("llama"), QLORA, DISK)
    assert packed_files() == first

    folder = deep_model(tmp_path / "changed", "llama")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.2.mlp.up_proj.weight"][0, 0] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    engine_of(folder, QLORA, DISK)
    assert len(packed_files()) == 7


def test_a_damaged_layer_is_packed_again(streamed, deep):
    del streamed
    damaged = packed_files()[3]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x01")
    engine_of(deep("llama"), QLORA, DISK)
    content = damaged.read_bytes()
    assert content[-1:] != b"\x01"


def test_layers_out_of_the_hosts_memory_compute_the_same(resident, deep):
    with from_ram():
        streamed = engine_of(deep("llama"), QLORA, DISK)
    assert isinstance(stream_of(streamed.model).source, HostLayers)
    wanted, found = take_step(resident), take_step(streamed)
    assert found.loss == wanted.loss
    assert all(torch.equal(found.gradients[name], one) for name, one in wanted.gradients.items())


def test_a_product_of_bitsandbytes_that_keeps_its_weight_is_found_before_its_buffer_is_used_again(streamed):
    # MatMul4Bit keeps the packed weight on its context: no checkpoint and no hook takes it away.
    for module in streamed.model.modules():
        if is_packed(getattr(module, "weight", torch.empty(0))):
            vars(module).pop("forward")
    for layer in checkpointing_layers(streamed.model):
        set_level(layer, "none")
    with pytest.raises(StaleWeightsError, match="keeps its weight for the backward"):
        take_step(streamed)


def test_experts_in_4_bits_are_streamed_to_the_bit(tmp_path):
    sizes = GROUPED | {"num_local_experts": 4, "num_hidden_layers": 3, "attention_dropout": 0.0}
    config = transformers.AutoConfig.for_model("llama4_text", **COMMON | sizes, intermediate_size_mlp=64)
    torch.manual_seed(7)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    wanted, found = (take_step(engine_of(tmp_path, QLORA, *more)) for more in ((), (DISK,)))
    assert found.loss == wanted.loss
    assert all(torch.equal(found.gradients[name], one) for name, one in wanted.gradients.items())
