"""The recorder on the step of its docstring's example."""

import torch
from torch import nn

from ftkit.observe.peaks import kinds
from ftkit.observe.recorder import Recorder
from ftkit.observe.tape import Role
from ftkit.step.observer import Phase


def test_the_tape_of_the_example_is_the_one_that_its_docstring_shows():
    model, inputs = nn.Sequential(nn.Linear(4, 3, bias=False), nn.GELU()), torch.ones(2, 4)
    recorder = Recorder()
    with recorder.inside(model, {}):
        recorder.see(model.named_parameters(), Role.TRAINABLE)
        recorder.see([("x", inputs)], Role.INPUT)
        recorder.mark(Phase.LOAD)
        with recorder.during(Phase.FORWARD):
            loss = model(inputs).sum()
        with recorder.during(Phase.BACKWARD):
            loss.backward()

    tape = recorder.tape
    assert [(birth.op or birth.module, birth.size) for birth in tape.births] == [
        ("0.weight", 48), ("x", 32), ("mm.default", 24), ("gelu.default", 24),
        ("sum.default", 4), ("ones_like.default", 4), ("gelu_backward.default", 24), ("mm.default", 48),
    ]  # fmt: skip
    assert [number if is_birth else -number for number, is_birth, _ in tape.walk()] == [
        0, 1, 2, 3, 4, -3, 5, 6, -2, 7, -6, -5,
    ]  # fmt: skip
    assert tape.marks == [(2, Phase.LOAD), (6, Phase.FORWARD), (12, Phase.BACKWARD)]
    assert list(tape.live_bytes()) == [48, 80, 104, 128, 132, 108, 112, 136, 112, 160, 136, 132]
    assert [str(kind) for kind in kinds(tape)] == [
        "parameter", "buffer", "activation", "temporary", "activation", "temporary", "temporary", "gradient",
    ]  # fmt: skip


def test_weights_that_were_copied_under_the_recorder_are_named_by_their_copies():
    """As where a model goes to an accelerator while it is watched."""
    model = nn.Sequential(nn.Linear(4, 3, bias=False))
    recorder = Recorder()
    with recorder.inside(model, {"0": 0}):
        weight = model[0].weight
        weight.data = weight.data.clone()
        recorder.see(model.named_parameters(), Role.TRAINABLE, {"0": 0})

    birth = recorder.tape.births[-1]  # before it the weight that was copied
    assert (birth.role, birth.module, birth.layer, birth.size) == (Role.TRAINABLE, "0.weight", 0, 48)
    assert str(kinds(recorder.tape)[-1]) == "parameter"
