"""A training of a search begins with its libraries, and alone in its folder."""

import multiprocessing
from importlib.util import find_spec

from ftkit.cli.tune.trial import _IMPORTED, _train
from ftkit.errors import ConfigError
from ftkit.machine.lock import locked


def test_all_modules_that_are_imported_beforehand_exist():
    for name in _IMPORTED:  # one that does not is passed over in silence
        assert find_spec(name), name


def test_a_training_waits_until_no_other_one_trains_by_its_configuration(tmp_path):
    file, output = tmp_path / "asked.yaml", tmp_path / "output.txt"
    training = multiprocessing.get_context("spawn").Process(target=_train, args=(file, output))
    with locked(file, str, ""):
        training.start()
        while training.is_alive() and not (output.exists() and output.read_text()):
            training.join(0.05)
        assert output.read_text().startswith("waiting for process")
    training.join()
    assert training.exitcode == ConfigError.exit_code, "there is no such configuration, which is seen behind the wait"
