"""What a model is trained for: the loss of plain transformers and torch, whatever the cut, for each kind of labels."""

import numpy as np
import pytest
import torch
from torch import nn

from ftkit.config.tree import BatchConfig
from ftkit.data import batching
from ftkit.machine.process import ProcessContext
from ftkit.models.build import trainable_parameters
from ftkit.models.objective import ClassCrossEntropy, LabelCrossEntropy, SquaredError
from tests.helpers import LABELS, PADDING, build, ragged_split, save_tiny_model

TASK = "sequence-classification"
CPU = torch.device("cpu")
WEIGHTS = (0.5, 2.0, 7.25)
KINDS = [("single", None), ("single", WEIGHTS), ("multi", None), ("multi", WEIGHTS), ("regression", None)]
CUTS = (BatchConfig(micro_batch_size=99), BatchConfig(micro_batch_size=1), BatchConfig(micro_batch_size=5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("gpt2"), "gpt2")


def built(folder, kind, weights=None):
    settings = [f"data.label_kind={kind}", "method.name=full"]
    named = ", ".join(f"{name}: {weight}" for name, weight in zip(LABELS.names, weights or (), strict=False))
    settings += [f"training.class_weights={{{named}}}"] if weights else []
    return build(settings, folder, torch.float32, ProcessContext())[1]


def gradients(engine, split, cut):
    """The loss and the gradients of one global batch, cut in a way."""
    engine.model.zero_grad()
    total, num_targets = 0.0, float(engine.objective.target_weights(split).sum())
    for places in batching.cut(split.lengths, cut, 1)[0]:
        loss = engine.loss(batching.collate(split, places, PADDING, CPU)) / num_targets
        loss.backward()
        total += float(loss.detach())
    return total, {name: one.grad.clone() for name, one in trainable_parameters(engine.model).items()}


@pytest.mark.parametrize(("kind", "weights"), KINDS)
def test_loss_and_gradients_do_not_depend_on_the_cut(kind, weights, folder):
    engine, split = built(folder, kind, weights), ragged_split(TASK, kind=kind)
    (uncut, wanted), *others = [gradients(engine, split, cut) for cut in CUTS]
    for loss, found in others:
        # fp32 sums in another order differ in the last of 24 bits.
        assert loss == pytest.approx(uncut, rel=1e-6)
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", ["single", "multi", "regression"])
def test_one_uncut_batch_has_the_loss_of_plain_transformers(kind, folder):
    engine, split = built(folder, kind), ragged_split(TASK, kind=kind)
    batch = batching.collate(split, np.arange(len(split)), PADDING, CPU)
    plain = engine.model(**batch.inputs(), labels=batch.labels).loss
    assert gradients(engine, split, CUTS[2])[0] == pytest.approx(float(plain.detach()), rel=1e-6)


def test_weighted_classes_have_the_loss_of_torch(folder):
    engine, split = built(folder, "single", WEIGHTS), ragged_split(TASK)
    batch = batching.collate(split, np.arange(len(split)), PADDING, CPU)
    with torch.no_grad():
        theirs = nn.CrossEntropyLoss(torch.tensor(WEIGHTS))(engine.logits(batch), batch.labels)
    assert gradients(engine, split, CUTS[1])[0] == pytest.approx(float(theirs), rel=1e-6)


def test_a_weighted_label_counts_as_often_as_its_weight_where_a_text_has_it(folder):
    engine, split = built(folder, "multi", (2.0, 3.0, 1.0)), ragged_split(TASK, kind="multi")
    batch = batching.collate(split, np.arange(len(split)), PADDING, CPU)
    with torch.no_grad():
        logits = engine.logits(batch)
    terms = [
        nn.functional.binary_cross_entropy_with_logits(logits[row, label], batch.labels[row, label])
        for row in range(len(split))
        for label, weight in enumerate((2, 3, 1))
        for _ in range(weight if batch.labels[row, label] == 1 else 1)
    ]
    assert gradients(engine, split, CUTS[1])[0] == pytest.approx(float(torch.stack(terms).mean()), rel=1e-6)


@pytest.mark.parametrize(
    ("objective", "kind", "num_outputs"),
    [
        (ClassCrossEntropy(WEIGHTS), "single", 3),
        (LabelCrossEntropy(3, WEIGHTS), "multi", 3),
        (SquaredError(), "regression", 1),
    ],
)
def test_a_rank_without_sequences_adds_neither_loss_nor_gradient(objective, kind, num_outputs):
    split = ragged_split(TASK, kind=kind)
    labels = batching.collate(split, np.array([], dtype=np.int64), PADDING, CPU).labels
    logits = torch.full((1, num_outputs), 3.0, requires_grad=True)
    loss = objective.score(logits, labels)
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize(("kind", "weights"), KINDS)
def test_blank_labels_are_labels_of_the_objective(kind, weights, folder):
    engine = built(folder, kind, weights)
    real = batching.collate(ragged_split(TASK, kind=kind), np.arange(4), PADDING, CPU)
    blank = engine.objective.blank_labels(real.input_ids)
    assert (blank.shape, blank.dtype) == (real.labels.shape, real.labels.dtype)


def test_an_evaluation_weighs_nothing(folder):
    split = ragged_split(TASK)
    plain = built(folder, "single").objective
    weighted = built(folder, "single", WEIGHTS).objective
    assert weighted != plain
    assert weighted.unweighted() == plain
    assert weighted.target_weights(split).tolist() == [WEIGHTS[label] for label in split.labels]
