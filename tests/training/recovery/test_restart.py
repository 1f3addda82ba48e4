"""What a folder holds decides whether the same command starts a run, goes on with it, or finds it finished."""

import random

import pytest

from ftkit.config.files import load_config
from ftkit.config.tree import RunConfig
from ftkit.errors import CheckpointError, ConfigError
from ftkit.records.files import CHECKPOINTS, read_record
from ftkit.training.recovery.restart import Start, begin
from tests.made_records import write_run


def begun_in(folder):
    return begin(load_config(settings=[f"output.folder={folder}", "output.resume=auto"]))


def test_an_empty_folder_or_none_is_a_new_run(tmp_path):
    assert begun_in(tmp_path)[1] is Start.NEW
    assert begun_in(tmp_path / "none")[1] is Start.NEW


def test_a_checkpoint_goes_on_and_one_that_was_being_written_does_not(tmp_path):
    (tmp_path / CHECKPOINTS / "step-00000003.tmp").mkdir(parents=True)
    assert begun_in(tmp_path)[1] is Start.NEW
    (tmp_path / CHECKPOINTS / "step-00000002").mkdir()
    assert begun_in(tmp_path)[1] is Start.GOES_ON


def test_what_stopped_before_its_first_checkpoint_is_replaced(tmp_path):
    config, start = begun_in(tmp_path)
    assert (start, config.output.overwrite) == (Start.NEW, True)


def test_without_a_folder_nothing_can_be_found_again():
    with pytest.raises(ConfigError, match="give --output FOLDER"):
        begin(load_config(settings=["output.resume=auto"]))


def asked(folder, section, **changes):
    """Return the configuration of the run in a folder with changes in one section, asked for again."""
    config = RunConfig.model_validate(read_record(folder).run.config)
    output = config.output.model_copy(update={"folder": str(folder), "resume": "auto"})
    changed = getattr(config, section).model_copy(update=changes)
    return config.model_copy(update={"output": output, section: changed})


def test_a_finished_run_goes_on_where_its_end_is_another_and_is_finished_where_it_is_the_same(tmp_path):
    write_run(tmp_path / "run", {"training": {"epochs": 3.0}}, random.Random(0))
    assert begin(asked(tmp_path / "run", "training"))[1] is Start.FINISHED
    assert begin(asked(tmp_path / "run", "training", epochs=6.0))[1] is Start.GOES_ON


@pytest.mark.parametrize(
    ("section", "changes", "key"),
    [
        ("optimizer", {"learning_rate": 0.3}, "optimizer.learning_rate"),
        ("data", {"max_length": 17}, "data.max_length"),
        ("batch", {"global_batch_size": 3}, "batch.global_batch_size"),
        ("training", {"seed": 5}, "training.seed"),
    ],
)
def test_a_finished_run_that_was_trained_otherwise_is_refused_by_the_key(section, changes, key, tmp_path):
    write_run(tmp_path / "run", {}, random.Random(0))
    with pytest.raises(CheckpointError, match=f"is finished, and was trained with another {key}; give the same"):
        begin(asked(tmp_path / "run", section, **changes))


def test_a_finished_run_that_left_the_test_split_alone_is_not_taken_for_one_that_scores_it(tmp_path):
    write_run(tmp_path / "run", {"training": {"score_test": False}}, random.Random(0))
    with pytest.raises(CheckpointError, match=r"was trained with another training\.score_test"):
        begin(asked(tmp_path / "run", "training", score_test=True))
    write_run(tmp_path / "scored", {}, random.Random(0))
    assert begin(asked(tmp_path / "scored", "training", score_test=False))[1] is Start.FINISHED


def test_what_the_data_and_the_model_settle_and_how_often_a_run_looks_make_no_other_run(tmp_path):
    write_run(tmp_path / "run", {"training": {"class_weights": {"a": 2.0, "b": 1.0}}}, random.Random(0))
    for changes in ({"class_weights": "balanced"}, {"log_every": 77, "class_weights": {"a": 2.0, "b": 1.0}}):
        assert begin(asked(tmp_path / "run", "training", **changes))[1] is Start.FINISHED
