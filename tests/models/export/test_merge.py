"""An adapter is merged into its base module by module, to what PEFT makes of both in memory."""

from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from ftkit.config.files import load_config
from ftkit.errors import ModelError
from ftkit.models.export.merge import write_merged
from ftkit.models.saving.write import write_tensors
from ftkit.models.sources.source import load_config as architecture_of
from ftkit.models.sources.source import resolve_source
from tests.helpers import save_tiny_model

CASES: dict[str, dict[str, Any]] = {
    "bert": {"target_modules": ["query", "dense"], "modules_to_save": ["classifier"]},
    "gpt2": {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "use_rslora": True},
    "llama": {"target_modules": "all-linear", "use_dora": True},
    "mistral": {"target_modules": ["q_proj"], "layers_to_transform": [1]},
    "mixtral": {
        "target_modules": ["q_proj", "o_proj"],
        "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
    },
}
"""A family, and the adapter: beside Linear with a head, Conv1D, DoRA, a single layer, experts stored one by one."""


def saved_adapter(folder, family):
    """Save a random base and a random adapter of it; returns the model that PEFT merges in memory."""
    base = save_tiny_model(folder / "base", family)
    heads = {"bert": "SequenceClassification"}
    kind: Any = getattr(transformers, f"AutoModelFor{heads.get(family, 'CausalLM')}")
    task = "SEQ_CLS" if family == "bert" else "CAUSAL_LM"
    torch.manual_seed(3)
    given = {"num_labels": 3} if family == "bert" else {}
    model = kind.from_pretrained(base, **given).eval()
    settings = {name: value for name, value in CASES[family].items() if name != "target_modules"}
    targets = CASES[family]["target_modules"]
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"] if targets == "all-linear" else targets
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=4, lora_alpha=8, task_type=task, target_modules=targets, **settings)
    )
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and "magnitude" not in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(folder / "adapter")
    return adapted.merge_and_unload()


def merge(folder, family, dtype=torch.float32):
    task = "sequence-classification" if family == "bert" else "causal-lm"
    config = load_config(settings=[f"model.name={folder / 'adapter'}", f"task={task}", "model.new_head=false"])
    source = resolve_source(config.model, config.task)
    architecture = architecture_of(source, ("a", "b", "c") if family == "bert" else None, 1)
    (folder / "merged").mkdir()
    notes: list[str] = []
    write_merged(config, source, architecture, dtype, folder / "merged", notes.append)
    return notes


@pytest.mark.parametrize("family", CASES)
def test_a_merged_model_has_the_weights_that_peft_merges_in_memory(family, tmp_path):
    expected = saved_adapter(tmp_path, family)
    notes = merge(tmp_path, family)
    found = type(expected).from_pretrained(tmp_path / "merged")
    assert "as a whole" not in " ".join(notes)
    assert found.state_dict().keys() == expected.state_dict().keys()
    for name, weight in expected.state_dict().items():
        # The sums are taken in the same order, in fp32: they are the same numbers.
        assert torch.equal(found.state_dict()[name], weight), name
    if (
        family == "mixtral"
    ):  # its experts are written one by one, as those of its base are, for programs beside transformers
        stored, base = (load_file(tmp_path / one / "model.safetensors") for one in ("merged", "base"))
        assert stored.keys() == base.keys()


def test_weights_are_written_in_the_type_that_is_asked_for_after_a_sum_in_fp32(tmp_path):
    expected = saved_adapter(tmp_path, "llama")
    merge(tmp_path, "llama", torch.bfloat16)
    stored = load_file(tmp_path / "merged" / "model.safetensors")
    assert {one.dtype for one in stored.values()} == {torch.bfloat16}
    assert all(torch.equal(stored[name], weight.bfloat16()) for name, weight in expected.state_dict().items())


def test_an_adapter_with_numbers_that_are_not_finite_is_refused_by_the_name_of_the_module(tmp_path):
    saved_adapter(tmp_path, "mistral")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    next(iter(weights.values()))[0, 0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.1\.self_attn\.q_proj: NaNs detected.*another checkpoint"):
        merge(tmp_path, "mistral")


def test_files_are_as_large_as_is_asked_for_and_transformers_reads_them(tmp_path):
    save_tiny_model(tmp_path / "base", "llama")
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    state = whole.state_dict()
    kinds = {name: (one.dtype, tuple(one.shape)) for name, one in state.items()}
    (tmp_path / "cut").mkdir()
    size = write_tensors(tmp_path / "cut", kinds, reversed(state.items()), max_shard_bytes=50_000)
    whole.config.save_pretrained(tmp_path / "cut")
    shards = list((tmp_path / "cut").glob("*.safetensors"))
    assert size == sum(one.nbytes for one in state.values())
    assert len(shards) > 2
    assert all(file.stat().st_size < 70_000 for file in shards)
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "cut").state_dict()
    assert all(torch.equal(found[name], one) for name, one in state.items())
