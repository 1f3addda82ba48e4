"""What trains is what the method says, on every family; pads and pooled positions change no logit."""

import json
import warnings

import numpy as np
import pytest
import torch

from ftkit.config.files import load_config
from ftkit.config.tree import ModelConfig
from ftkit.data import batching
from ftkit.errors import ConfigError, ModelError
from ftkit.models import build as model
from ftkit.models.sources import source as ftkit_source
from ftkit.models.structure import heads
from ftkit.models.structure.targets import choose_targets
from tests.helpers import FAMILIES, ragged_split, save_tiny_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {family: save_tiny_model(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


def built(folder, *settings, dtype=torch.float32, empty=False):
    config = load_config(settings=[f"model.name={folder}", *settings])
    source = ftkit_source.resolve_source(config.model, config.task)
    tokenizer = ftkit_source.load_tokenizer(source)
    labels = ("a", "b", "c") if config.task == "sequence-classification" else None
    architecture = ftkit_source.load_config(source, labels, tokenizer.pad_token_id)
    if empty:
        return model.build_empty_model(config, architecture, dtype)
    return model.build_model(config, source, architecture, dtype)


@pytest.mark.parametrize(
    ("family", "attention", "mlp"),
    [
        ("gpt2", {"attn.c_attn", "attn.c_proj"}, {"mlp.c_fc", "mlp.c_proj"}),
        (
            "bert",
            {"attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"},
            {"intermediate.dense", "output.dense"},
        ),
        (
            "llama",
            {f"self_attn.{one}_proj" for one in "qkvo"},
            {f"mlp.{one}_proj" for one in ("gate", "up", "down")},
        ),
    ],
)
def test_presets_of_targets_mean_the_linear_layers_of_each_architecture(family, attention, mlp, folders):
    base = built(folders[family], "method.name=full")
    for preset, expected in (("attention", attention), ("mlp", mlp), ("all-linear", attention | mlp)):
        names = choose_targets(base, (preset,), None, heads.find_head(base, ()))
        assert {name.split(".", name.split(".").index("0") + 1)[-1] for name in names if ".0." in name} == expected
        assert len(names) == 2 * len(expected)


def test_an_adapted_model_is_made_without_a_warning(folders):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        built(folders["bert"], "method.name=lora")


def test_targets_by_name_adapt_the_conv1d_of_gpt2_and_nothing_else(folders):
    module = built(folders["gpt2"], "method.targets=[c_fc, c_proj]", "method.rank=4")
    adapted = {
        name.split(".lora_A")[0].rpartition("h.")[2] for name in model.trainable_parameters(module) if "lora_A" in name
    }
    assert adapted == {f"{layer}.{one}" for layer in (0, 1) for one in ("attn.c_proj", "mlp.c_fc", "mlp.c_proj")}
    assert module.peft_config["default"].fan_in_fan_out


def test_adapters_of_chosen_layers_lie_in_those_layers_alone(folders):
    module = built(folders["llama"], "method.layers=[1]")
    assert {name.split("layers.")[1][0] for name in model.trainable_parameters(module) if "lora" in name} == {"1"}


@pytest.mark.parametrize("switch", ["use_rslora", "use_dora"])
def test_rslora_and_dora_reach_peft(switch, folders):
    module = built(folders["llama"], f"method.{switch}=true", "method.rank=4", "method.alpha=8")
    layer = module.base_model.model.model.layers[0].self_attn.q_proj
    if switch == "use_rslora":
        assert layer.scaling["default"] == 8 / 4**0.5
    else:
        assert any("magnitude" in name for name in model.trainable_parameters(module))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_new_head_trains_and_is_saved_with_the_adapters(family, folders):
    module = built(folders[family])
    heads = {"gpt2": ["score"], "llama": ["score"], "bert": ["classifier"], "roberta": ["classifier"]}[family]
    assert module.peft_config["default"].modules_to_save == heads
    trained = [name for name in model.trainable_parameters(module) if "modules_to_save" in name]
    assert trained


@pytest.mark.parametrize("name", ["feature-extraction", "lora", "qlora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_empty_model_has_the_trainable_tensors_of_the_real_one(family, name, folders):
    real, empty = (
        built(folders[family], f"method.name={name}", dtype=torch.bfloat16, empty=one) for one in (False, True)
    )
    described = [
        [(key, value.shape, value.dtype) for key, value in model.trainable_parameters(one).items()]
        for one in (real, empty)
    ]
    assert described[0] == described[1]
    assert {value.device.type for value in empty.parameters()} == {"meta"}


def test_qlora_upcasts_nothing_and_keeps_embeddings_and_head_out_of_4_bits(folders):
    module = built(folders["llama"], "method.name=qlora", "task=causal-lm", dtype=torch.bfloat16)
    kinds = {type(one).__name__ for name, one in module.named_modules() if name.endswith("lm_head")}
    assert kinds == {"Linear"}
    assert {one.dtype for one in module.parameters()} == {torch.bfloat16}
    packed = [one for one in module.parameters() if type(one).__name__ == "Params4bit"]
    assert len(packed) == 14
    assert all(one.bnb_quantized for one in packed)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sequence_gets_the_same_logits_alone_and_padded_beside_longer_ones(family, folders):
    module = built(folders[family], "method.name=full").eval()
    split = ragged_split("sequence-classification")
    rows = np.argsort(split.lengths)[[0, 10, 23]]
    padding = batching.Padding(module.config.pad_token_id)
    with torch.no_grad():
        together = module(**batching.collate(split, rows, padding, torch.device("cpu")).inputs()).logits
        for place, row in enumerate(rows):
            alone = batching.collate(split, np.array([row]), padding, torch.device("cpu"))
            torch.testing.assert_close(module(**alone.inputs()).logits[0], together[place], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_tokenizer_without_a_pad_token_pads_with_its_end_token(family, folders):
    tokenizer = ftkit_source.load_tokenizer(
        ftkit_source.resolve_source(ModelConfig(name=str(folders[family])), "causal-lm")
    )
    assert tokenizer.pad_token == "[END]"


def test_a_frozen_trunk_stays_in_evaluation_mode_while_its_head_trains(folders):
    module = built(folders["roberta"], "method.name=feature-extraction")
    model.set_training(module, True)
    assert not any(one.training for one in module.roberta.modules())
    assert module.classifier.training
    adapted = built(folders["roberta"])
    model.set_training(adapted, True)
    assert all(one.training for one in adapted.modules())


def test_weights_are_counted_one_by_one_in_4_bits_too(folders):
    real, packed = (built(folders["llama"], f"method.name={name}") for name in ("lora", "qlora"))
    assert model.count_parameters(packed) == model.count_parameters(real)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["method.targets=[c_fcc]"], "c_fcc.*did you mean 'c_fc'"),
        (["method.layers=[7]"], r"names \[7\].*layers 0 to 1"),
        (["task=causal-lm", "method.name=feature-extraction"], "tied weights.*choose method lora"),
    ],
)
def test_a_method_that_does_not_fit_the_model_is_one_sentence(settings, sentence, folders):
    with pytest.raises(ModelError, match=sentence):
        built(folders["gpt2"], *settings)


def test_a_model_that_is_not_there_is_one_sentence(tmp_path, folders):
    for name, sentence in (
        (str(tmp_path / "none"), "no model at"),
        (str(tmp_path), "no config.json"),
        ("no-such-owner/no-such-model", "cannot load a tokenizer from 'no-such-owner/no-such-model'"),
    ):
        with pytest.raises(ModelError, match=sentence):
            built(name)
    with pytest.raises(ModelError, match=r"not a model for causal-lm|cannot load"):
        built(folders["bert"], "task=causal-lm")


def test_pickled_weights_are_refused(tmp_path):
    folder = save_tiny_model(tmp_path / "pickled", "bert")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"cannot load weights.*pickles.*save_pretrained"):
        built(folder)


def test_a_shard_that_is_missing_is_named(tmp_path):
    folder = save_tiny_model(tmp_path, "bert")
    index = {"metadata": {}, "weight_map": {"embeddings.word_embeddings.weight": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-00001-of-00001\.safetensors\. Put that file back"):
        built(folder)


def test_truncated_weights_are_one_sentence(tmp_path):
    folder = save_tiny_model(tmp_path / "cut", "bert")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(ModelError, match=r"cannot load weights.*copy or download them again"):
        built(folder)


@pytest.mark.parametrize(("family", "limit"), [("gpt2", 64), ("roberta", 78)])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_sequence_beyond_the_table_of_positions_is_refused(family, limit, method, folders):
    """RoBERTa's table of 80 starts behind the padding token, which is number 1."""
    made = built(folders[family], f"method.name={method}")
    model.check_positions(made, limit)
    with pytest.raises(ConfigError, match=f"{limit + 1} tokens.*--max-length {limit}"):
        model.check_positions(made, limit + 1)


def test_rotary_positions_have_no_end(folders):
    model.check_positions(built(folders["llama"]), 10**6)
