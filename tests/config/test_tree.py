import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from ftkit.config.engine import EngineConfig
from ftkit.config.methods import methods
from ftkit.config.training import OptimizerConfig, ScheduleConfig
from ftkit.config.tree import BatchConfig, ModelConfig, RunConfig
from ftkit.models.methods.full import Full
from ftkit.models.methods.head import FeatureExtraction
from ftkit.models.methods.lora import Lora, Qlora


def test_the_defaults_are_a_whole_run():
    config = RunConfig()
    assert isinstance(config.method, Lora)
    assert config.model.name == config.data.dataset == "demo"


def test_a_configuration_cannot_be_changed():
    config = RunConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.batch.global_batch_size = 64


@pytest.mark.parametrize("section", [ModelConfig, BatchConfig, Lora, Full, EngineConfig, RunConfig])
def test_every_section_refuses_an_unknown_key(section):
    with pytest.raises(ValidationError, match="Extra inputs"):
        section(effective_batch=8)


@pytest.mark.parametrize(("name", "kind"), methods().items())
def test_the_name_of_a_method_chooses_its_type(name, kind):
    method = RunConfig.model_validate({"method": {"name": name}}).method
    assert type(method) is kind
    assert method.name == name


@pytest.mark.parametrize("method", [FeatureExtraction, Full])
def test_a_method_without_adapters_has_no_rank(method):
    with pytest.raises(ValidationError, match="rank"):
        method(rank=8)


def test_qlora_is_lora_with_a_quantization():
    added = Qlora.model_fields.keys() - Lora.model_fields.keys()
    assert added == {"quantization", "double_quantization"}


def test_the_learning_rate_is_the_methods_own_unless_named():
    assert RunConfig(method=Full()).learning_rate == Full.default_learning_rate
    assert RunConfig(method=Full(), optimizer=OptimizerConfig(learning_rate=3e-4)).learning_rate == 3e-4


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
@pytest.mark.parametrize("field", ["learning_rate", "epsilon", "weight_decay"])
def test_a_number_is_finite(field, number):
    with pytest.raises(ValidationError, match="finite number"):
        OptimizerConfig(**{field: number})


def test_the_batch_is_cut_one_way():
    with pytest.raises(ValidationError, match="micro_batch_size and micro_batch_tokens both cut"):
        BatchConfig(micro_batch_size=8, micro_batch_tokens=1024)


@pytest.mark.parametrize(
    ("batch", "limit"),
    [
        (BatchConfig(), BatchConfig.default_micro_batch_tokens),
        (BatchConfig(micro_batch_tokens=512), 512),
        (BatchConfig(micro_batch_size=4), None),
    ],
)
def test_tokens_limit_a_micro_batch_unless_sequences_do(batch, limit):
    assert batch.token_limit == limit


def test_on_a_cpu_the_usual_micro_batch_is_larger_where_each_of_them_does_more_to_the_weights():
    names = ("lora", "feature-extraction", "qlora", "full")
    assert [RunConfig(method=name).settled("cpu").batch.token_limit for name in names] == [512, 512, 1024, 1024]
    in_bf16 = [RunConfig(method=name, model=ModelConfig(precision="bf16")) for name in names]
    assert {run.settled("cpu").batch.token_limit for run in in_bf16} == {2048}
    assert {run.settled("cuda").batch.token_limit for run in in_bf16} == {4096}
    assert RunConfig(batch=BatchConfig(micro_batch_size=3)).settled("cpu").batch.token_limit is None


@given(ratio=st.floats(0, 1), num_steps=st.integers(0, 10**6))
def test_a_share_of_warmup_is_between_none_and_all_steps(ratio, num_steps):
    assert 0 <= ScheduleConfig(warmup_ratio=ratio).num_warmup_steps(num_steps) <= num_steps


def test_warmup_steps_win_over_the_share():
    assert ScheduleConfig(warmup_ratio=0.5, warmup_steps=0).num_warmup_steps(100) == 0


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"name": "plain", "zero_stage": 2}, "give --engine deepspeed"),
        ({"name": "plain", "offload_optimizer": "cpu"}, "give --engine deepspeed"),
        ({"zero_stage": 2, "offload_parameters": "cpu"}, "give --zero-stage 3 .*or --offload-parameters none"),
        ({"zero_stage": 0, "offload_optimizer": "cpu"}, "give --zero-stage 1, 2 or 3"),
        (
            {"zero_stage": 2, "offload_optimizer": "nvme", "nvme_path": "/scratch"},
            "offload to a disk without ZeRO-3.*give --zero-stage 3",
        ),
        ({"zero_stage": 3, "offload_optimizer": "nvme"}, "--set engine.nvme_path=FOLDER"),
    ],
)
def test_an_engine_that_cannot_be_says_what_would(fields, sentence):
    with pytest.raises(ValidationError, match=sentence):
        EngineConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, False),
        ({"zero_stage": 0}, False),
        ({"zero_stage": 1}, True),
        ({"offload_optimizer": "cpu"}, True),
        ({"ds_config": "mine.json"}, True),
    ],
)
def test_only_stages_offload_and_templates_ask_for_zero(fields, wanted):
    assert EngineConfig(**fields).asks_for_zero is wanted


def test_every_field_says_what_it_does():
    """The configuration page is made of these sentences."""
    sections: list[type[BaseModel]] = [RunConfig, *methods().values()]
    sections += [type(getattr(RunConfig(), name)) for name in RunConfig.model_fields if name not in ("task", "method")]
    silent = [
        f"{section.__name__}.{name}"
        for section in sections
        for name, field in section.model_fields.items()
        if not field.description and name != "name" and section is not RunConfig
    ]
    assert silent == []
