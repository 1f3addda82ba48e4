"""A checkpoint is whole or not there, and says what is wrong with it."""

import errno
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ftkit.config.tree import RunConfig
from ftkit.errors import CheckpointError, DeviceError
from ftkit.machine.memory import peak_resident_bytes, reset_peaks
from ftkit.training.checkpoints import checkpoint, same_run

WEIGHTS = {"a": torch.arange(6.0).view(2, 3)}


def state(step=1, **fields):
    config = same_run.resumable_part(RunConfig().model_dump(mode="json"))
    return checkpoint.TrainingState(step=step, num_steps=9, fingerprint="f", config=config, **fields)


def test_what_is_saved_is_loaded_and_the_two_newest_are_kept(tmp_path):
    for step in range(1, 5):
        checkpoint.save_checkpoint(tmp_path, state(step), WEIGHTS, {"a/exp_avg": torch.ones(2)})
    found = checkpoint.list_checkpoints(tmp_path)
    assert [path.name for path in found] == ["step-00000003", "step-00000004"]
    loaded, weights, moments = checkpoint.load_checkpoint(found[-1])
    assert loaded == state(4)
    assert torch.equal(weights["a"], WEIGHTS["a"])
    assert torch.equal(moments["a/exp_avg"], torch.ones(2))


def test_a_full_disk_is_one_sentence_and_the_last_good_checkpoint_survives(tmp_path, monkeypatch):
    checkpoint.save_checkpoint(tmp_path, state(1), WEIGHTS, {})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(DeviceError, match=r"No space left on device.*free some space"):
        checkpoint.save_checkpoint(tmp_path, state(2), WEIGHTS, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    checkpoint.load_checkpoint(tmp_path / "step-00000001")


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.MOMENTS, checkpoint.STATE])
def test_a_truncated_or_missing_file_is_named(name, tmp_path):
    path = checkpoint.save_checkpoint(tmp_path, state(), WEIGHTS, WEIGHTS)
    whole = (path / name).read_bytes()
    (path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=name):
        checkpoint.load_checkpoint(path)
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        checkpoint.load_checkpoint(path)


@pytest.mark.parametrize("name", ["step-00000002.tmp", "step-00000002.old", "step-two"])
def test_what_is_not_a_whole_checkpoint_is_not_listed(name, tmp_path):
    checkpoint.save_checkpoint(tmp_path, state(), WEIGHTS, {})
    (tmp_path / name).mkdir()
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["step-00000001"]


def test_the_best_weights_are_there_at_every_moment_of_their_replacement(tmp_path, monkeypatch):
    """A kill before each call that renames or removes something: what was best is still found, or what is."""
    found = []

    def watched(function):
        def call(*arguments, **options):
            if (tmp_path / "best-00000001").exists() or (tmp_path / "best-00000001.replaced").exists():
                found.append(int(checkpoint.load_best(tmp_path, 1)["a"].sum()))
            return function(*arguments, **options)

        return call

    for target in (Path, "rename"), (Path, "replace"), (shutil, "rmtree"):
        monkeypatch.setattr(*target, watched(getattr(*target)))
    for value in (1, 2, 3):
        checkpoint.save_best(tmp_path, 1, {"a": torch.tensor(value)}, [1])
        assert int(checkpoint.load_best(tmp_path, 1)["a"]) == value
    assert found == sorted(found)
    assert {1, 2, 3} == set(found)
    assert [path.name for path in tmp_path.iterdir()] == ["best-00000001"], "what was replaced takes no room"


def test_best_weights_stay_as_long_as_the_run_or_a_checkpoint_asks_for_them(tmp_path):
    def kept():
        return sorted(path.name for path in tmp_path.glob("best-*"))

    checkpoint.save_best(tmp_path, 1, WEIGHTS, [1])
    checkpoint.save_checkpoint(tmp_path, state(1, best_steps=(1,)), WEIGHTS, {})
    checkpoint.save_best(tmp_path, 2, WEIGHTS, [2])
    checkpoint.save_best(tmp_path, 3, WEIGHTS, [3])
    assert kept() == ["best-00000001", "best-00000003"], "a run that is killed now goes on from step 1, whose best is 1"
    checkpoint.save_checkpoint(tmp_path, state(3, best_steps=(3,)), WEIGHTS, {}, keep=1)
    assert kept() == ["best-00000003"]


