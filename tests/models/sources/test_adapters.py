"""A run goes on from an adapter: its base, its settings, its labels and its weights are found by its folder."""

import json
import shutil

import pytest
import torch

from ftkit.config.files import load_config
from ftkit.engine.resolve import Devices, resolve
from ftkit.errors import ConfigError, ModelError
from ftkit.machine.process import ProcessContext
from ftkit.models.sources.source import load_config as architecture_of
from ftkit.models.sources.source import own_label_names, resolve_source
from ftkit.models.sources.weights import load_weights
from ftkit.records.files import read_record
from ftkit.records.origin import LABELS
from ftkit.training.results.folder import check_folder
from tests.e2e.command import QUICK, flags, run
from tests.e2e.conftest import work
from tests.helpers import save_tiny_model

__all__ = ["work"]
SETTINGS = ("--rank", 4, "--alpha", 8, "--target", "attention", "--set", "method.use_dora=true")


@pytest.fixture(scope="module")
def first(work, tmp_path_factory):
    """A run of two steps with adapters that are not those of the defaults."""
    folder = tmp_path_factory.mktemp("adapters") / "first"
    done = run(*flags(work, folder, "--max-steps", 2, "--learning-rate", 0.02, *SETTINGS))
    assert done.exit_code == 0, done.output
    return folder


def resolved(*settings, **keywords):
    config = load_config(settings=[f"{key}={value}" for key, value in keywords.items()] + list(settings))
    return resolve(config, Devices.of(ProcessContext()))


@pytest.mark.parametrize("named", ["", "model"], ids=["the run's folder", "the adapter's folder"])
def test_a_run_goes_on_from_an_adapter_where_that_ended(named, first, work, tmp_path):
    done = run(*flags(work, tmp_path / "second", "--model", first / named, "--max-steps", 1, "--learning-rate", 1e-9))
    assert done.exit_code == 0, done.output
    assert "new, drawn" not in done.output
    ended, second = read_record(first), read_record(tmp_path / "second")
    assert second.last_evaluation("test").loss == pytest.approx(ended.last_evaluation("test").loss, rel=1e-5)
    adapter = json.loads((tmp_path / "second" / "model" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(work / "bert")
    assert (adapter["r"], adapter["lora_alpha"], adapter["use_dora"]) == (4, 8, True)


def test_the_settings_of_an_adapter_are_taken_and_others_refused(first):
    method = resolved(**{"model.name": first}).config.method
    assert (method.rank, method.alpha, method.use_dora, set(method.targets)) == (4, 8, True, set(method.targets))
    assert {name.rsplit(".")[-1] for name in method.targets} == {"query", "key", "value", "dense"}
    assert resolved("method.name=qlora", **{"model.name": first}).config.method.rank == 4
    with pytest.raises(ModelError, match=r"made with method\.rank=4; leave"):
        resolved("method.rank=16", **{"model.name": first})
    with pytest.raises(ModelError, match=r"trains a whole model; go on with --method lora or qlora, or start from"):
        resolved("method.name=full", **{"model.name": first})


def test_labels_have_the_numbers_that_the_head_was_trained_with(first, tmp_path):
    config = load_config(settings=[f"model.name={first}"])
    assert own_label_names(resolve_source(config.model, config.task)) == ("no", "yes")
    shutil.copytree(first / "model", tmp_path / "moved")
    config = load_config(settings=[f"model.name={tmp_path / 'moved'}"])
    assert own_label_names(resolve_source(config.model, config.task)) == ("no", "yes")
    (tmp_path / "moved" / LABELS).unlink()
    with pytest.raises(ModelError, match=r"which label is which number.*model\.new_head=true"):
        own_label_names(resolve_source(config.model, config.task))


def test_a_base_that_is_gone_is_named(first, tmp_path):
    shutil.copytree(first / "model", tmp_path / "lost")
    file = tmp_path / "lost" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "/not/there"}))
    with pytest.raises(ModelError, match=r"an adapter of the model in /not/there, which is not there"):
        resolve_source(load_config(settings=[f"model.name={tmp_path / 'lost'}"]).model, "causal-lm")


def test_adapters_beside_experts_are_opened_and_gone_on_from(tmp_path):
    save_tiny_model(tmp_path / "mixture", "mixtral")
    (tmp_path / "texts.csv").write_text("text\n" + "".join(f"good film number {n} the plot\n" for n in range(40)))
    given = ["--task", "causal-lm", "--dataset", tmp_path / "texts.csv", "--max-length", 16, "--global-batch-size", 4]
    given += ["--no-plan", "--precision", "fp32", "--learning-rate", 0.02, "--max-steps", 2, "--method", "lora"]
    given += QUICK
    done = run(*given, "--model", tmp_path / "mixture", "--target", "experts", "--output", tmp_path / "first")
    assert done.exit_code == 0, done.output
    fields = json.loads((tmp_path / "first" / "model" / "adapter_config.json").read_text())
    assert any("experts" in name for name in fields["target_parameters"])
    again = run(*given, "--model", tmp_path / "first", "--learning-rate", 1e-9, "--output", tmp_path / "second")
    assert again.exit_code == 0, again.output
    ended, went_on = (read_record(tmp_path / name).last_evaluation("test").loss for name in ("first", "second"))
    assert went_on == pytest.approx(ended, rel=1e-5)  # what was trained is there, and hardly moved since
    untrained = read_record(tmp_path / "first").steps[0].loss
    assert ended < untrained


@pytest.mark.parametrize(
    "settings",
    [
        ["model.name={run}/model", "output.folder={run}", "output.overwrite=true"],
        ["model.name={run}", "output.folder={run}", "output.overwrite=true"],
        ["model.name={run}/model", "output.folder={base}"],
        ["data.dataset={run}/model", "output.folder={run}", "output.overwrite=true"],
        ["data.dataset={data}", "output.folder={data}"],
    ],
)
def test_a_run_never_writes_over_what_it_reads(settings, first, work, tmp_path):
    places = {"run": first, "base": work / "bert", "data": tmp_path}
    config = load_config(settings=[one.format(**places) for one in settings])
    with pytest.raises(ConfigError, match=r"which this run reads; name another result folder with --output"):
        check_folder(config, is_resumed=False)
    assert (first / "model" / "adapter_config.json").is_file()


def test_a_run_without_a_model_says_how_to_finish_it(first, tmp_path):
    run = tmp_path / "my run"
    run.mkdir()
    shutil.copy(first / "record.jsonl", run)
    with pytest.raises(ModelError, match=rf"has left no model; finish it with --resume '{run}'"):
        resolve_source(load_config(settings=[f"model.name={run}"]).model, "causal-lm")


def test_a_new_head_takes_the_place_of_the_adapters(first):
    config = load_config(settings=[f"model.name={first}", "model.new_head=true"])
    config = resolve(config, Devices.of(ProcessContext())).config
    source = resolve_source(config.model, config.task)
    said: list[str] = []
    _, start = load_weights(config, source, architecture_of(source, ("a", "b", "c"), 0), torch.float32, said.append)
    assert start.has_new_head
    assert said[-1] == "new, drawn by the seed: classifier"
