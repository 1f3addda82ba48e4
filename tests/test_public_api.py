"""What other programs call: four names, imported when they are first used."""

import subprocess
import sys

import pytest

import ftkit
from ftkit.errors import ConfigError
from tests.helpers import save_tiny_model

HEAVY = {"torch", "transformers", "pydantic", "yaml", "click"}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """The settings of a run of one step."""
    folder = tmp_path_factory.mktemp("api")
    save_tiny_model(folder / "llama", "llama")
    rows = [f"film was {word} and {word} number {number},{word}" for number in range(20) for word in ("good", "bad")]
    (folder / "texts.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return [
        f"model.name={folder / 'llama'}",
        f"data.dataset={folder / 'texts.csv'}",
        f"output.folder={folder / 'run'}",
        "training.max_steps=1",
        "data.max_length=16",
    ]


def test_importing_the_package_loads_no_library():
    code = "import sys, ftkit; ftkit.__version__; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & HEAVY


def test_every_public_name_can_be_called_and_is_listed():
    assert {"train", "plan", "read_record", "load_config"} == set(ftkit.__all__) <= set(dir(ftkit))
    assert all(callable(getattr(ftkit, name)) for name in ftkit.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'ftkit' has no attribute 'no_such_name'"):
        _ = ftkit.no_such_name


def test_a_plan_and_a_training_leave_what_read_record_reads(settings):
    config = ftkit.load_config(settings=settings)
    assert ftkit.plan(config, gpu="t4").fits
    record = ftkit.train(config)
    assert record.result.status == "completed"
    assert record.result.reopened_difference == 0.0, "by default what was saved is opened again"
    assert ftkit.read_record(config.output.folder) == record


def test_a_plan_is_called_by_the_name_of_its_room_whatever_was_imported_of_it(settings):
    import ftkit.plan.predict  # sets the attribute `plan` of the package to the room

    prediction = ftkit.plan({"model": {"name": "gpt2"}}, "t4", memory_budget="256MiB", samples=3200)
    assert not prediction.fits
    assert prediction.num_steps == 300


def test_a_configuration_may_be_a_yaml_file(tmp_path):
    (tmp_path / "run.yaml").write_text("model: {name: gpt2}\n")
    plans = [ftkit.plan(tmp_path / "run.yaml", "t4"), ftkit.plan(str(tmp_path / "run.yaml"), "t4")]
    assert plans[0] == plans[1] == ftkit.plan(ftkit.load_config(settings=["model.name=gpt2"]), "t4")


@pytest.mark.parametrize("call", [ftkit.plan, ftkit.train])
def test_what_is_not_a_configuration_is_refused_by_its_type(call):
    with pytest.raises(ConfigError, match="a RunConfig, a mapping or a YAML file, not a list"):
        call([])
