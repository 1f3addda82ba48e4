"""What the files of a model hold is joined into its tensors as transformers joins it."""

import pytest
import torch
import transformers

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
