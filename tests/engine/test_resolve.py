"""A run is resolved once: what its engine, its ZeRO stage, its precision and its cut are, whoever asks."""

import json
from dataclasses import replace

import pytest

from ftkit.config.files import load_config
from ftkit.config.rules import RULES, Facts, Force, broken_rules
from ftkit.engine.ds_config import templates_folder
from ftkit.engine.resolve import Devices, EngineKind, resolve
from ftkit.errors import ConfigError, DeviceError
from ftkit.machine.process import ProcessContext
from ftkit.plan.inputs.target import find_target

ONE = Devices("cuda", has_bf16=True)
TWO = replace(ONE, world_size=2, launcher="deepspeed")


def resolved(*settings, devices=ONE):
    return resolve(load_config(settings=settings), devices)


@pytest.mark.parametrize(
    ("settings", "devices", "engine", "stage"),
    [
        ([], ONE, EngineKind.PLAIN, 0),
        ([], TWO, EngineKind.DEEPSPEED, 2),
        ([], replace(TWO, launcher="torchrun"), EngineKind.PLAIN, 0),
        (["engine.name=plain"], TWO, EngineKind.PLAIN, 0),
        (["engine.zero_stage=0"], TWO, EngineKind.PLAIN, 0),
        (["engine.name=deepspeed"], ONE, EngineKind.DEEPSPEED, 2),
        (["engine.zero_stage=1"], replace(TWO, launcher="torchrun"), EngineKind.DEEPSPEED, 1),
        (["engine.offload_optimizer=cpu"], ONE, EngineKind.DEEPSPEED, 2),
        (["engine.ds_config=zero3"], ONE, EngineKind.DEEPSPEED, 3),
    ],
)
def test_the_engine_and_its_stage_follow_from_settings_and_launcher(settings, devices, engine, stage):
    run = resolved(*settings, devices=devices)
    assert (run.engine, run.zero_stage) == (engine, stage)


@pytest.mark.parametrize("path", sorted(templates_folder().glob("*.json")), ids=lambda path: path.stem)
def test_a_template_says_its_stage_and_what_it_offloads(path):
    zero = json.loads(path.read_text())["zero_optimization"]
    run = resolved(f"engine.ds_config={path.stem}", "engine.nvme_path=/fast")
    assert run.zero_stage == zero["stage"]
    assert run.offload_optimizer == zero.get("offload_optimizer", {}).get("device", "none")
    assert run.offload_parameters == zero.get("offload_param", {}).get("device", "none")


@pytest.mark.parametrize(
    ("devices", "asked", "precision"),
    [
        (ONE, "auto", "bf16"),
        (replace(ONE, has_bf16=False), "auto", "fp16"),
        (Devices("cpu", has_bf16=True), "auto", "bf16"),
        (Devices("cpu", has_bf16=False), "auto", "fp32"),
        (Devices("cpu", has_bf16=False), "bf16", "bf16"),
        (ONE, "fp32", "fp32"),
    ],
)
def test_the_precision_is_what_the_devices_are_quick_at(devices, asked, precision):
    run = resolved(f"model.precision={asked}", devices=devices)
    assert run.precision == run.config.model.precision == precision
    assert {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}[precision] in str(run.dtype)


def test_the_configuration_has_the_learning_rate_and_the_cut_that_are_used():
    config = resolved("method.name=full").config
    assert config.optimizer.learning_rate == 5e-5
    assert config.batch.micro_batch_tokens == 4096
    assert resolved("batch.micro_batch_size=2").config.batch.micro_batch_tokens is None
    assert resolved("batch.micro_batch_tokens=auto").config.batch.micro_batch_tokens == "auto"
    assert resolve(config, ONE).config == config


@pytest.mark.parametrize(
    ("settings", "devices", "error", "words"),
    [
        (["engine.zero_stage=2", "optimizer.name=adamw_8bit"], ONE, ConfigError, "give --optimizer adamw"),
        (["optimizer.name=paged_adamw"], TWO, ConfigError, "give --optimizer adamw"),
        (["model.precision=bf16"], replace(ONE, has_bf16=False), DeviceError, "give --precision fp16 or auto"),
        (["model.precision=fp16"], Devices("cpu", has_bf16=True), DeviceError, "give --precision auto"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_built(settings, devices, error, words):
    with pytest.raises(error, match=words):
        resolved(*settings, devices=devices)


@pytest.mark.parametrize(("stage", "words"), [(1, "in a template stage 3"), (2, "in a template stage 3")])
def test_a_template_of_the_users_own_keeps_to_the_rulebook(stage, words, tmp_path):
    zero = {"stage": stage, "offload_param": {"device": "cpu"}}
    (tmp_path / "mine.json").write_text(json.dumps({"zero_optimization": zero}))
    with pytest.raises(ConfigError, match=words):
        resolved(f"engine.ds_config={tmp_path / 'mine.json'}")


def test_a_rule_whose_facts_are_not_known_does_not_apply():
    assert not [rule for force in Force for rule in broken_rules(Facts(), force)]
    assert all(rule.reason and rule.remedy for rule in RULES)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_plan_for_several_devices_is_for_the_launcher_that_the_readme_and_a_profile_start_them_by(ranks):
    launched = ProcessContext.from_environment(
        {"RANK": "0", "WORLD_SIZE": str(ranks), "LOCAL_RANK": "0", "CROSS_SIZE": "1"} if ranks > 1 else {}
    )
    config = load_config()
    planned, started = (
        resolve(config, devices) for devices in (find_target(num_devices=ranks).devices, Devices.of(launched))
    )
    assert planned == started
