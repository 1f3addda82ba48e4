"""A model runs from above its frozen trunk as it does whole, whatever its architecture."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

from ftkit.data.batching import Padding, collate
from ftkit.errors import ModelError
from ftkit.models.build import set_training
from ftkit.models.methods.full import Full
from ftkit.models.methods.head import FeatureExtraction
from ftkit.models.methods.lora import Lora
from ftkit.models.sources.start import Start
from ftkit.models.structure.heads import find_head
from ftkit.models.trunk.closed import closed
from ftkit.models.trunk.cut import crossing, find_cut
from tests import families
from tests.helpers import ragged_split

CPU = torch.device("cpu")
ONE_ENTRY = {"bert": "dropout", "distilbert": "pre_classifier", "deberta-v2": "pooler", "modernbert": "head"}
"""Where the head of an encoder begins; of the others it is `classifier`, of decoders `score`."""
NEEDS_ITS_TOKENS = ("bart", "mt5")
"""They look for a token in the texts, which these do not have."""


def build(family, method, task="sequence-classification"):
    config = families.architecture(family)
    config.num_labels, config.use_cache = 3, False
    name = "SequenceClassification" if task == "sequence-classification" else "CausalLM"
    kind = getattr(transformers, f"AutoModelFor{name}")
    torch.manual_seed(0)
    model = kind.from_config(config).eval()
    return method.prepare(model, Start(head=find_head(model, ())), torch.float32)


class Held:
    def __init__(self, states, is_pooled):
        self.of, self.is_pooled = states, is_pooled

    def states(self, rows):
        return [self.of[row] for row in rows]


def whole_and_closed(model, task, side="right"):
    """Return the cut, and the logits of both, at tokens alone."""
    split, rows, padding = ragged_split(task, 6), np.arange(6), Padding(1, side)
    batch = collate(split, rows, padding, CPU)
    cut = find_cut(model, batch)
    with torch.inference_mode():
        whole = model(**batch.inputs()).logits
    held = replace(split, hidden=Held(crossing(model, cut, batch), cut.is_pooled))
    with closed(model, cut), torch.inference_mode():
        num_left = sum(one.numel() for one in model.parameters())
        head = model(**collate(held, rows, padding, CPU).inputs()).logits
    is_token = batch.attention_mask == 1 if whole.dim() == 3 else slice(None)
    return cut, whole[is_token], head[is_token], num_left


@pytest.mark.parametrize(
    "family", [name for name in (*families.ENCODERS, *families.DECODERS) if name not in NEEDS_ITS_TOKENS]
)
def test_a_head_alone_gives_the_logits_of_the_whole_model_from_one_vector_a_sequence(family):
    model = build(family, FeatureExtraction())
    before = sum(one.numel() for one in model.parameters())
    cut, whole, head, num_left = whole_and_closed(
        model, "sequence-classification", "left" if family == "xlnet" else "right"
    )
    assert cut.is_pooled
    usual = "score" if family in families.DECODERS else "classifier"
    assert cut.entry == {"albert": "dropout", "xlnet": "sequence_summary", **ONE_ENTRY}.get(family, usual)
    # A decoder's head multiplies one row of each sequence in the place of all: two roundings in fp32.
    assert torch.allclose(whole, head, rtol=0, atol=3e-7 * float(whole.abs().max()))
    assert num_left < before / 2
    assert sum(one.numel() for one in model.parameters()) == before


@pytest.mark.parametrize(("family", "task"), [case for case in families.CASES if case[0] not in NEEDS_ITS_TOKENS])
def test_the_top_layer_alone_gives_the_logits_of_the_whole_model_bit_by_bit(family, task):
    if family in ("albert", "longformer", "xlnet", "mamba"):
        pytest.skip("shares its layers, pads or turns what runs through them, or has no adapters")
    model = build(family, Lora(top_layers=1), task)
    cut, whole, top, _ = whole_and_closed(model, task)
    assert cut.entry.endswith(".1")
    assert [name for name, _ in cut.layers] == [f"{cut.entry[:-2]}.0"]
    assert torch.equal(whole, top)


@pytest.mark.parametrize(("family", "said"), [("longformer", "not a row for each token"), ("xlnet", "not a row")])
def test_a_model_that_pads_or_turns_what_runs_through_its_layers_is_refused_by_the_shape(family, said):
    batch = collate(ragged_split("sequence-classification", 4), np.arange(4), Padding(1), CPU)
    with pytest.raises(ModelError, match=said):
        find_cut(build(family, Lora(top_layers=1)), batch)


@pytest.mark.parametrize("method", [Full(), Lora()])
def test_a_model_that_trains_in_all_layers_has_no_trunk(method):
    batch = collate(ragged_split("sequence-classification", 4), np.arange(4), Padding(1), CPU)
    with pytest.raises(ModelError, match="nothing below what trains is frozen"):
        find_cut(build("bert", method), batch)


@pytest.mark.parametrize("method", [Full(top_layers=1), Lora(top_layers=1)])
def test_the_top_layers_alone_train_and_drop_out(method):
    model = build("bert", method)
    set_training(model, True)
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    assert all(".encoder.layer.1." in name or "classifier" in name for name in trained)
    assert any(".encoder.layer.1." in name for name in trained)
    drops = [name for name, one in model.named_modules() if isinstance(one, torch.nn.Dropout) and one.training]
    assert not any("embeddings" in name or ".layer.0." in name for name in drops)
    assert sum(".layer.1." in name for name in drops) >= 2


def test_more_layers_than_there_are_is_refused():
    with pytest.raises(ModelError, match=r"method\.top_layers=3, and the model has 2 layers"):
        build("bert", Lora(top_layers=3))
