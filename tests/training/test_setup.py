"""What a run is refused for, before what takes longer."""

import pytest

from ftkit.config.files import load_config
from ftkit.engine.resolve import Devices, resolve
from ftkit.errors import DataError, DoesNotFitError, SeveralMistakesError
from ftkit.machine.process import ProcessContext
from ftkit.models.sources.source import load_config as load_architecture
from ftkit.models.sources.source import resolve_source
from ftkit.plan import preflight
from ftkit.plan.inputs.target import Target
from ftkit.plan.needs.weights import least_weight_bytes
from ftkit.records.files import RECORD
from ftkit.training.reporters import Reporters
from ftkit.training.results.folder import open_folder
from ftkit.training.setup import prepare
from tests.helpers import save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"), "bert")


def settings_of(model, folder):
    """Settings of a run whose data are not there, so that whoever reads them first fails."""
    return [f"model.name={model}", "data.dataset=absent.csv", f"output.folder={folder}"]


def prepared(settings):
    return prepare(load_config(settings=settings), ProcessContext(), Reporters())


def test_a_run_that_nothing_else_speaks_against_reads_its_data(model, tmp_path):
    with pytest.raises(DataError, match=r"absent\.csv"):
        prepared(settings_of(model, tmp_path / "run"))
    assert not (tmp_path / "run").exists(), "a run that is refused leaves nothing"


def test_weights_that_alone_exceed_the_memory_are_refused_before_data_are_read(model, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "find_target", lambda **_: Target("a small GPU", "cpu", None, 2**16))
    with pytest.raises(DoesNotFitError, match=r"its weights alone are .* more than the 64\.00 KiB of a small GPU"):
        prepared(settings_of(model, tmp_path))
    with pytest.raises(DataError):
        prepared([*settings_of(model, tmp_path), "training.plan_first=false"])


def test_a_folder_that_another_run_filled_and_data_that_are_not_there_are_told_together(model, tmp_path):
    (tmp_path / RECORD).write_text("")
    with pytest.raises(SeveralMistakesError, match=r"(?s)holds a run.*absent\.csv"):
        prepared(settings_of(model, tmp_path))


def test_the_run_that_is_to_be_overwritten_is_whole_until_everything_else_is_in_order(model, tmp_path):
    (tmp_path / RECORD).write_text("the first run")
    with pytest.raises(DataError):
        prepared([*settings_of(model, tmp_path), "output.overwrite=true"])
    assert (tmp_path / RECORD).read_text() == "the first run"


def test_what_ftkit_did_not_write_stays_where_no_run_was(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    config = load_config(settings=[f"output.folder={tmp_path}", "output.overwrite=true"])
    assert open_folder(config, is_resumed=False) == tmp_path
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ([], 1.0),
        (["engine.zero_stage=2"], 1.0),
        (["engine.zero_stage=3"], 0.5),
        (["engine.zero_stage=3", "engine.offload_parameters=cpu"], 0.0),
    ],
)
def test_only_zero_3_lets_a_device_hold_less_than_all_weights(model, settings, share):
    config = load_config(settings=[f"model.name={model}", "model.precision=fp32", *settings])
    architecture = load_architecture(resolve_source(config.model, config.task), ("a", "b"), 1)
    devices = Devices("cuda", has_bf16=True, world_size=2)
    whole = least_weight_bytes(
        resolve(load_config(settings=[*settings_of(model, ""), "model.precision=fp32"]), devices), architecture
    )
    assert least_weight_bytes(resolve(config, devices), architecture) == pytest.approx(share * whole, abs=1)