def test_best_weights_that_a_kill_left_half_written_do_not_stand_in_the_way(tmp_path):
    checkpoint.save_best(tmp_path, 1, {"a": torch.tensor(1)}, [1])
    for name in ("best-00000002.tmp", "best-00000001.replaced"):
        (tmp_path / name).mkdir()
    assert int(checkpoint.load_best(tmp_path, 1)["a"]) == 1
    checkpoint.save_best(tmp_path, 2, {"a": torch.tensor(2)}, [2])
    assert int(checkpoint.load_best(tmp_path, 2)["a"]) == 2


def test_what_the_disk_gives_back_otherwise_is_refused_when_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "save_file", lambda tensors, path: save_file({"a": tensors["a"] + 1}, path))
    with pytest.raises(CheckpointError, match="a differs"):
        checkpoint.save_checkpoint(tmp_path, state(), WEIGHTS, {"a": torch.ones(2)})
    assert list(tmp_path.iterdir()) == []


def test_another_configuration_or_other_data_is_refused_by_name(tmp_path):
    changed = same_run.resumable_part(RunConfig(optimizer={"learning_rate": 1e-3}).model_dump(mode="json"))
    with pytest.raises(CheckpointError, match=r"another optimizer\.learning_rate"):
        same_run.check_resumable(tmp_path, state(), changed, "f")
    with pytest.raises(CheckpointError, match="other data"):
        same_run.check_resumable(tmp_path, state(), state().config, "g")


def test_a_checkpoint_from_before_there_was_a_key_is_as_one_that_has_its_default(tmp_path):
    earlier = state()
    del earlier.config["data"]["long_texts"]
    same_run.check_resumable(tmp_path, earlier, state().config, "f")
    changed = same_run.resumable_part(RunConfig(data={"long_texts": "windows"}).model_dump(mode="json"))
    with pytest.raises(CheckpointError, match=r"another data\.long_texts"):
        same_run.check_resumable(tmp_path, earlier, changed, "f")


def test_the_cut_the_engine_the_precision_and_the_end_may_change_between_start_and_resume(tmp_path):
    changed = RunConfig(
        batch={"micro_batch_size": 1},
        engine={"zero_stage": 3},
        output={"folder": "x"},
        model={"precision": "bf16"},
        training={"epochs": None, "max_steps": 9, "early_stopping_patience": 2, "score_test": False},
    )
    config = same_run.resumable_part(changed.model_dump(mode="json"))
    same_run.check_resumable(tmp_path, state(), config, "f")


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.MOMENTS, checkpoint.STATE])
def test_a_flipped_bit_is_found_by_its_checksum(tmp_path, name):
    path = checkpoint.save_checkpoint(tmp_path, state(), WEIGHTS, {"a/exp_avg": torch.ones(2)})
    data = bytearray((path / name).read_bytes())
    data[-2] ^= 1
    (path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{name} is not what was written"):
        checkpoint.load_checkpoint(path)


def test_as_many_checkpoints_stay_as_are_asked_for(tmp_path):
    for step in range(1, 6):
        checkpoint.save_checkpoint(tmp_path, state(step), WEIGHTS, {}, keep=3)
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == [f"step-0000000{n}" for n in (3, 4, 5)]


def test_a_step_that_is_saved_again_is_there_at_every_moment(tmp_path, monkeypatch):
    checkpoint.save_checkpoint(tmp_path, state(), {"w": torch.zeros(2)}, {})
    seen = []
    rename = Path.rename

    def watched(path, target):
        rename(path, target)
        seen.append(
            [checkpoint.load_checkpoint(found)[1]["w"][0].item() for found in checkpoint.list_checkpoints(tmp_path)]
        )

    monkeypatch.setattr(Path, "rename", watched)
    checkpoint.save_checkpoint(tmp_path, state(), {"w": torch.ones(2)}, {})
    assert seen == [[0.0], [1.0]]
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.list_checkpoints(tmp_path)[0].name]


def test_reading_back_what_was_written_takes_the_memory_of_one_tensor(tmp_path):
    each = 2**24
    weights = {str(number): torch.full((each // 4,), float(number)) for number in range(8)}
    reset_peaks(torch.device("cpu"))
    before = peak_resident_bytes()
    checkpoint.save_best(tmp_path, 1, weights, [1])
    assert peak_resident_bytes() - before < 3 * each  # one, and what else is touched for the first time
