import pytest

from ftkit.config.files import load_config, preset_names, preset_path
from ftkit.config.recompute import Recompute
from ftkit.models.methods.head import FeatureExtraction
from ftkit.models.methods.lora import Lora, Qlora


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_loads(name):
    load_config(preset=name)


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_begins_by_saying_what_it_is(name):
    first = preset_path(name).read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert first.endswith(".")


def test_the_shipped_presets_are_these():
    assert preset_names() == [
        "cpu-demo",
        "gpt2-feature-extraction",
        "gpt2-lora-mlp",
        "gpt2-lora-wished",
        "small-gpu-qlora",
    ]


def test_feature_extraction_is_the_run_that_people_know():
    config = load_config(preset="gpt2-feature-extraction")
    assert isinstance(config.method, FeatureExtraction)
    assert (config.batch.global_batch_size, config.learning_rate, config.training.epochs) == (64, 1e-4, 5)
    assert (config.schedule.num_warmup_steps(927), config.optimizer.weight_decay) == (500, 0.01)
    assert config.training.early_stopping_patience is None


def test_lora_on_the_mlp_makes_a_step_of_eight_micro_batches_on_one_gpu():
    config = load_config(preset="gpt2-lora-mlp")
    assert isinstance(config.method, Lora)
    assert config.method.targets == ("c_fc", "c_proj")
    assert config.batch.micro_batch_size is not None
    assert config.batch.global_batch_size / config.batch.micro_batch_size == 8
    assert config.model.precision == "fp16"


def test_the_wished_run_has_all_that_memory_forbade():
    config = load_config(preset="gpt2-lora-wished")
    assert isinstance(config.method, Lora)
    assert (config.method.targets, config.method.rank) == (("all-linear",), 16)
    assert (config.training.best_metric, config.training.early_stopping_patience) == ("f1_macro", 2)
    assert config.schedule.num_warmup_steps(1000) == 60


def test_the_small_gpu_run_saves_memory_everywhere():
    config = load_config(preset="small-gpu-qlora")
    assert isinstance(config.method, Qlora)
    assert config.model.recompute == Recompute(layer=1.0)
    assert config.optimizer.name == "paged_adamw_8bit"
    assert config.batch.token_limit == 2048
