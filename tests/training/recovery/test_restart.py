"""What a folder holds decides whether the same command starts a run, goes on with it, or finds it finished."""

import json
import random

import pytest

from ftkit.config.files import load_config
from ftkit.errors import ConfigError
from ftkit.records.files import CHECKPOINTS, read_record
from ftkit.training.checkpoints.same_run import ENDS
from ftkit.training.recovery.restart import Start, begin, how_to_start
from tests.made_records import write_run


def test_an_empty_folder_or_none_is_a_new_run(tmp_path):
    assert how_to_start(tmp_path) is Start.NEW
    assert how_to_start(tmp_path / "none") is Start.NEW


def test_a_checkpoint_goes_on_and_one_that_was_being_written_does_not(tmp_path):
    (tmp_path / CHECKPOINTS / "step-00000003.tmp").mkdir(parents=True)
    assert how_to_start(tmp_path) is Start.NEW
    (tmp_path / CHECKPOINTS / "step-00000002").mkdir()
    assert how_to_start(tmp_path) is Start.GOES_ON


def test_a_record_with_a_result_is_finished(tmp_path):
    write_run(tmp_path / "run", {}, random.Random(0))
    assert how_to_start(tmp_path / "run") is Start.FINISHED


def test_what_stopped_before_its_first_checkpoint_is_replaced(tmp_path):
    config, start = begin(load_config(settings=[f"output.folder={tmp_path}", "output.resume=auto"]))
    assert (start, config.output.overwrite) == (Start.NEW, True)


def test_without_a_folder_nothing_can_be_found_again():
    with pytest.raises(ConfigError, match="give --output FOLDER"):
        begin(load_config(settings=["output.resume=auto"]))


def test_a_finished_run_goes_on_where_its_end_is_another_and_is_finished_where_it_is_the_same(tmp_path):
    write_run(tmp_path / "run", {"training": {"epochs": 3.0}}, random.Random(0))
    command = [f"output.folder={tmp_path / 'run'}", "output.resume=auto"]
    recorded = read_record(tmp_path / "run").run.config["training"]
    same = [f"training.{key}={json.dumps(recorded.get(key))}" for key in ENDS]
    assert begin(load_config(settings=[*command, *same]))[1] is Start.FINISHED
    assert begin(load_config(settings=[*command, *same, "training.epochs=6"]))[1] is Start.GOES_ON
