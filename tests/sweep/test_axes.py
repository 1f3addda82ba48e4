"""What a sweep is the product of."""

import pytest

from ftkit.config.files import load_config
from ftkit.config.flags import short_names
from ftkit.config.recompute import Recompute
from ftkit.engine.resolve import Devices, resolve
from ftkit.errors import ConfigError
from ftkit.sweep.axes import make_trials, parse_axis, read_axes

CHEAP, HALF = Recompute(cheap=1.0), Recompute(layer=0.5)


def build(settings, world_size=1):
    return resolve(load_config(settings=settings), Devices("cpu", has_bf16=False, world_size=world_size))


def test_a_sweep_is_the_product_of_its_axes_and_joined_keys_move_together():
    axes = [parse_axis("method=lora,full"), parse_axis("engine.zero_stage:world_size=null:1,2:2")]
    trials = make_trials(axes, build)
    assert [(t.config.method.name, t.config.engine.zero_stage, t.world_size) for t in trials] == [
        ("lora", None, 1), ("lora", 2, 2), ("full", None, 1), ("full", 2, 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("axis", "section", "field", "values"),
    [
        (
            "method=feature-extraction,lora,qlora,full",
            "method",
            "name",
            ["feature-extraction", "lora", "qlora", "full"],
        ),
        ("zero-stage=0,1,2,3", "engine", "zero_stage", [0, 1, 2, 3]),
        ("engine.zero_stage:offload-optimizer=2:none,3:cpu", "engine", "offload_optimizer", ["none", "cpu"]),
        ("recompute=none,cheap,{layer: 0.5}", "model", "recompute", [Recompute(), CHEAP, HALF]),
        ("gradient-checkpointing=none,0.5,all", "model", "recompute", [Recompute(), HALF, Recompute(layer=1.0)]),
        ("micro-batch-size=1,2", "batch", "micro_batch_size", [1, 2]),
        ("batch.micro_batch_tokens=512,4096", "batch", "micro_batch_tokens", [512, 4096]),
        ("precision=bf16,fp32", "model", "precision", ["bf16", "fp32"]),
        ("rank=4,16", "method", "rank", [4, 16]),
        ("optimizer=adamw,paged_adamw_8bit", "optimizer", "name", ["adamw", "paged_adamw_8bit"]),
        ("target=[query],[key]", "method", "targets", [("query",), ("key",)]),
    ],
)
def test_every_axis_is_a_key_of_the_configuration_or_the_name_of_its_flag(axis, section, field, values):
    trials = make_trials([parse_axis(axis, short_names())], build)
    assert [trial.refusal for trial in trials] == [None] * len(values)
    assert [getattr(getattr(trial.config, section), field) for trial in trials] == values


def test_a_file_says_the_same_as_flags_and_takes_a_list_of_configurations():
    from_file = read_axes({"rank": [4, 16], "model.gradient_checkpointing": ["none", "all"]}, short_names())
    from_flags = [parse_axis(text, short_names()) for text in ("rank=4,16", "gradient-checkpointing=none,all")]
    assert [t.config for t in make_trials(from_file, build)] == [t.config for t in make_trials(from_flags, build)]
    places = [{"rank": 4, "gradient-checkpointing": "all"}, {"method": "full", "zero-stage": 2}]
    found = make_trials(read_axes(places, short_names()), build)
    assert [(t.config.method.name, t.config.engine.zero_stage) for t in found] == [("lora", None), ("full", 2)]
    assert found == make_trials(read_axes({"configurations": places}, short_names()), build)
    listed = read_axes({"method": ["lora", "full"], "configurations": [{"training.seed": 1}, {"training.seed": 2}]})
    assert len(make_trials(listed, build)) == 4


def test_an_axis_of_adapters_does_not_multiply_the_methods_without_adapters():
    trials = make_trials([parse_axis("method=lora,full"), parse_axis("method.rank=4,8")], build)
    assert [trial.name for trial in trials] == ["001-lora-4", "002-lora-8", "003-full"]
    assert [trial.refusal for trial in trials] == [None] * 3


@pytest.mark.parametrize("text", ["method", "=1", "seed:rank=1", "method=", "seed:rank=1:2:3"])
def test_an_axis_that_cannot_be_read_is_refused(text):
    with pytest.raises(ConfigError, match="--sweep"):
        parse_axis(text, short_names())


@pytest.mark.parametrize("tree", [None, "method", {"method": "lora"}, {"rank": []}, ["lora"], {"configurations": [1]}])
def test_a_file_that_holds_no_axes_is_refused(tree):
    with pytest.raises(ConfigError, match="sweep file"):
        read_axes(tree, short_names())


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("methd", "method"),
        ("zero-stge", "zero-stage"),
        ("engine.zero_stge", "engine.zero_stage"),
        ("micro_batch_tokens", "micro-batch-tokens"),
    ],
)
def test_an_unknown_axis_is_refused_with_the_nearest(key, nearest):
    with pytest.raises(ConfigError, match=f"no axis {key!r}; did you mean {nearest!r}"):
        parse_axis(f"{key}=1,2", short_names())
    with pytest.raises(ConfigError, match=f"no axis {key!r}"):
        read_axes({"configurations": [{"method": "lora"}, {key: 1}]}, short_names())


@pytest.mark.parametrize("ranks", ["0", "two", "-1"])
def test_a_number_of_ranks_that_is_none_is_refused(ranks):
    with pytest.raises(ConfigError, match="is not a number of ranks"):
        make_trials([parse_axis(f"world_size={ranks}")], build)


@pytest.mark.parametrize(
    "axes",
    [
        [parse_axis("rank=4,8", short_names()), parse_axis("method.rank=16")],
        [*read_axes({"configurations": [{"method.rank": 4, "training.seed": 1}]}), parse_axis("training.seed=0,1")],
    ],
)
def test_a_key_on_two_axes_is_refused_since_the_values_of_one_would_be_lost(axes):
    with pytest.raises(ConfigError, match=r"(method.rank|training.seed) is on two axes of the sweep; name all"):
        make_trials(axes, build)


def test_a_key_that_an_axis_joins_to_itself_is_refused():
    with pytest.raises(ConfigError, match="names a key twice"):
        parse_axis("rank:method.rank=4:8", short_names())
