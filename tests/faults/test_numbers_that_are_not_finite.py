"""Numbers that are not finite, planted where a test wants them: none is kept, and the run goes on from before them."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ftkit.config.files import load_config
from ftkit.engine.plain import PlainEngine
from ftkit.errors import DivergedError
from ftkit.machine.process import ProcessContext
from ftkit.training.loop import train_run
from ftkit.training.reporters import Reporters
from tests.e2e.command import flags, run

STEPS, BAD = 8, 5


def train(work, folder, *settings, resume=False):
    """Eight steps, a checkpoint after every second, and no line of the log that would read a loss."""
    config = load_config(
        settings=[
            f"model.name={work / 'bert'}", f"data.dataset={work / 'texts.csv'}", f"output.folder={folder}",
            "output.reopen=false",
            "model.precision=fp32", "training.plan_first=false", f"training.max_steps={STEPS}",
            "training.log_every=1000", "training.checkpoint_every=2", "training.eval_every=2",
            "batch.global_batch_size=16", "batch.micro_batch_size=16", *settings,
        ]
    )  # fmt: skip
    return train_run(config, ProcessContext(), Reporters(), resume=resume)


def plant(monkeypatch, method, change, at_call):
    """Let a method of the engine leave something that is not finite, at one of its calls."""
    original, calls = getattr(PlainEngine, method), []

    def call(engine, *arguments):
        calls.append(method)
        result = original(engine, *arguments)
        return change(engine, result) if len(calls) == at_call else result

    monkeypatch.setattr(PlainEngine, method, call)


def nan_loss(_, loss):
    return loss * torch.nan


def infinite_gradient(engine, _):
    next(iter(engine._masters.values())).grad.fill_(torch.inf)


def overflown_weight(engine, norm):
    next(iter(engine._masters.values())).data.fill_(torch.inf)
    return norm


def overflown_moment(engine, norm):
    next(iter(engine._optimizer.state.values()))["exp_avg_sq"].fill_(torch.inf)
    return norm


def kept(folder):
    """Return the names of the checkpoints, each of whose numbers is finite."""
    for file in (folder / "checkpoints").rglob("*.safetensors"):
        for name, tensor in load_file(file).items():
            assert bool(tensor.isfinite().all()), f"{file}: {name}"
    return sorted(path.name for path in (folder / "checkpoints").glob("step-*"))


@pytest.fixture(scope="module")
def whole(work, tmp_path_factory):
    """The run in which every number is finite."""
    folder = tmp_path_factory.mktemp("whole")
    train(work, folder)
    return load_file(folder / "model" / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("method", "change", "at_call", "sentence"),
    [
        ("loss", nan_loss, BAD, f"the loss at step {BAD} is nan"),
        ("backward", infinite_gradient, BAD, f"the gradient norm at step {BAD} is (nan|inf)"),
        ("apply_gradients", overflown_weight, BAD, f"the loss at step {BAD + 1} is nan"),
        ("apply_gradients", overflown_weight, BAD + 1, f"the validation loss after step {BAD + 1} is nan"),
        ("apply_gradients", overflown_moment, BAD + 1, rf"the moment .*exp_avg_sq is not finite after step {BAD + 1}"),
    ],
)
def test_the_first_bad_step_and_the_last_good_checkpoint_are_named_and_the_run_goes_on(
    method, change, at_call, sentence, work, tmp_path, monkeypatch, whole
):
    with monkeypatch.context() as planted:
        plant(planted, method, change, at_call)
        with pytest.raises(
            DivergedError,
            match=rf"{sentence}; give a --learning-rate below .*step-00000004: --resume .* goes on from there",
        ):
            train(work, tmp_path)
    assert kept(tmp_path) == ["step-00000002", "step-00000004"]
    train(work, tmp_path, resume=True)
    found = load_file(tmp_path / "model" / "adapter_model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())


def test_a_learning_rate_far_too_high_leaves_nothing_that_is_not_finite(work, tmp_path):
    rate = ["--method", "full", "--learning-rate", 1e10, "--warmup-steps", 0, "--set", "optimizer.max_grad_norm=null"]
    every = ["--set", "training.log_every=1000", "--set", "training.checkpoint_every=1"]
    done = run(*flags(work, tmp_path / "out", *rate, *every))
    assert done.exit_code == 9, done.output
    assert "give a --learning-rate below 1e+10" in done.output
    assert all(step in done.output for step in kept(tmp_path / "out")[-1:])


def test_weights_that_are_not_finite_as_they_came_are_not_blamed_on_the_learning_rate(work, tmp_path):
    file = shutil.copytree(work / "bert", tmp_path / "model") / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "layer.1" in name)
    save_file(weights | {name: torch.full_like(weights[name], torch.nan)}, file, {"format": "pt"})
    done = run(*flags(work, tmp_path / "out", "--model", file.parent))
    assert done.exit_code == 9, done.output
    assert "the loss at step 1 is nan" in done.output
    assert "take other weights" in done.output
    assert "learning_rate" not in done.output
