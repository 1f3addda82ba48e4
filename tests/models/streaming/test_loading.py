"""A streamed model is whole in memory at no time: not while it is loaded, and not while it trains."""

import ctypes
import shutil

import pytest
import torch
import transformers

from ftkit.errors import ModelError
from ftkit.machine.memory import peak_resident_bytes, reset_peaks
from tests.models.streaming.conftest import engine_of, take_step

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A Llama of 16 layers, 56 MiB in bf16."""
    folder = tmp_path_factory.mktemp("large")
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=512,
        num_hidden_layers=16,
        intermediate_size=512,
        num_attention_heads=4,
        pad_token_id=1,
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    weights = {name: torch.zeros(one.shape, dtype=one.dtype) for name, one in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=weights)
    return folder


def grown_bytes(begun):
    return peak_resident_bytes() - begun


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels that CUDA loads count as this process's memory")
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_model_trains_in_less_memory_than_its_weights_take(method, large, deep):
    way = f"method.name={method}"
    take_step(engine_of(deep("llama"), way, dtype=torch.bfloat16))  # what is loaded and kept by the first step of any model
    ctypes.CDLL(None).malloc_trim(0)  # memory that is free in this process would hide what is taken
    reset_peaks(CPU)
    begun = peak_resident_bytes()
    stored = (large / "model.safetensors").stat().st_size
    engine = engine_of(
        large, way, "engine.stream_layers=disk", "method.targets=[q_proj]", "method.rank=1", dtype=torch.bfloat16
    )
    loading = grown_bytes(begun)
    take_step(engine)
    assert loading < stored / 4
    assert grown_bytes(begun) < 3 / 4 * stored


def test_files_that_are_cut_off_before_a_run_or_during_it_are_one_sentence(deep, tmp_path):
    folder = shutil.copytree(deep("llama"), tmp_path / "model")
    file = folder / "model.safetensors"
    stored = file.read_bytes()
    engine = engine_of(folder, "engine.stream_layers=disk")
    take_step(engine)
    file.write_bytes(stored[: len(stored) // 2])
    with pytest.raises(ModelError, match=r"a layer cannot be read: .* was cut off .*put them back, and go on"):
        take_step(engine)
    with pytest.raises(ModelError, match=r"cannot load weights .*its header tells of"):
        engine_of(folder, "engine.stream_layers=disk")
