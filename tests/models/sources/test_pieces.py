"""What the files of a model hold is joined into its tensors as transformers joins it."""

import pytest
import torch
import transformers

from ftkit.models.sources.foreign import Conversion, Operation, _conversion
from ftkit.models.sources.pieces import _pieces, pieces_in_files
from ftkit.models.sources.source import Source
from ftkit.models.sources.stored import open_stored

WIDE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 32, "num_key_value_heads": 2}
EXPERTS = {
    "mixtral": {"num_local_experts": 12},
    "olmoe": {"num_experts": 12},
    "qwen2_moe": {"num_experts": 12, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8},
}
"""Of twelve, so that an order of names as texts would be another one."""


@pytest.mark.parametrize("family", EXPERTS)
def test_tensors_that_are_stored_one_by_one_are_read_as_transformers_loads_them(family, tmp_path):
    config = transformers.AutoConfig.for_model(family, intermediate_size=24, **WIDE, **EXPERTS[family])
    transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    with open_stored(Source(str(tmp_path)), model) as stored:
        assert sum("experts" in name for name in stored.files) > 2 * 12
        for name, tensor in model.state_dict().items():
            assert torch.equal(stored.read(name), tensor)
            # Into another type it goes a stored tensor at a time, and the host's memory has no more of it.
            largest, whole = 0, torch.empty(tensor.shape)

            def room(num_bytes):
                nonlocal largest
                largest = max(largest, num_bytes)
                return torch.empty(num_bytes, dtype=torch.uint8)

            stored.read_into(name, whole, room)
            assert torch.equal(whole, tensor.float())
            assert "experts" not in name or largest <= tensor.nbytes / 12


@pytest.mark.parametrize("projection", ["w1", "w2"], ids=["stacked and joined", "stacked"])
def test_a_weight_whose_stored_tensors_do_not_fit_together_has_no_pieces(projection):
    config = transformers.AutoConfig.for_model("mixtral", intermediate_size=24, **WIDE, num_local_experts=2)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    expert = "model.layers.1.block_sparse_moe.experts.{}.{}.weight"
    shapes = {expert.format(number, name): (24, 16) for number in (0, 1) for name in ("w1", "w3")}
    shapes |= {expert.format(number, "w2"): (16, 24) for number in (0, 1)}
    assert set(pieces_in_files(model, shapes)) == {
        "model.layers.1.mlp.experts.gate_up_proj",
        "model.layers.1.mlp.experts.down_proj",
    }
    shapes[expert.format(1, projection)] = (24, 15)
    assert len(pieces_in_files(model, shapes)) == 1


def test_a_tensor_that_no_one_rule_makes_has_no_pieces():
    conversion = _conversion({"experts.*.w1": ["experts.0.w1"], "q_proj": ["q_proj"]}, [])
    assert conversion == Conversion((("experts.0.w1",), ("q_proj",)), ((Operation.OTHER, 0),))
    assert _pieces(conversion, {"experts.0.w1": (2, 2), "q_proj": (2, 2)}) is None
