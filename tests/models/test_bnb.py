"""Packing a model that is loaded."""

import weakref

import torch
from torch import nn

from ftkit.models import bnb


def test_a_weight_is_given_back_once_it_is_packed(monkeypatch):
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
    whole = [weakref.ref(layer.weight) for layer in model]
    alive, pack = [], bnb._linear_4bit

    def counted(module, packing):
        alive.append(sum(weight() is not None for weight in whole))
        return pack(module, packing)

    monkeypatch.setattr(bnb, "_linear_4bit", counted)
    bnb.quantize(model, bnb.Packing("nf4", True, torch.float32), keep=())
    assert alive == [4, 3, 2, 1]
