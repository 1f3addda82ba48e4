import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ftkit.config.engine import EngineConfig
from ftkit.config.files import as_settings, build_config, dump_config, json_schema, load_config, unusual_values
from ftkit.config.output import OutputConfig
from ftkit.config.training import OptimizerConfig, ScheduleConfig, TrainingConfig
from ftkit.config.tree import BatchConfig, DataConfig, ModelConfig, RunConfig
from ftkit.errors import ConfigError
from ftkit.models.methods.full import Full
from ftkit.models.methods.head import FeatureExtraction
from ftkit.models.methods.lora import Lora, Qlora

# Texts that YAML likes to take for something else, beside any others.
words = st.one_of(
    st.sampled_from(["no", "1e5", "1e-4", "0x1F", "null", "~", "2026-01-01", "a: b", "é", "-1e3"]), st.text(min_size=1)
)
positive = st.floats(min_value=1e-12, max_value=1e6)
shares = st.floats(0, 1)
counts = st.integers(1, 10**9)
adapters = {
    "rank": counts,
    "alpha": positive,
    "dropout": st.floats(0, 0.99),
    "targets": st.lists(words, max_size=4).map(tuple),
    "layers": st.none() | st.lists(st.integers(0, 99), max_size=4).map(tuple),
    "use_dora": st.booleans(),
}
methods = st.one_of(
    st.builds(FeatureExtraction),
    st.builds(Full),
    st.builds(Lora, **adapters),
    st.builds(Qlora, quantization=st.sampled_from(["nf4", "fp4"]), double_quantization=st.booleans(), **adapters),
)
batches = st.one_of(
    st.builds(BatchConfig, global_batch_size=counts, micro_batch_size=st.none() | counts),
    st.builds(BatchConfig, global_batch_size=counts, micro_batch_tokens=st.none() | st.just("auto") | counts),
)
engines = st.one_of(
    st.builds(EngineConfig, name=st.sampled_from(["auto", "deepspeed"]), zero_stage=st.sampled_from([None, 1, 2, 3])),
    *(
        st.builds(
            EngineConfig,
            zero_stage=st.just(3),
            offload_optimizer=st.sampled_from(["none", place]),
            offload_parameters=st.sampled_from(["none", place]),
            nvme_path=words,
        )
        for place in ("cpu", "nvme")
    ),
)
recomputes = st.sampled_from(["none", "cheap", "layer"]) | st.builds(
    lambda cheap, layer: {"cheap": cheap / 2, "layer": layer / 2}, shares, shares
)
configs = st.builds(
    RunConfig,
    task=st.sampled_from(["sequence-classification", "causal-lm"]),
    model=st.builds(ModelConfig, name=words, revision=st.none() | words, recompute=recomputes),
    data=st.builds(
        DataConfig,
        dataset=words,
        subset=st.none() | words,
        label_names=st.none() | st.lists(words, max_size=3).map(tuple),
        label_kind=st.sampled_from(["auto", "single", "multi", "regression"]),
        label_separator=st.none() | words.filter(bool),
        max_length=st.integers(2, 10**6),
    ),
    method=methods,
    batch=batches,
    optimizer=st.builds(
        OptimizerConfig,
        learning_rate=st.none() | positive,
        betas=st.tuples(shares, shares),
        max_grad_norm=st.none() | positive,
    ),
    schedule=st.builds(ScheduleConfig, warmup_ratio=shares, warmup_steps=st.none() | st.integers(0, 10**6)),
    engine=engines,
    training=st.builds(
        TrainingConfig,
        epochs=positive,
        seed=st.integers(0, 2**63),
        max_steps=st.none() | counts,
        class_weights=st.sampled_from([None, "balanced"]) | st.dictionaries(words, positive, min_size=1, max_size=3),
    ),
    output=st.builds(OutputConfig, folder=st.none() | words, overwrite=st.booleans()),
)


@pytest.fixture
def write(tmp_path):
    def to_file(text):
        file = tmp_path / "run.yaml"
        file.write_text(text, encoding="utf-8")
        return file

    return to_file


@given(config=configs)
def test_what_is_dumped_loads_back_to_the_same(config, tmp_path_factory):
    file = tmp_path_factory.mktemp("dumped") / "run.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    assert load_config(file=file) == config


@given(config=configs)
def test_what_differs_from_the_defaults_loads_back_to_the_same(config):
    assert load_config(settings=as_settings(config)) == config


def test_the_defaults_need_no_settings():
    assert as_settings(RunConfig()) == []


