"""What is saved is the run's own state, whenever it is asked to stop."""

import threading

import pytest
import torch

from ftkit.errors import DeviceError, InterruptedRunError
from ftkit.records.files import CHECKPOINTS
from ftkit.training import loop, saving
from ftkit.training.checkpoints import checkpoint
from ftkit.training.evaluate import evaluate
from ftkit.training.recovery.signals import StopNow
from ftkit.training.steps import take_step
from tests.e2e.conftest import work
from tests.faults.test_memory_that_runs_out import train

__all__ = ["work"]
EVERY_STEP = ("training.checkpoint_every=1", "training.eval_every=1", "training.max_steps=3")


def weights(folder, step):
    return checkpoint.load_checkpoint(folder / CHECKPOINTS / f"step-{step:08d}")[1]


def test_a_run_that_is_stopped_while_its_best_weights_are_tested_keeps_its_last_checkpoint(work, tmp_path, monkeypatch):
    scores = iter([0.1, 0.2, 0.3])

    def worse_each_time(*arguments):
        if (loss := next(scores, None)) is None:
            raise StopNow
        scored, logits = evaluate(*arguments)
        return scored.model_copy(update={"loss": loss}), logits

    monkeypatch.setattr(loop, "evaluate", worse_each_time)
    with pytest.raises(InterruptedRunError):
        train(work, tmp_path, *EVERY_STEP)
    best, last = checkpoint.load_best(tmp_path / CHECKPOINTS, 1), weights(tmp_path, 3)
    assert not any(torch.equal(best[name], last[name]) for name in last if "lora_B" in name)


def test_as_many_good_validations_as_are_asked_for_keep_their_weights(work, tmp_path, monkeypatch):
    scores = iter([0.4, 0.1, 0.3, 0.2])

    def changed(*arguments):
        scored, logits = evaluate(*arguments)
        return scored.model_copy(update={"loss": next(scores)}), logits

    monkeypatch.setattr(loop, "evaluate", changed)
    train(work, tmp_path, *EVERY_STEP, "training.keep_best=2", "training.keep_checkpoints=1")
    assert sorted(path.name for path in (tmp_path / CHECKPOINTS).glob("best-*")) == ["best-00000002", "best-00000003"]


def test_steps_are_taken_while_a_checkpoint_is_written(work, tmp_path, monkeypatch):
    """The first write ends only when the step after it has been taken."""
    taken, write, seen = threading.Event(), checkpoint.save_checkpoint, []

    def waiting(folder, state, *arguments):
        if state.step == 1:
            seen.append(taken.wait(60))
        return write(folder, state, *arguments)

    def noted(job, batch, *arguments):
        result = take_step(job, batch, *arguments)
        if batch.step == 2:
            taken.set()
        return result

    monkeypatch.setattr(checkpoint, "save_checkpoint", waiting)
    monkeypatch.setattr(loop, "take_step", noted)
    train(work, tmp_path, "training.checkpoint_every=1", "training.max_steps=2")
    assert seen == [True]
    assert len(checkpoint.list_checkpoints(tmp_path / CHECKPOINTS)) == 2


def test_of_a_large_checkpoint_no_copy_is_made_on_a_cpu_and_the_steps_wait(work, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "_MOST_COPIED", 0)
    own: set[int] = set()
    shared, done, write = [], [], checkpoint.save_checkpoint

    def places(tensors):
        return {tensor.data_ptr() for tensor in tensors.values() if tensor.dim()}

    def noted(folder, state, weights, moments, keep):
        shared.append((places(weights) | places(moments)) <= own)
        done.append(write(folder, state, weights, moments, keep).is_dir())

    def stepped(job, batch, *arguments):
        assert len(done) == batch.step - 1
        result = take_step(job, batch, *arguments)
        own.update(places(job.engine.trainable_state(copy=False)) | places(job.engine.optimizer_state(copy=False)))
        return result

    monkeypatch.setattr(checkpoint, "save_checkpoint", noted)
    monkeypatch.setattr(loop, "take_step", stepped)
    train(work, tmp_path, "training.checkpoint_every=1", "training.max_steps=2")
    assert (shared, done) == ([True, True], [True, True])


@pytest.mark.parametrize("bad", [1, 2])
def test_a_write_that_fails_ends_the_run_at_its_next_step_or_at_its_end(work, tmp_path, monkeypatch, bad):
    write = checkpoint.save_checkpoint

    def failing(folder, state, *arguments):
        if state.step == bad:
            raise DeviceError("the disk is gone")
        return write(folder, state, *arguments)

    monkeypatch.setattr(checkpoint, "save_checkpoint", failing)
    with pytest.raises(DeviceError, match="the disk is gone"):
        train(work, tmp_path, "training.checkpoint_every=1", "training.max_steps=2")
