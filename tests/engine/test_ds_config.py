"""What DeepSpeed receives: each key from its one owner, buckets sized to what trains."""

import json

import pytest

from ftkit.config.files import load_config
from ftkit.engine.ds_config import Sizes, deepspeed_dict, read_template, template_name, templates_folder
from ftkit.errors import ConfigError

SIZES = Sizes(num_trainable_parameters=300_001, largest_trainable=4_096, largest_layer=1_000_000)


def received(*settings, precision="bf16", world_size=2, device_type="cuda"):
    config = load_config(settings=settings)
    return deepspeed_dict(read_template(config.engine), config, precision, world_size, device_type, SIZES)


def test_zero_2_in_bf16_is_exactly_this():
    assert received("engine.zero_stage=2") == {
        "zero_optimization": {
            "stage": 2,
            "overlap_comm": False,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "reduce_bucket_size": 300_001,
            "allgather_bucket_size": 300_002,
        },
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 2,
        "train_batch_size": 4,
        "gradient_clipping": 1.0,
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "steps_per_print": 2**31 - 1,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": True},
    }


def test_zero_3_gathers_no_more_than_two_layers():
    zero = received("engine.zero_stage=3", precision="fp32")["zero_optimization"]
    assert zero["stage3_max_live_parameters"] == 2 * SIZES.largest_layer
    assert zero["stage3_prefetch_bucket_size"] == SIZES.largest_layer


def test_fp16_scales_its_loss_and_only_fp16_does():
    assert received(precision="fp16")["fp16"]["initial_scale_power"] == 12
    assert not {"fp16", "bf16"} & received(precision="fp32").keys()


@pytest.mark.parametrize(("device_type", "pinned"), [("cuda", True), ("cpu", False)])
def test_offloaded_memory_is_pinned_for_a_device_only(device_type, pinned):
    found = received("engine.zero_stage=2", "engine.offload_optimizer=cpu", device_type=device_type)
    assert found["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": pinned}


def test_nvme_gets_its_folder():
    zero = received(
        "engine.zero_stage=3",
        "engine.offload_optimizer=nvme",
        "engine.offload_parameters=nvme",
        "engine.nvme_path=/fast",
    )["zero_optimization"]
    assert zero["offload_optimizer"]["nvme_path"] == zero["offload_param"]["nvme_path"] == "/fast"


@pytest.mark.parametrize("path", sorted(templates_folder().glob("*.json")), ids=lambda path: path.stem)
def test_the_name_of_each_template_says_everything_that_it_turns_on(path):
    zero = json.loads(path.read_text())["zero_optimization"]
    devices = [zero.get(key, {}).get("device", "none") for key in ("offload_optimizer", "offload_param")]
    nvme = ["engine.nvme_path=/fast"] if "nvme" in devices else []
    settings = [f"engine.zero_stage={zero['stage']}", f"engine.offload_optimizer={devices[0]}"]
    config = load_config(settings=[*settings, f"engine.offload_parameters={devices[1]}", *nvme])
    assert template_name(config.engine) == path.stem
    assert not zero.get("overlap_comm", False)
    read_template(config.engine)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "not valid JSON"),
        ("[]", "must hold an object"),
        ('{"zero_optimization": {"stage": 0}}', "stage 0 is the plain engine"),
        ('{"zero_optimization": {"stage": 2}, "train_batch_size": 8}', "belongs to batch.global_batch_size"),
        ('{"zero_optimization": {"stage": 2}, "fp16": {"enabled": true}}', "belongs to model.precision"),
        ('{"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}}', "zero_optimization.reduce_bucket_size"),
    ],
)
def test_a_template_that_cannot_be_is_one_sentence(content, sentence, tmp_path):
    template = tmp_path / "mine.json"
    template.write_text(content)
    with pytest.raises(ConfigError, match=sentence):
        received(f"engine.ds_config={template}")


def test_a_template_and_a_flag_that_disagree_are_refused(tmp_path):
    template = tmp_path / "mine.json"
    template.write_text('{"zero_optimization": {"stage": 2}}')
    with pytest.raises(ConfigError, match=r"stage 2, but engine\.zero_stage=3"):
        received(f"engine.ds_config={template}", "engine.zero_stage=3")
    with pytest.raises(ConfigError, match="no DeepSpeed template 'zero5'"):
        received("engine.ds_config=zero5")
