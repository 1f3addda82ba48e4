"""MLPs in tiles: the same losses and gradients up to the order of sums, and wide hidden states of a tile alone."""

import pytest
import torch

from ftkit.errors import ModelError
from ftkit.machine.process import ProcessContext
from tests.helpers import build, ragged_split, save_tiny_model, take_steps

FAMILIES = ["gpt2", "llama", "gemma2", "modernbert", "distilbert", "falcon"]
TILE = "model.mlp_tile_tokens=7"  # of no sequence's length
EVERY = ["task=sequence-classification", "method.name=lora", "method.targets=[all-linear]", "method.dropout=0"]
EVERY += ["batch.micro_batch_tokens=200", "batch.global_batch_size=8"]


@pytest.mark.parametrize("recompute", ["none", "layer"])
@pytest.mark.parametrize("family", FAMILIES)
def test_tiles_train_as_the_whole_does_up_to_the_order_of_sums(family, recompute, tmp_path):
    model = save_tiny_model(tmp_path, family)
    runs = []
    for more in ([], [TILE]):
        settings = [*EVERY, f"model.recompute={recompute}", *more]
        runs.append(take_steps(*build(settings, model, torch.float32, ProcessContext()), ragged_split(EVERY[0][5:])))
    whole, tiled = runs
    # Sums over tokens are taken in another order: some tens of roundings of 2**-24 each, after several steps.
    assert tiled.losses == pytest.approx(whole.losses, rel=1e-5)
    assert tiled.norms == pytest.approx(whole.norms, rel=1e-4)


@pytest.mark.parametrize("family", ["mixtral", "bert"])
def test_a_mixture_and_a_layer_without_a_module_for_it_are_refused(family, tmp_path):
    with pytest.raises(ModelError, match=r"leave model\.mlp_tile_tokens out"):
        build([*EVERY, TILE], save_tiny_model(tmp_path, family), torch.float32, ProcessContext())


def test_no_wide_hidden_state_has_more_tokens_than_a_tile(tmp_path):
    settings = [*EVERY, "model.recompute=layer", TILE]
    config, engine = build(settings, save_tiny_model(tmp_path, "llama"), torch.float32, ProcessContext())
    seen = []
    for name, module in engine.model.named_modules():
        if name.endswith("down_proj"):
            module.register_forward_hook(lambda _, args, __: seen.append(args[0].flatten(0, -2).shape[0]))
    take_steps(config, engine, ragged_split("sequence-classification"), num_steps=1)
    assert max(seen) == 7
