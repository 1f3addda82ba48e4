"""A plan says of adapters what their training says: which weights stay whole, and whether experts have adapters."""

import json

from click.testing import CliRunner

from ftkit.cli import main
from tests.helpers import save_tiny_model


def said(folder, family, method, *more):
    flags = ["--model", save_tiny_model(folder / family, family), "--task", "causal-lm", "--method", method, *more]
    done = CliRunner().invoke(main, ["plan", *map(str, flags), "--max-length", "16", "--gpu", "t4"])
    assert done.exit_code == 0, done.output
    return done.stdout


def planned(folder, family, method):
    lines = said(folder, family, method).splitlines()
    return [line.split(maxsplit=2)[2] for line in lines if line.startswith("frozen weights")]


def test_what_stays_whole_beside_weights_in_4_bits_is_said_with_its_share(tmp_path):
    # Of a layer 4 x 64 x 64 and 3 x 64 x 128 weights are packed, but k and v have one head of two; two tables stay.
    (line,) = planned(tmp_path, "llama", "qlora")
    packed, tables, norms = 2 * (3 * 64 * 64 + 3 * 64 * 128), 64 * 64, 5 * 64
    share = packed / (packed + 2 * tables + norms)
    assert line.startswith(f"in 4 bits: {share:.1%} of the frozen weights; whole stay embed_tokens ")
    assert planned(tmp_path, "llama", "lora") == []


def test_experts_without_adapters_are_named(tmp_path):
    (line,) = planned(tmp_path, "mixtral", "lora")
    assert line == "no adapter stands beside an expert; method.targets=[all-linear,experts] adds them"


def test_experts_in_4_bits_are_planned_under_zero_3(tmp_path):
    text = said(tmp_path, "mixtral", "qlora", "--engine", "deepspeed", "--zero-stage", "3")
    assert f"{'found':30} traced whole\n" in text
    assert f"{'frozen weights':30} in 4 bits: " in text


def test_what_the_text_says_of_experts_and_frozen_weights_is_in_the_json(tmp_path):
    text = said(tmp_path, "mixtral", "lora")
    explanation = json.loads(said(tmp_path, "mixtral", "lora", "--explain", "--json"))["explanation"]
    assert "for each token; no size depends on the routing" in explanation["experts"]
    assert len(explanation["frozen"]) > 0
    for name, line in [
        ("experts", explanation["experts"]),
        *(("frozen weights", one) for one in explanation["frozen"]),
    ]:
        assert f"{name:30} {line}\n" in text
