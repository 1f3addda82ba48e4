"""What a run has saved is opened in a new process; whatever differs from the model in memory ends the run."""

import json
import re
import sys
import threading

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ftkit.config.files import load_config
from ftkit.errors import ModelError
from ftkit.inference.reopen import reopen
from ftkit.machine.process import ProcessContext
from ftkit.records.files import read_record
from ftkit.training import loop
from ftkit.training.loop import train_run
from ftkit.training.reopening import compare
from ftkit.training.results.model import save_model
from tests.e2e.conftest import work
from tests.helpers import Notes

__all__ = ["work"]


def settings(work, folder, *more):
    return [
        f"data.dataset={work / 'texts.csv'}", f"output.folder={folder}", "training.max_steps=2",
        "training.plan_first=false", "batch.global_batch_size=8", "optimizer.learning_rate=0.01", *more,
    ]  # fmt: skip


def trained(work, folder, *more, resume=False):
    """Train two steps; returns the record and what was said."""
    told = Notes()
    record = train_run(load_config(settings=settings(work, folder, *more)), ProcessContext(), told, resume=resume)
    return record, "\n".join(told.said)


@pytest.mark.parametrize(
    "more",
    [
        ["model.name={}/llama", "method.name=qlora", "method.use_dora=true", "model.precision=bf16"],
        ["model.name={}/gpt2", "task=causal-lm", "data.max_length=32", "method.name=lora", "method.top_layers=1",
         "cache.trunk=on", "model.precision=fp32"],
        ["model.name={}/bert", "method.name=feature-extraction", "cache.trunk=on", "model.precision=bf16"],
    ],
    ids=["dora in 4 bits", "a language model above its trunk", "a head above its trunk"],
)  # fmt: skip
def test_what_was_saved_is_what_was_in_memory(more, work, tmp_path, request, monkeypatch):
    monkeypatch.setattr(compare, "free_host_bytes", lambda: None)  # other programs may have it for a moment
    if "qlora" not in more[1]:
        request.getfixturevalue("in_this_process")
    elif sys.platform == "linux":  # a copy of this process is asked
        monkeypatch.setattr(compare, "open_freshly", None)
        monkeypatch.setattr(threading, "active_count", lambda: 1)  # tests beside each other have a thread for it
    record, said = trained(work, tmp_path / "run", *(one.format(work) for one in more))
    assert "opened again in a new process: the logits of 4 sequences differ by at most" in said
    tolerance = compare.TOLERANCES[torch.float32 if "model.precision=fp32" in more else torch.bfloat16]
    assert record.result.reopened_difference <= tolerance


@pytest.fixture
def in_this_process(monkeypatch):
    """Open what was saved in this process, by the function that the other one runs: its imports take seconds."""

    def run(_standby, talk, _timeout_seconds):
        reopen(talk)
        return "", ""

    monkeypatch.setattr(compare, "_run", run)


def altered(folder):
    """Change one number of the last weights that were saved, those of a row that no text has."""
    change(folder, lambda tensors: tensors["transformer.wte.weight"].select(0, -1).add_(1))


def dropped(folder):
    change(folder, lambda tensors: tensors.pop("score.weight"))


def narrowed(folder):
    change(folder, lambda tensors: tensors.update({name: one.bfloat16() for name, one in tensors.items()}))


def widened(folder):
    change(folder, lambda tensors: tensors.update({name: one.double() for name, one in tensors.items()}))


def forgot(folder):
    """Change what no checksum of weights sees."""
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"layer_norm_epsilon": 1.0}))


def change(folder, how):
    tensors = load_file(folder / "model.safetensors")
    with safe_open(folder / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    how(tensors)
    save_file(tensors, folder / "model.safetensors", metadata)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (altered, "transformer.wte.weight came back with other numbers"),
        (dropped, "score.weight came back with other numbers"),
        (narrowed, "more came back with other numbers"),
        (widened, "more came back with numbers of another type"),
        (forgot, "may be rounding"),
    ],
)
def test_a_fault_between_memory_and_file_ends_the_run_and_the_checkpoint_saves_it_anew(
    fault, words, work, tmp_path, monkeypatch, request
):
    if fault is not dropped:
        request.getfixturevalue("in_this_process")

    def faulty(*arguments):
        saved = save_model(*arguments)
        fault(saved.folder)
        return saved

    full = [f"model.name={work / 'gpt2'}", "method.name=full", "model.precision=fp32"]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_model", faulty)
        with pytest.raises(ModelError, match=words) as caught:
            trained(work, tmp_path / "run", *full)
    assert f"--resume {tmp_path / 'run'} saves the model anew" in str(caught.value)
    assert read_record(tmp_path / "run").result is None, "a run whose model is not whole is not finished"
    if fault is dropped:
        request.getfixturevalue("in_this_process")
        record, _ = trained(work, tmp_path / "run", *full, resume=True)
        assert record.result.reopened_difference == 0.0


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("free_host_bytes", 2**20, r"was not opened again, since a second copy of it takes 1\.00 GiB of the host"),
        ("_SHARE_OF_TIMEOUT", 1e-4, "was not compared with the one in memory, since that had not ended after"),
    ],
)
def test_where_a_second_copy_has_no_room_or_no_time_the_run_ends_well_and_says_so(
    name, value, words, work, tmp_path, monkeypatch
):
    monkeypatch.setattr(compare, name, value if isinstance(value, float) else lambda: value)
    more = [f"model.name={work / 'bert'}", "model.precision=fp32", "method.name=lora"]
    record, said = trained(work, tmp_path / "run", *more)
    assert record.result.status == "completed"
    assert record.result.reopened_difference is None
    assert re.search(words, said), said
