"""Who watches a step is told of its phases, and changes nothing."""

from contextlib import contextmanager

import pytest
import torch

from ftkit.data import batching
from ftkit.data.arrays import Labels
from ftkit.machine.process import ProcessContext
from ftkit.step import step
from ftkit.step.observer import NOTHING, Observers, Phase
from ftkit.training.evaluate import evaluate
from tests.helpers import PADDING, build, ragged_split, save_tiny_model


class Diary:
    """Writes down when phases begin and end."""

    def __init__(self, name=""):
        self.name, self.lines = name, []

    @contextmanager
    def during(self, phase):
        self.lines.append(f"{self.name}{phase}")
        yield
        self.lines.append(f"{self.name}end")


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    model = save_tiny_model(tmp_path_factory.mktemp("model"), "gpt2")
    config, engine = build(["batch.micro_batch_size=2"], model, torch.float32, ProcessContext())
    return config, engine, ragged_split(config.task, num_samples=4)


def test_a_step_tells_its_phases_and_an_evaluation_its_own(ready):
    config, engine, split = ready
    micro_batches = [
        batching.collate(split, rows, PADDING, engine.device)
        for rows in batching.cut(split.lengths, config.batch, 1)[0]
    ]
    diary = Diary()
    step.train_step(engine, micro_batches, 4, 0.0, diary)
    evaluate(engine, split, config.batch, PADDING, Labels("single", ("a", "b", "c")), diary)
    told = [line for line in diary.lines if line != "end"]
    assert told == ["forward", "backward", "forward", "backward", "optimizer", "evaluation"]
    assert diary.lines[1::2] == ["end"] * 6  # no phase lies within another


def test_several_observers_are_told_in_their_order_and_of_the_end_in_the_other():
    first = Diary("1 ")
    second = Diary("2 ")
    second.lines = first.lines
    with Observers((first, second)).during(Phase.LOAD):
        pass
    assert first.lines == ["1 load", "2 load", "2 end", "1 end"]
    with NOTHING.during(Phase.LOAD):
        pass


def test_a_phase_that_fails_is_not_told_to_have_ended():
    diary = Diary()
    with pytest.raises(MemoryError), Observers((diary,)).during(Phase.FORWARD):
        raise MemoryError
    assert diary.lines == ["forward"]
