"""A setting that was changed and does nothing in a run is told, with its reason."""

from typing import Any

import pytest

from ftkit.config.files import load_config, preset_names
from ftkit.config.idle import IDLE, KnownOfRun, idle_settings

STEPS = 300
BIG: dict[str, Any] = {
    "num_steps": STEPS,
    "epoch_steps": 100,
    "validates": True,
    "device_type": "cpu",
    "world_size": 1,
    "zero_stage": 0,
}


def told(*settings, **known):
    config = load_config(settings=settings)
    steps = min(STEPS, config.training.max_steps or STEPS)
    return idle_settings(KnownOfRun(config, **(BIG | {"num_steps": steps} | known)))


CASES = {
    ("batch.micro_batch_size=64", "batch.global_batch_size=16"): "does what 16 would",
    ("schedule.warmup_ratio=0.1", "schedule.warmup_steps=5"): "has no effect: schedule.warmup_steps says",
    ("training.max_steps=1000",): "the epochs end at step 300",
    ("training.epochs=9", "training.max_steps=20"): "ends the run before they do, after 20",
    ("training.log_every=301",): "is never reached: the run has 300 steps",
    ("training.eval_every=301",): "validates at its end alone",
    ("training.checkpoint_every=301",): "writes a checkpoint at its end alone",
    ("training.early_stopping_patience=2",): "too few times for it, 3 with the one at its end",
    ("optimizer.weight_decay=0.1", "method=feature-extraction", "method.head=logistic"): "takes no steps",
    ("training.max_steps=999", "method=feature-extraction", "method.head=logistic"): "takes no steps",
    ("model.new_head=true", "task=causal-lm"): "no head for classes",
    ("engine.nvme_path=/tmp",): "nothing is offloaded to nvme",
    ("engine.memory_budget=6GiB", "training.plan_first=false"): "the budget of the plan",
    ("engine.expandable_segments=true",): "for the allocator of a GPU",
    ("engine.peer_timeout=5",): "one rank alone",
    ("training.checkpoint_shards=always",): "only ZeRO-3",
    ("cache.dtype=fp16", "cache.trunk=off"): "keeps nothing of the frozen layers",
}


@pytest.mark.parametrize("settings", CASES, ids=lambda settings: settings[0])
def test_a_setting_that_does_nothing_is_told_in_one_sentence(settings):
    (sentence,) = told(*settings)
    assert sentence.startswith(settings[0].partition("=")[0])
    assert CASES[settings] in sentence


@pytest.mark.parametrize("name", ["eval_every=5", "early_stopping_patience=1", "best_metric=accuracy", "keep_best=2"])
def test_what_decides_on_validations_does_nothing_without_any(name):
    (sentence,) = told(f"training.{name}", validates=False)
    assert sentence.endswith("has no effect: there is no validation split")


def test_every_entry_of_the_list_is_told_of_some_run():
    runs = [(load_config(settings=settings), True) for settings in CASES]
    runs.append((load_config(settings=["training.eval_every=5"]), False))
    for idle in IDLE:
        assert any(idle.applies(KnownOfRun(config, **(BIG | {"validates": validates}))) for config, validates in runs)


EFFECTIVE = [
    ("batch.micro_batch_size=16", "batch.global_batch_size=16"),
    ("batch.micro_batch_size=64", "batch.global_batch_size=16", "data.long_texts=windows"),
    ("training.max_steps=300",),
    ("training.eval_every=300", "training.log_every=300", "training.checkpoint_every=300"),
    ("training.early_stopping_patience=1",),
    ("training.early_stopping_patience=3", "training.eval_every=60"),
]


@pytest.mark.parametrize("settings", EFFECTIVE, ids=lambda settings: settings[-1])
def test_a_setting_at_its_border_is_not_told(settings):
    assert told(*settings) == []


def test_nothing_is_told_of_what_nobody_has_changed_nor_of_a_preset():
    assert told() == []
    for name in preset_names():
        config = load_config(preset=name)
        steps = round((config.training.epochs or 3) * 200)
        assert (
            idle_settings(KnownOfRun(config, min(steps, config.training.max_steps or steps), 200, True, "cuda", 1, 0))
            == []
        )


def test_what_is_not_known_yet_is_not_guessed():
    settings = [
        "training.eval_every=9",
        "training.epochs=1",
        "training.early_stopping_patience=9",
        "engine.peer_timeout=5",
    ]
    assert idle_settings(KnownOfRun(load_config(settings=settings))) == []
