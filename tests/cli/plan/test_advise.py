"""`ftkit plan --advise`: each change has the price that a plan of the changed run has, and can be pasted."""

import json
import shlex

import pytest
import yaml
from click.testing import CliRunner

from ftkit.cli import main
from ftkit.cli.plan.advise import advice_lines, advice_tree, wall_lines
from ftkit.cli.plan.asked import Asked
from ftkit.config.files import build_config, load_config
from ftkit.config.tree import RunConfig
from ftkit.plan.choices.advise import advise, walls
from ftkit.plan.choices.changes import Effect, effect_of, value_of
from ftkit.plan.inputs.shapes import Sequences
from ftkit.plan.inputs.target import find_target
from ftkit.plan.predict import predict
from tests.helpers import save_tiny_model


@pytest.fixture(scope="module")
def advised(tmp_path_factory):
    """Return lines and JSON for a run whose cut is in tokens, and so the changes of it too."""
    model = save_tiny_model(tmp_path_factory.mktemp("tiny") / "gpt2", "gpt2")
    run = load_config(settings=[f"model.name={model}", "data.max_length=16", "batch.micro_batch_tokens=64"])
    asked = Asked.of(run, find_target("t4"), samples=8)
    advice, largest, target = advise(*asked), list(walls(*asked)), asked.options.target
    lines = [*advice_lines(advice, target), *wall_lines(largest, target)]
    return lines, json.loads(json.dumps(advice_tree(advice, largest, target)))


def shown(command):
    """Return the configuration of a command that somebody pastes."""
    done = CliRunner().invoke(main, ["config", "show", *shlex.split(command)[2:]])
    assert done.exit_code == 0, done.output
    return build_config(yaml.safe_load(done.output))


def test_a_change_is_priced_as_a_plan_of_the_changed_run(advised):
    _, tree = advised
    kinds = {tuple(one["changes"]) for one in tree["changes"]}
    expected = {"batch.micro_batch_tokens", "data.max_length", "method.rank", "model.recompute", "model.lean"}
    expected |= {"method.name", "method.top_layers", "optimizer.name", "engine.expandable_segments"}
    assert {(key,) for key in expected} < kinds
    priced = [one for one in tree["changes"] if one["changes"].keys() & {"data.max_length", "batch.micro_batch_tokens"}]
    for one in priced:
        run = shown(one["command"])
        plan = predict(run, find_target("t4"), sequences=Sequences.unseen(run, 8))
        assert one["prediction"]["peak_process_bytes"] == plan.peak_process_bytes, one["changes"]


def test_a_change_that_leaves_a_run_as_it_is_is_not_offered(advised):
    _, tree = advised
    assert {"engine.zero_stage": 0} not in [one["changes"] for one in tree["changes"]]  # it runs on the plain engine


def test_the_flags_of_a_change_go_behind_the_command(advised):
    lines, tree = advised
    start = next(line for line in lines if line.startswith("  ftkit train"))
    rows = [line.split("  ")[-1] for line in lines if line[:3].strip().rstrip(".").isdigit()]
    assert len(rows) == len(tree["changes"])
    for flags, one in zip(rows, tree["changes"], strict=True):
        run = shown(f"{start} {flags}")
        assert {key: value_of(run, key) for key in one["changes"]} == one["changes"]


def test_what_a_run_does_not_go_with_is_left_out_in_a_line_with_its_reason(advised):
    lines, tree = advised
    at = lines.index("left out, since this run does not go with them:")
    told = dict(zip(lines[at + 1 :: 2], lines[at + 2 :: 2], strict=False))
    shared = next(flags for flags in told if "--zero-stage 1" in flags)
    assert shared.split(", ") == [
        f"  --zero-stage {stage}" if stage == 1 else f"--zero-stage {stage}" for stage in (1, 2, 3)
    ]
    assert "nothing to partition" in told[shared]
    reasons = {tuple(one["changes"].items()): one["reason"] for one in tree["refused"]}
    assert "nothing to partition" in reasons[("engine.zero_stage", 1),]
    assert not {tuple(one["changes"].items()) for one in tree["changes"]} & reasons.keys()


def test_the_largest_values_are_given_as_commands(advised):
    lines, _ = advised
    at = lines.index("the largest that still fits, all else as it is:")
    assert [line.split()[0] for line in lines[at + 1 :: 2]] == ["max_length", "micro_batch_size", "rank"]
    assert shown(lines[at + 2]).data.max_length == 64, "all positions of the model"


def test_changes_of_the_result_stand_apart(advised):
    _, tree = advised
    effects = [Effect[one["effect"].upper()] for one in tree["changes"]]
    assert effects == sorted(effects, key=list(Effect).index)


@pytest.mark.parametrize(
    ("changes", "effect"),
    [
        ({"batch.micro_batch_size": 1}, Effect.NONE),
        ({"engine.zero_stage": 3}, Effect.NONE),
        ({"method.name": "qlora"}, Effect.ROUNDING),
        ({"optimizer.name": "adamw_8bit"}, Effect.ROUNDING),
        ({"method.name": "full"}, Effect.LEARNED),
        ({"data.max_length": 64}, Effect.LEARNED),
    ],
)
def test_a_change_says_what_it_does_to_the_result(changes, effect):
    assert effect_of(RunConfig(), changes) is effect