@pytest.mark.parametrize("name", ["a\x85b", "\x85", "a\u2028b", "\u2029", "schön", "否"])
def test_a_name_outside_ascii_is_dumped_and_loads_back(name, tmp_path):
    config = RunConfig(data={"text_column": name})
    (tmp_path / "run.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(file=tmp_path / "run.yaml") == config


@given(config=configs)
def test_what_is_dumped_is_plain_yaml_in_the_order_of_the_sections(config):
    assert list(yaml.safe_load(dump_config(config))) == list(RunConfig.model_fields)


def test_nothing_given_is_the_defaults():
    assert load_config() == RunConfig()


def test_weights_of_classes_are_a_value_whose_names_are_the_users(write):
    file = write("training: {class_weights: {U.S.: 2, 1: 3, false: 4}}")
    assert load_config(file=file).training.class_weights == {"U.S.": 2, "1": 3, "false": 4}
    other = load_config(file=file, settings=["training.class_weights={spam: 5}"])
    assert other.training.class_weights == {"spam": 5}


def test_later_sources_win_key_by_key(write):
    file = write("training: {epochs: 7, log_every: 3}\nbatch: {global_batch_size: 16}")
    config = load_config(
        preset="gpt2-lora-mlp", file=file, settings=["training.epochs=2"], overrides={"batch.global_batch_size": 8}
    )
    assert config.model.name == "gpt2"  # the preset's
    assert config.training.log_every == 3  # the file's
    assert config.training.epochs == 2  # the setting's
    assert config.batch.global_batch_size == 8  # the override's
    assert config.batch.micro_batch_size == 16  # still the preset's


def test_an_override_of_none_was_not_given():
    assert load_config(overrides={"training.epochs": None, "task": None}) == RunConfig()


@pytest.mark.parametrize(
    "said", [{"settings": ["batch.micro_batch_size=2"]}, {"overrides": {"batch.micro_batch_size": 2}}]
)
def test_a_cut_that_is_said_replaces_the_one_of_the_file(said, tmp_path):
    (tmp_path / "run.yaml").write_text("batch: {global_batch_size: 8, micro_batch_tokens: 4096}")
    batch = load_config(file=tmp_path / "run.yaml", **said).batch
    assert (batch.global_batch_size, batch.micro_batch_size, batch.micro_batch_tokens) == (8, 2, None)
    with pytest.raises(ConfigError, match="both cut the batch"):
        load_config(settings=["batch.micro_batch_tokens=64"], overrides={"batch.micro_batch_size": 2})


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001", "1E-4"])
def test_a_number_may_be_written_as_people_write_it(write, text):
    assert load_config(settings=[f"optimizer.learning_rate={text}"]).learning_rate == 1e-4
    assert load_config(file=write(f"optimizer: {{learning_rate: {text}}}")).learning_rate == 1e-4


def test_a_setting_takes_lists_and_none():
    config = load_config(settings=["method.targets=[attention, mlp]", "optimizer.max_grad_norm=null"])
    assert config.method == Lora(targets=("attention", "mlp"))
    assert config.optimizer.max_grad_norm is None


def test_a_setting_may_hold_an_equals_sign():
    assert load_config(settings=["data.dataset=a=b"]).data.dataset == "a=b"


def test_another_method_keeps_what_it_has_a_field_for(write):
    file = write("method: {name: lora, rank: 32, use_rslora: true}")
    assert load_config(file=file, overrides={"method": "qlora"}).method == Qlora(rank=32, use_rslora=True)
    assert load_config(file=file, overrides={"method": "full"}).method == Full()


def test_a_field_of_the_default_method_needs_no_name():
    assert load_config(settings=["method.rank=4"]).method == Lora(rank=4)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("batch.global_batchsize=8", r"unknown key 'batch.global_batchsize'; did you mean 'global_batch_size'"),
        ("modell.name=gpt2", r"unknown key 'modell'; did you mean 'model'"),
        ("method.ranks=8", r"unknown key 'method.ranks'; did you mean 'rank'"),
        ("method.name=lorra", r"unknown method 'lorra'; did you mean 'lora'"),
        ("batch.global_batch_size=0", r"batch.global_batch_size=0: .*greater than or equal to 1"),
        ("training.epochs=many", r"training.epochs='many': .*number"),
        ("model.precision=fp8", r"model.precision='fp8': .*'fp16', 'bf16'"),
        ("task=translation", r"task='translation': .*'causal-lm'"),
        ("model=gpt2", r"model"),
        ("training.epochs", r"has no '='; write section.field=value"),
        ("training.epochs=[", r"not valid YAML; quote it"),
        ("=3", r"--set '=3' lacks a name before its '='; write section.field=value"),
        ("training.=3", r"'training.=3' lacks a name before"),
        (".epochs=3", r"'.epochs=3' lacks a name before"),
    ],
)
def test_a_wrong_setting_is_answered_with_what_would_be_right(setting, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load_config(settings=[setting])


def test_every_problem_is_named_at_once():
    with pytest.raises(ConfigError) as caught:
        build_config({"batch": {"global_batch_size": 0}, "training": {"epochs": -1, "epoch": 1}})
    assert len(str(caught.value).splitlines()) == 3


def test_an_unknown_preset_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="no preset 'gpt2-lora-mpl'; did you mean 'gpt2-lora-mlp'"):
        load_config(preset="gpt2-lora-mpl")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("- a\n- b\n", "holds a list"),
        ("lora", "holds 'lora' alone; write sections"),
        ("batch: [", "is not valid YAML"),
        ("batch: !!python/object/apply:os.getcwd []", "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_configuration_says_so(write, text, sentence):
    file = write(text)
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_config(file=file)
    assert str(file) in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_bytes(b"batch: \xff\xfe")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(file=file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*absent.yaml: No such file"):
        load_config(file=tmp_path / "absent.yaml")


def test_the_schema_describes_every_section():
    schema = json.loads(json_schema())
    assert set(schema["properties"]) == set(RunConfig.model_fields)
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_cut_that_a_cpu_has_by_default_is_not_unusual(precision):
    settled = RunConfig(model=ModelConfig(precision=precision)).settled("cpu")
    named = settled.model_copy(update={"batch": BatchConfig(micro_batch_tokens=777)})
    unusual, other = (unusual_values(run.model_dump(mode="json")) for run in (settled, named))
    assert unusual == {"model.precision": precision}
    assert other == unusual | {"batch.micro_batch_tokens": 777}
