"""What can be known to be wrong in a second is told at once, one line each, and nothing is begun."""

import shutil
from importlib import metadata
from pathlib import Path

import pytest

from ftkit.config.files import UnsoundConfigError, load_config
from ftkit.errors import ConfigError, DeviceError, FtkitError, SeveralMistakesError
from ftkit.machine.process import ProcessContext
from ftkit.records.job import JobPlan
from ftkit.training.checks.first_look import check_disk, look_beside, look_first
from tests.helpers import WORDS, Notes, save_tiny_model


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A tiny model of 64 positions, a good file of texts, and one with a text that is too long."""
    folder = tmp_path_factory.mktemp("work")
    save_tiny_model(folder / "gpt2", "gpt2")
    rows = [f"{WORDS[number % 15]} film {WORDS[number % 7]},{number % 2}" for number in range(60)]
    (folder / "good.csv").write_text("\n".join(["text,label", *rows]))
    (folder / "long.csv").write_text("\n".join(["text,label", *rows, f"{'very ' * 100},1"]))
    return folder


def mistakes(work, folder, **settings):
    """Return the lines of what is wrong with a run."""
    given = {"model__name": work / "gpt2", "data__dataset": work / "good.csv", "output__folder": folder / "run"}
    settings = given | {"training__trial_step": "never"} | settings
    config = load_config(settings=[f"{key.replace('__', '.')}={value}" for key, value in settings.items()])
    with pytest.raises(FtkitError) as caught:
        look_first(config, ProcessContext(), lambda _: None, is_resumed=False)
    assert not (folder / "run").exists()
    return caught.value, str(caught.value).splitlines()


def test_settings_folder_packages_model_and_data_are_told_in_one_message(work, tmp_path):
    error, lines = mistakes(
        work, tmp_path,
        model__precision="fp16", output__folder="/dev/null/run", output__trackers="[clearml]",
        model__name=tmp_path / "absent", data__label_column="lable",
    )  # fmt: skip
    assert isinstance(error, SeveralMistakesError)
    assert error.exit_code == DeviceError.exit_code  # of the first
    assert lines[0] == "5 mistakes:"
    words = ["fp16 on a CPU", "result folder /dev/null/run", "pip install clearml", "no model at", "'lable'"]
    assert [word for word, line in zip(words, lines[1:], strict=True) if word not in line] == []


def test_a_model_and_its_data_are_held_against_one_another_in_one_message(work, tmp_path):
    _, lines = mistakes(
        work, tmp_path,
        data__dataset=work / "long.csv", training__best_metric="pearson", batch__micro_batch_tokens=50,
    )  # fmt: skip
    words = ["training.best_metric=pearson", "micro_batch_tokens=50", "64 positions"]
    assert [word for word, line in zip(words, lines[1:], strict=True) if word not in line] == []


def test_a_mistake_alone_is_its_own_sentence(work, tmp_path):
    error, lines = mistakes(work, tmp_path, training__best_metric="pearson")
    assert type(error) is ConfigError
    assert len(lines) == 1


def test_offload_is_refused_before_anything_is_loaded_where_its_folder_or_its_compiler_is_missing(
    work, tmp_path, monkeypatch
):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    _, lines = mistakes(
        work, tmp_path,
        engine__zero_stage=3, engine__offload_parameters="nvme", engine__nvme_path=tmp_path / "absent",
    )  # fmt: skip
    assert "there is no such folder" in lines[1]
    assert "g++ and ninja cannot be found" in lines[2]


def test_a_library_of_another_version_is_named_with_what_is_needed(work, tmp_path, monkeypatch):
    there = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "9.9" if name == "peft" else there(name))
    monkeypatch.setattr(
        metadata, "requires", lambda _: ["peft<0.22,>=0.21", "torch", "absent>1", 'ruff; extra == "dev"']
    )
    _, lines = mistakes(work, tmp_path)
    assert lines == ["peft 9.9 is installed, and ftkit needs peft<0.22,>=0.21: pip install --upgrade ftkit brings what "
                     "it needs"]  # fmt: skip


def test_a_disk_without_room_for_checkpoints_and_result_is_refused(tmp_path):
    config = load_config(settings=[f"output.folder={tmp_path / 'a' / 'run'}"])
    notes = Notes()
    check_disk(config, JobPlan(start_seconds=1, checkpoint_bytes=512, result_bytes=512, cache_bytes=1024), notes.note)
    assert not notes.said
    with pytest.raises(DeviceError, match=r"need .* and the disk of .*run has .* free; free some"):
        check_disk(config, JobPlan(start_seconds=1, checkpoint_bytes=2**60, result_bytes=512), notes.note)
    assert not Path(tmp_path / "a").exists()
    check_disk(config, JobPlan(start_seconds=1, checkpoint_bytes=1, result_bytes=1, cache_bytes=2**60), notes.note)
    assert len(notes.said) == 1
    assert "the cache is to take" in notes.said[0]


def test_what_is_wrong_beside_settings_that_cannot_be_is_told_with_them(work, tmp_path):
    given = [f"model.name={tmp_path / 'absent'}", f"data.dataset={work / 'good.csv'}", "data.text_column=txt"]
    given += ["output.folder=/dev/null/run", "training.epochs=-1", "batch.global_batch_size=0"]
    with pytest.raises(UnsoundConfigError) as caught:
        load_config(settings=given)
    lines = str(look_beside(caught.value, is_resumed=False)).splitlines()
    words = ["5 mistakes:", "global_batch_size=0", "training.epochs=-1", "result folder /dev/null/run", "no model at"]
    assert all(any(word in line for line in lines) for word in [*words, "'txt'"]), lines


def test_a_section_that_cannot_be_is_not_looked_at_as_if_it_were_the_usual_one(work):
    with pytest.raises(UnsoundConfigError) as caught:
        load_config(settings=["data.dataset=absent.csv", "data.max_length=-1", f"model.name={work / 'gpt2'}"])
    assert "absent.csv" not in str(look_beside(caught.value, is_resumed=False))


def test_texts_that_two_splits_nearly_share_are_told_before_a_training(work, tmp_path):
    same = " ".join(f"{word} {word}" for word in WORDS)
    texts = {"train": [f"{word} {same}" for word in WORDS[:8]], "test": [f"an {same}", f"in {same}"]}
    for split, own in texts.items():
        rows = [f"{text},{number % 2}" for number, text in enumerate(own)]
        (tmp_path / f"{split}.csv").write_text("\n".join(["text,label", *rows]))
    given = {"model.name": work / "gpt2", "data.dataset": tmp_path, "data.validation_share": 0}
    given |= {"output.folder": tmp_path / "run"}
    notes = Notes()
    config = load_config(settings=[f"{key}={value}" for key, value in given.items()])
    look_first(config, ProcessContext(), notes.note, is_resumed=False)
    assert any("100.0% of the test texts are nearly those of the training split" in line for line in notes.said)
