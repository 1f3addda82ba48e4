"""Memory that runs out, raised where a test wants it: the run ends with the weights of the run without it."""

import resource
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ftkit.config.files import load_config
from ftkit.engine.plain import PlainEngine
from ftkit.errors import DoesNotFitError
from ftkit.machine.hardware import this_machine
from ftkit.machine.process import ProcessContext
from ftkit.records.files import CONFIG, LIMITS, read_record
from ftkit.training import loop
from ftkit.training.loop import train_run
from ftkit.training.reporters import Reporters
from ftkit.training.steps import take_step
from tests.helpers import WORDS, Notes

STEPS = 4


def train(work, folder, *settings, resume=False, reporter=None):
    config = load_config(
        settings=[
            f"model.name={work / 'bert'}", f"data.dataset={work / 'texts.csv'}", f"output.folder={folder}",
            "output.reopen=false",
            "model.precision=fp32", "training.plan_first=false", f"training.max_steps={STEPS}", "training.log_every=1",
            "batch.global_batch_size=16", "batch.micro_batch_size=8", *settings,
        ]
    )  # fmt: skip
    return train_run(config, ProcessContext(), reporter or Reporters(), resume=resume)


def weights(folder):
    return load_file(folder / "model" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def whole(work, tmp_path_factory):
    """The run in which no memory runs out."""
    folder = tmp_path_factory.mktemp("whole")
    record = train(work, folder)
    return [line.loss for line in record.steps], weights(folder)


def no_memory():
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def failing(monkeypatch, method, *, above, at_call=1):
    """Let a method of the engine run out of memory: with more sequences than `above`, from a call on."""
    original, calls = getattr(PlainEngine, method), []

    def call(engine, *arguments):
        calls.append(method)
        batch = getattr(arguments[0], "input_ids", None)
        size = len(engine.last_ids) if batch is None else len(batch)
        engine.last_ids = engine.last_ids if batch is None else batch
        if len(calls) >= at_call and size > above:
            raise no_memory()
        return original(engine, *arguments)

    monkeypatch.setattr(PlainEngine, method, call)
    if method != "loss":
        loss = PlainEngine.loss

        def noting(engine, micro_batch):
            engine.last_ids = micro_batch.input_ids
            return loss(engine, micro_batch)

        monkeypatch.setattr(PlainEngine, "loss", noting)


def assert_equal_runs(record, folder, whole):
    losses, expected = whole
    # fp32: another cut sums in another order.
    assert [line.loss for line in record.steps] == pytest.approx(losses, abs=1e-6)
    for name, tensor in weights(folder).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["loss", "backward"])
@pytest.mark.parametrize("at_call", [1, 6])
def test_a_step_that_runs_out_of_memory_is_taken_again_in_smaller_micro_batches(
    work, tmp_path, monkeypatch, whole, method, at_call
):
    failing(monkeypatch, method, above=3, at_call=at_call)
    record = train(work, tmp_path / "run")
    assert_equal_runs(record, tmp_path / "run", whole)
    assert [line.after for line in read_record(tmp_path / "run").recoveries] == [
        "--micro-batch-size 4 --recompute none",
        "--micro-batch-size 2 --recompute none",
    ]
    assert "Tried to allocate 2.00 GiB" in record.recoveries[0].reason
    assert record.result.limits == "--micro-batch-size 2 --recompute none"
    assert load_config(tmp_path / "run" / CONFIG).batch.micro_batch_size == 2, "the configuration is what ran"


def test_a_resumed_run_begins_with_the_limits_that_fitted(work, tmp_path, monkeypatch, whole):
    failing(monkeypatch, "loss", above=4)
    with monkeypatch.context() as crash:
        original = PlainEngine.apply_gradients
        updates: list[float] = []

        def crashing(engine, rate):
            if len(updates) == 2:
                raise ValueError("the machine goes down")
            updates.append(rate)
            return original(engine, rate)

        crash.setattr(PlainEngine, "apply_gradients", crashing)
        with pytest.raises(ValueError, match="goes down"):
            train(work, tmp_path / "run", "training.checkpoint_every=1")
    record = train(work, tmp_path / "run", "training.checkpoint_every=1", resume=True)
    assert [line.step for line in record.recoveries] == [1]
    assert_equal_runs(record, tmp_path / "run", whole)


