"""Training, profiling and planning run one and the same step: a second copy would fall behind it unseen."""

from collections import Counter

import pytest
from torch._subclasses.fake_tensor import FakeTensor

import ftkit
from ftkit.machine.process import ProcessContext
from ftkit.profile.profiler import profile_run
from ftkit.step import step
from tests.helpers import WORDS, save_tiny_model


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    model = save_tiny_model(folder / "model", "gpt2")
    rows = [f"{word} {other},{word}\n" for word in ("good", "bad") for other in WORDS[2:]]
    (folder / "texts.csv").write_text("".join(["text,label\n", *rows]))
    return [
        f"model.name={model}", f"data.dataset={folder / 'texts.csv'}", f"output.folder={folder / 'out'}",
        "training.max_steps=3", "training.plan_first=false", "batch.global_batch_size=4", "model.precision=fp32",
        "data.max_length=32", "output.reopen=false",
    ]  # fmt: skip


@pytest.fixture
def steps(monkeypatch):
    """Count the calls of the step by what its tensors hold: values, or shapes alone."""
    counted: Counter[str] = Counter()
    inner = step.train_step

    def train_step(engine, micro_batches, *rest):
        ids = micro_batches[0].input_ids
        is_empty = ids.is_meta or isinstance(ids, FakeTensor)
        counted["shapes alone" if is_empty else "values"] += 1
        return inner(engine, micro_batches, *rest)

    monkeypatch.setattr(step, "train_step", train_step)
    return counted


def test_training_takes_this_step(settings, steps):
    ftkit.train(ftkit.load_config(settings=[*settings, "training.trial_step=never"]))
    assert steps == {"values": 3}


def test_a_profile_takes_this_step(settings, steps, tmp_path):
    profile_run(ftkit.load_config(settings=settings), ProcessContext(), tmp_path, num_warmup=1, num_timed=2)
    assert steps == {"values": 2 + 1 + 2}  # counted, warm-up, timed


@pytest.mark.parametrize("gpu", ["t4", None])
def test_a_plan_takes_this_step_of_a_gpu_or_of_this_machine(gpu, settings, steps):
    ftkit.plan(ftkit.load_config(settings=settings), gpu=gpu)
    assert set(steps) == {"shapes alone"}
