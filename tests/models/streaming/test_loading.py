"""A streamed model is whole in memory at no time: not while it is loaded, and not while it trains."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
import transformers

from ftkit.errors import ModelError
from ftkit.machine import heap
from ftkit.machine.memory import peak_resident_bytes, reset_peaks
from tests.models.streaming.conftest import engine_of, take_step

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A Llama of 16 layers, 112 MiB in fp32; in bf16 some processors compile kernels, whose memory would count."""
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
        model = transformers.AutoModelForCausalLM.from_config(config)
    weights = {name: torch.zeros(one.shape, dtype=one.dtype) for name, one in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=weights)
    return folder


def stream(method, small, large):
    """Load and train a streamed model, and write by how many bytes each has let this process grow."""
    way = f"method.name={method}"
    take_step(engine_of(small, way))  # what is loaded and kept by the first step of any model
    heap.trim()  # memory that is free in this process would hide what is taken
    reset_peaks(CPU)
    begun = peak_resident_bytes()
    engine = engine_of(large, way, "engine.stream_layers=disk", "method.targets=[q_proj]", "method.rank=1")
    loaded = peak_resident_bytes()
    take_step(engine)
    sys.stdout.write(f"{loaded - begun} {peak_resident_bytes() - begun}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels that CUDA loads count as this process's memory")
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_model_trains_in_less_memory_than_its_weights_take(method, large, deep):
    program = "import sys; from tests.models.streaming.test_loading import stream; stream(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, method, deep("llama"), large],
        env=os.environ | heap.variables(os.environ),  # as a command begins
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    loading, training = map(int, done.stdout.split())
    stored = (large / "model.safetensors").stat().st_size
    assert loading < stored / 4
    assert training < 0.4 * stored, done.stdout


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
