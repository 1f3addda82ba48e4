"""Whatever the architecture, the cut changes neither loss nor gradient, or it is found that it would."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from ftkit.config.tree import BatchConfig
from ftkit.data import batching
from ftkit.data.arrays import TokenSplit
from ftkit.machine.process import ProcessContext
from ftkit.models.build import trainable_parameters
from ftkit.models.padding import find_side, tolerance_of, unequal_pairs
from tests.families import CASES, READERS_OF_PADDING, architecture
from tests.helpers import build, ragged_split

PAD, END = 1, 2
UNCUT = BatchConfig(micro_batch_size=99)
CUTS = (BatchConfig(micro_batch_size=1), BatchConfig(micro_batch_tokens=70))


def engine_of(family, task, folder):
    torch.manual_seed(7)
    kind = transformers.AutoModel if task == "sequence-classification" else transformers.AutoModelForCausalLM
    kind.from_config(architecture(family)).save_pretrained(folder)
    settings = [f"task={task}", "method.name=full"]
    return build(settings, folder, torch.float32, ProcessContext())[1]


def ended_split(task):
    """Ragged sequences, each closed by the end token as T5's and BART's tokenizers do."""
    split = ragged_split(task, num_samples=8)
    split.tokens[split.offsets[1:] - 1] = END
    return split


def found_side(engine: Any, split: TokenSplit):
    engine.model.eval()
    pairs = unequal_pairs(split, UNCUT, torch.float32)
    with torch.no_grad():
        return find_side(engine.logits, split, pairs, PAD, engine.device, tolerance_of(torch.float32, 2)).side


def gradients(engine, split, cut, side):
    engine.model.zero_grad()
    total, num_targets = 0.0, float(engine.objective.target_weights(split).sum())
    for places in batching.cut(split.lengths, cut, 1)[0]:
        loss = engine.loss(batching.collate(split, places, batching.Padding(PAD, side), engine.device)) / num_targets
        loss.backward()
        total += float(loss.detach())
    found = {name: one.grad for name, one in trainable_parameters(engine.model).items() if one.grad is not None}
    return total, {name: gradient.clone() for name, gradient in found.items()}


@pytest.mark.parametrize(("family", "task"), CASES)
def test_loss_and_gradients_do_not_depend_on_the_cut(family, task, tmp_path):
    engine, split = engine_of(family, task, tmp_path), ended_split(task)
    side = found_side(engine, split)
    assert side == ("left" if family == "xlnet" else "right")
    uncut, wanted = gradients(engine, split, UNCUT, side)
    for cut in CUTS:
        loss, found = gradients(engine, split, cut, side)
        # fp32 sums in another order differ in the last of 24 bits.
        assert loss == pytest.approx(uncut, rel=2e-6)
        assert found.keys() == wanted.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=2e-6, msg=name)


@pytest.mark.parametrize("family", READERS_OF_PADDING)
def test_a_model_that_reads_padding_is_found(family, tmp_path):
    engine, split = engine_of(family, "sequence-classification", tmp_path), ended_split("sequence-classification")
    assert found_side(engine, split) is None
    losses = [gradients(engine, split, cut, "right")[0] for cut in (UNCUT, CUTS[0])]
    assert losses[0] != pytest.approx(losses[1], rel=1e-7)  # it would have mattered
    assert np.isfinite(losses).all()
