"""A run whose trunk is computed once trains as the run that computes it in each step."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ftkit.config import files as config_io
from ftkit.data.batching import Padding
from ftkit.machine.process import ProcessContext
from ftkit.models.build import build_model
from ftkit.models.sources.source import load_config, resolve_source
from ftkit.models.trunk import entries
from ftkit.records.files import read_record
from tests.e2e.command import flags, run
from tests.e2e.conftest import work
from tests.helpers import LABELS, PADDING, build, build_cached, ragged_split, save_tiny_model, take_steps

__all__ = ["work"]
FAMILIES = ("bert", "roberta", "distilbert", "gpt2", "llama")
METHODS = {"features": ["method.name=feature-extraction"], "top": ["method.name=lora", "method.top_layers=1"]}
FULL = ["method.name=full", "method.top_layers=1"]
RAGGED = "batch.micro_batch_tokens=96"
ALONE = "batch.micro_batch_size=1"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {family: save_tiny_model(folder / family, family) for family in FAMILIES}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "trunk"


def both(settings, model, padding=PADDING):
    """Take the same steps without the cache and with it."""
    settings = [*settings, "batch.global_batch_size=8"]
    split, process = ragged_split("sequence-classification", longest=24), ProcessContext()
    whole = take_steps(*build(settings, model, torch.float32, process), split, padding=padding)
    config, engine, held = build_cached(settings, model, process, split, padding)
    return whole, take_steps(config, engine, held, padding=padding)


def weights_of(outcome):
    return outcome.engine.trainable_state()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_sequences_one_at_a_time_train_bit_by_bit_alike(method, family, models):
    whole, cached = both([*METHODS[method], ALONE], models[family])
    ours, theirs = weights_of(cached), weights_of(whole)
    assert ours.keys() == theirs.keys()
    if method == "features" and family in ("gpt2", "llama"):
        # Their head multiplies every token's vector, and from the cache the one that counts: another shape of the
        # same product, so equal to some roundings of fp32.
        assert np.allclose(whole.losses, cached.losses, rtol=1e-6)
        assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)
        return
    assert whole.losses == cached.losses
    assert whole.norms == cached.norms
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("family", "side"), [("roberta", "right"), ("llama", "right"), ("llama", "left")])
def test_padded_sequences_train_alike_up_to_rounding(family, method, side, models):
    whole, cached = both([*METHODS[method], RAGGED], models[family], Padding(1, side))
    # A product's last bits depend on its shape: without a cache too, a sequence gets others beside other sequences.
    assert np.allclose(whole.losses, cached.losses, rtol=1e-5)
    assert np.allclose(whole.norms, cached.norms, rtol=1e-4)


def test_the_top_layer_trained_whole_trains_alike(models):
    whole, cached = both([*FULL, ALONE], models["bert"])
    assert whole.losses == cached.losses
    assert all(torch.equal(weights_of(cached)[name], tensor) for name, tensor in weights_of(whole).items())


def test_the_head_of_a_language_model_trains_alike(models):
    settings = ["method.name=feature-extraction", "task=causal-lm", ALONE, "batch.global_batch_size=8"]
    split, process = ragged_split("causal-lm", longest=24), ProcessContext()
    whole = take_steps(*build(settings, models["llama"], torch.float32, process), split)
    cached = take_steps(*build_cached(settings, models["llama"], process, split))
    assert whole.losses == cached.losses
    assert all(torch.equal(weights_of(cached)[name], tensor) for name, tensor in weights_of(whole).items())


def test_layers_that_recompute_are_given_what_crossed_once_more(models):
    whole, cached = both([*METHODS["top"], ALONE, "model.gradient_checkpointing=1"], models["bert"])
    assert whole.losses == cached.losses


def test_other_tokens_and_other_segments_have_another_entry(models):
    split = ragged_split("sequence-classification", 8)
    tokens = split.tokens.copy()
    tokens[3] = 5 if tokens[3] != 5 else 6
    segments = np.zeros(len(tokens), np.int8)
    for one in (split, replace(split, tokens=tokens), replace(split, segments=segments), split):
        build_cached([*METHODS["features"], RAGGED], models["bert"], ProcessContext(), one)
    assert len(entries.list_entries()) == 3


def test_other_weights_and_what_is_kept_otherwise_have_another_entry(models, tmp_path):
    split = ragged_split("sequence-classification", 8)
    every = [*METHODS["features"], RAGGED]
    build_cached(every, models["bert"], ProcessContext(), split)
    build_cached([*every, "training.seed=5", "batch.micro_batch_tokens=200"], models["bert"], ProcessContext(), split)
    assert len(entries.list_entries()) == 1
    build_cached([*every, "cache.dtype=bf16"], models["bert"], ProcessContext(), split)
    other = save_tiny_model(tmp_path / "other", "bert")
    weights = load_file(other / "model.safetensors")
    weights["encoder.layer.1.output.dense.bias"][0] += 1e-3
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    build_cached(every, other, ProcessContext(), split)
    assert len(entries.list_entries()) == 3


def test_a_run_is_cached_by_itself_and_saves_the_model_that_it_would_have_saved(work, tmp_path):
    more = ["--method", "feature-extraction", "--epochs", 2, "--no-plan", "--set", ALONE]
    outputs = {}
    for name, cached in {"off": ["--trunk-cache", "off"], "first": [], "again": []}.items():
        outputs[name] = run(*flags(work, tmp_path / name, *more, *cached))
        assert outputs[name].exit_code == 0, outputs[name].output
    assert "trunk" not in outputs["off"].output
    assert "frozen below dropout is computed once" in " ".join(outputs["first"].output.split())
    assert "is not run nor loaded, since it is in the cache" in " ".join(outputs["again"].output.split())
    whole, first, again = (load_file(tmp_path / name / "model" / "model.safetensors") for name in outputs)
    assert whole.keys() == first.keys() == again.keys()
    assert all(torch.equal(whole[name], first[name]) and torch.equal(first[name], again[name]) for name in whole)
    scores = [scores_of(tmp_path / name) for name in outputs]
    assert scores[0] == scores[1] == scores[2]


def test_a_start_from_the_cache_loads_no_weight_of_the_trunk_and_draws_the_same_head(models):
    settings = [f"model.name={models['bert']}", *METHODS["top"]]
    config = config_io.load_config(settings=settings)
    source = resolve_source(config.model, config.task)
    architecture = load_config(source, LABELS.names, 1, "single")
    whole = dict(build_model(config, source, architecture, torch.float32).named_parameters())
    found = build_model(config, source, architecture, torch.float32, without=("bert.encoder.layer.0",))
    for name, weight in found.named_parameters():
        assert weight.is_meta == (".encoder.layer.0." in name)
        assert weight.is_meta or torch.equal(weight, whole[name])


def test_a_planned_run_records_the_pass_and_the_one_after_it_that_none_runs(work, tmp_path):
    more = ["--method", "lora", "--train-top-layers", 1, "--epochs", 2]
    plans = []
    for name in ("cold", "warm"):
        done = run(*flags(work, tmp_path / name, *more))
        assert done.exit_code == 0, done.output
        plans.append(read_record(tmp_path / name).run.prediction.trunk)
    assert [plan.is_done for plan in plans] == [False, True]
    kept = [entries.read_about(found.path).num_bytes for found in entries.list_entries()]
    assert plans[0].num_bytes == sum(kept)
    adapters = [load_file(tmp_path / name / "model" / "adapter_model.safetensors") for name in ("cold", "warm")]
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])


def test_a_trunk_is_planned_and_computed_from_streamed_layers_to_the_same_bits(work, tmp_path, monkeypatch):
    more = ["--method", "feature-extraction", "--epochs", 2, "--set", ALONE]
    for name, layers in {"resident": "none", "streamed": "disk"}.items():
        monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / f"cache of {name}"))
        done = run(*flags(work, tmp_path / name, *more, "--set", f"engine.stream_layers={layers}"))
        assert done.exit_code == 0, done.output
        assert "frozen below dropout is computed once" in " ".join(done.output.split())
    assert scores_of(tmp_path / "resident") == scores_of(tmp_path / "streamed")
    planned = read_record(tmp_path / "streamed").run.prediction
    assert planned.trunk is not None
    assert planned.streamed is not None


def test_hidden_states_in_8_bits_are_planned_and_what_they_lose_is_said(work, tmp_path):
    more = ["--method", "lora", "--train-top-layers", 1, "--epochs", 2, "--set", "cache.dtype=int8"]
    done = run(*flags(work, tmp_path / "run", *more))  # which opens its model again, and compares it
    assert done.exit_code == 0, done.output
    kept = [entries.read_about(found.path).num_bytes for found in entries.list_entries()]
    assert read_record(tmp_path / "run").run.prediction.trunk.num_bytes == sum(kept)
    lost = re.search(r"in 8 bits, which are off by (\S+)% of a vector's length", " ".join(done.output.split()))
    assert 0.1 < float(lost[1]) < 2.0  # half of a 127th of the largest of a block, which is 2 to 4 of its scatter


def scores_of(folder):
    lines = map(json.loads, (folder / "record.jsonl").read_text().splitlines())
    return [(line["split"], line["loss"], line["accuracy"]) for line in lines if "accuracy" in line]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["--method", "lora"], "trains in all layers, so nothing below is frozen; give --train-top-layers"),
        (["--method", "feature-extraction", "--cache-limit", "1k"], "cache.limit is 1.00 KiB; raise --cache-limit"),
    ],
)
def test_a_cache_that_is_asked_for_and_cannot_be_is_refused(settings, said, work, tmp_path):
    done = run(*flags(work, tmp_path / "run", "--no-plan", "--trunk-cache", "on", *settings))
    assert done.exit_code != 0
    assert said in " ".join(done.output.split())


def test_a_cache_without_room_leaves_the_run_as_it_ever_was(work, tmp_path):
    settings = ["--method", "feature-extraction", "--cache-limit", "1k", "--epochs", 2, "--no-plan"]
    done = run(*flags(work, tmp_path / "run", *settings))
    assert done.exit_code == 0
    assert "the frozen layers run in each epoch" in " ".join(done.output.split())


def test_an_adapter_of_the_top_layer_is_saved_for_the_whole_model(work, tmp_path):
    more = ["--method", "lora", "--train-top-layers", 1, "--epochs", 2, "--no-plan", "--set", ALONE]
    for name, cached in {"off": ["--trunk-cache", "off"], "on": ["--trunk-cache", "on"]}.items():
        done = run(*flags(work, tmp_path / name, *more, *cached))
        assert done.exit_code == 0, done.output
    off, on = (load_file(tmp_path / name / "model" / "adapter_model.safetensors") for name in ("off", "on"))
    assert off.keys() == on.keys()
    assert all(torch.equal(off[name], on[name]) for name in off)
    assert scores_of(tmp_path / "off") == scores_of(tmp_path / "on")