def test_a_run_that_is_started_again_before_its_first_checkpoint_begins_with_the_limits_that_fitted(
    work, tmp_path, monkeypatch, whole
):
    failing(monkeypatch, "loss", above=4)
    with monkeypatch.context() as crash:
        crash.setattr(PlainEngine, "apply_gradients", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(work, tmp_path, "output.resume=auto")
    record = train(work, tmp_path, "output.resume=auto", "output.overwrite=true")  # as `begin` has it
    assert record.recoveries == ()
    assert_equal_runs(record, tmp_path, whole)


def test_an_update_that_runs_out_of_memory_goes_back_to_the_last_checkpoint(work, tmp_path, monkeypatch, whole):
    original = PlainEngine.apply_gradients
    updates: list[float] = []

    def half_updated(engine, rate):
        norm = original(engine, rate)
        updates.append(rate)
        if len(updates) == 3:
            raise no_memory()
        return norm

    monkeypatch.setattr(PlainEngine, "apply_gradients", half_updated)
    record = train(work, tmp_path / "run", "training.checkpoint_every=1")
    assert len(updates) == STEPS + 1
    assert_equal_runs(record, tmp_path / "run", whole)


def test_the_worst_step_is_tried_first_and_leaves_no_trace(work, tmp_path, monkeypatch, whole):
    original = PlainEngine.apply_gradients
    rates: list[float] = []

    def noting(engine, rate):
        rates.append(rate)
        return original(engine, rate)

    monkeypatch.setattr(PlainEngine, "apply_gradients", noting)
    record = train(work, tmp_path / "run", "training.trial_step=always")
    assert rates[0] == 0.0
    assert len(rates) == STEPS + 1
    losses, expected = whole
    assert [line.loss for line in record.steps] == losses
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path / "run").items())


def test_an_evaluation_that_runs_out_of_memory_scores_in_halves(work, tmp_path, monkeypatch):
    scores = train(work, tmp_path / "whole").last_evaluation("test")
    failing(monkeypatch, "logits", above=3)
    again = train(work, tmp_path / "run").last_evaluation("test")
    assert again.loss == pytest.approx(scores.loss, abs=1e-6)
    assert (again.accuracy, again.confusion) == (scores.accuracy, scores.confusion)


@pytest.fixture(scope="module")
def long_texts(work, tmp_path_factory):
    """Texts of which 256 make activations of some 150 MiB."""
    random = np.random.default_rng(1)
    rows = [f"{' '.join(random.choice(WORDS, size=60))},{number % 2}" for number in range(400)]
    path = tmp_path_factory.mktemp("long") / "long.csv"
    path.write_text("\n".join(["text,label", *rows]))
    return path


def blocks_that_are_free():
    """Take all blocks of 1 MiB that this process has and does not use, where the system gives it no more."""
    blocks = []
    with suppress(MemoryError):
        while True:
            blocks.append(bytearray(2**20))
    return blocks


def test_a_process_that_really_has_no_more_memory_goes_on_in_smaller_micro_batches(
    work, long_texts, tmp_path, monkeypatch
):
    large = [f"data.dataset={long_texts}", "batch.global_batch_size=256", "batch.micro_batch_size=256"]
    large += ["training.max_steps=2", "training.trial_step=never", "model.lean=false"]
    unlimited = resource.getrlimit(resource.RLIMIT_AS)

    def limited(*arguments):
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held, unlimited[1]))
        free = blocks_that_are_free()  # as earlier tests have left them
        resource.setrlimit(resource.RLIMIT_AS, (held + 32 * 2**20, unlimited[1]))
        try:
            return take_step(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, unlimited)
            del free

    monkeypatch.setattr(loop, "take_step", limited)
    notes = Notes()
    record = train(work, tmp_path / "run", *large, reporter=notes)
    assert "can't allocate memory" in record.recoveries[0].reason
    assert 0 < record.recoveries[0].available_bytes < this_machine().memory_bytes
    flag = f"--ram-budget {record.recoveries[0].available_bytes // 2**20}MiB"
    assert any(f"`ftkit plan {flag}` plans for that" in text for text in notes.said)
    monkeypatch.undo()
    whole = train(work, tmp_path / "whole", *large)  # afterwards: it leaves free memory in this process
    expected = [line.loss for line in whole.steps], weights(tmp_path / "whole")
    assert_equal_runs(record, tmp_path / "run", expected)


def test_one_sequence_that_does_not_fit_ends_the_run_with_what_to_try(work, tmp_path, monkeypatch):
    failing(monkeypatch, "loss", above=0)
    with pytest.raises(DoesNotFitError, match=r"one sequence of up to \d+ tokens .*; try a smaller --max-length"):
        train(work, tmp_path / "run")


def test_an_error_of_another_kind_is_not_taken_for_memory(work, tmp_path, monkeypatch):
    monkeypatch.setattr(PlainEngine, "loss", lambda *_: (_ for _ in ()).throw(RuntimeError("sizes do not match")))
    with pytest.raises(RuntimeError, match="sizes do not match"):
        train(work, tmp_path / "run")


def test_another_run_in_the_same_folder_does_not_begin_with_the_limits_of_the_one_before(work, tmp_path, monkeypatch):
    with monkeypatch.context() as short:
        failing(short, "loss", above=4)
        train(work, tmp_path / "run")
    assert (tmp_path / "run" / LIMITS).is_file()
    train(work, tmp_path / "run", "output.overwrite=true")
    assert not (tmp_path / "run" / LIMITS).exists()
