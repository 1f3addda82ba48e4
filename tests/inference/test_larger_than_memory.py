"""A model whose layers are streamed is asked and exported by processes that may not hold its weights.

Slow: it writes a model of 980 MiB, twice.
"""

import json
import resource
import subprocess
import sys

import pytest
import torch
import transformers

from ftkit.models.saving.write import write_tensors
from tests.helpers import save_tiny_model

pytestmark = pytest.mark.slow
LIMIT = 800 * 2**20
"""Bytes of memory of its own that a process may have, of which Python, torch and what they load are 430 MiB."""
TEXTS = ("good bad film plot", "the actor of a scene", "not very good", "one film and a plot")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Save a Llama of 514 million weights in bf16; returns its folder."""
    folder = save_tiny_model(tmp_path_factory.mktemp("large"), "llama")
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=40,
        num_attention_heads=8,
        pad_token_id=1,
        architectures=["LlamaForCausalLM"],
    )
    with torch.device("meta"):
        state = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).state_dict()
    shapes = {one.shape for one in state.values()}
    torch.manual_seed(0)
    numbers = {
        shape: 0.02 * torch.randn(shape).bfloat16() if len(shape) > 1 else torch.ones(shape).bfloat16()
        for shape in shapes
    }
    kinds = {name: (one.dtype, tuple(one.shape)) for name, one in state.items()}
    assert write_tensors(folder, kinds, ((name, numbers[one.shape]) for name, one in state.items())) > LIMIT
    config.save_pretrained(folder)
    return folder


def ask(*arguments, most=LIMIT):
    """Run a command of ftkit in a process that may have so much memory; returns what it prints."""

    def limit():
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))

    done = subprocess.run(
        [sys.executable, "-m", "ftkit", *map(str, arguments)],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_model_is_asked_and_exported_in_less_memory_than_its_weights_take(model, tmp_path):
    texts, run, merged = tmp_path / "texts.txt", tmp_path / "run", tmp_path / "merged"
    texts.write_text("\n".join(TEXTS * 4))
    ask(
        "train", "--model", model, "--task", "causal-lm", "--method", "lora", "--dataset", texts, "--output", run,
        "--max-steps", 1, "--max-length", 16, "--set", "engine.stream_layers=disk",
        "--set", "batch.global_batch_size=2", "--set", "method.targets=[attention]", most=resource.RLIM_INFINITY,
    )  # fmt: skip
    (answer,) = ask("predict", run, TEXTS[0], "--max-new-tokens", 2, "--format", "jsonl").splitlines()
    assert json.loads(answer)["prompt"] == TEXTS[0]
    exported = json.loads(ask("export", run, "--to", "merged", "--output", merged, "--json"))
    assert exported["num_bytes"] > LIMIT
    assert exported["difference"]["largest"] < exported["difference"]["scale"] / 10  # of weights rounded to 16 bits
    # The merged model is streamed too.
    ask("predict", merged, TEXTS[0], "--max-new-tokens", 1)
