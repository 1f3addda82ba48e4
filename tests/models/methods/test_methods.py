"""A method is one file: what this one says of itself is all that ftkit needs to know."""

import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar, Literal

import click
import pytest
import torch
import transformers
from click.testing import CliRunner

from ftkit.cli.options import config_options, read_config
from ftkit.config.files import json_schema, load_config
from ftkit.config.methods import MethodSection, methods, register
from ftkit.errors import ConfigError, ModelError
from ftkit.machine.process import ProcessContext
from ftkit.models.card import Card
from ftkit.models.saving.dtypes import Named
from ftkit.models.saving.whole import save_whole
from ftkit.models.sources.start import Start
from ftkit.plan.choices.search import cures, options_at
from ftkit.plan.inputs.target import find_target
from ftkit.plan.predict import predict
from ftkit.profile.profiler import profile_run
from ftkit.records.files import read_record
from ftkit.report.collect import collect_runs
from ftkit.report.text import markdown
from ftkit.training.loop import train_run
from ftkit.training.reporters import Reporters
from tests.helpers import WORDS, save_tiny_model


class BitFit(MethodSection):
    """Train the biases and the head (Ben Zaken et al. 2022)."""

    name: Literal["bitfit"] = "bitfit"
    modules: tuple[str, ...] = ("dense", "query", "key", "value")
    """The modules whose biases train."""
    label: ClassVar[str] = "BitFit"
    default_learning_rate: ClassVar[float] = 2e-2
    flags: ClassVar[dict[str, str]] = {"--bias": "modules"}

    def prepare(self, model: Any, start: Start, dtype: torch.dtype) -> Any:
        if not any(name.endswith(".bias") for name, _ in model.named_parameters()):
            raise ModelError(f"{type(model).__name__} has no biases; choose method lora")
        for name, parameter in model.named_parameters():
            *_, module, kind = name.split(".")
            parameter.requires_grad_(name.split(".")[0] in start.head or (kind == "bias" and module in self.modules))
        return model

    def cheaper(self) -> list[dict[str, Any]]:
        return [{"method.name": "feature-extraction"}]

    def save(self, model: Any, folder: Path, weights: Named, dtype: torch.dtype) -> None:
        save_whole(model, folder, weights, dtype)

    def loading_code(self, card: Card) -> list[str]:
        return ["# BitFit leaves a whole model", *card.program("transformers", "AutoModelFor")]


@pytest.fixture(autouse=True, scope="module")
def _registered():
    register(BitFit)
    yield
    del methods()["bitfit"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    model = save_tiny_model(folder / "bert", "bert")
    rows = [
        f"{WORDS[2 + number % 13]} {WORDS[2 + number // 13]} {WORDS[number % 2]},{('yes', 'no')[number % 2]}"
        for number in range(156)
    ]
    (folder / "texts.csv").write_text("\n".join(["text,label", *dict.fromkeys(rows)]) + "\n")
    return [
        "method.name=bitfit",
        f"model.name={model}",
        f"data.dataset={folder / 'texts.csv'}",
        "data.max_length=16",
        "batch.global_batch_size=8",
        "training.max_steps=3",
        f"output.folder={folder / 'run'}",
        "output.reopen=false",  # a new process does not know it
    ]


def only_process():
    return ProcessContext.from_environment()


def test_it_trains_saves_and_appears_in_a_report(settings):
    config = load_config(settings=[*settings, "model.precision=fp32"])
    record = train_run(config, only_process(), Reporters())

    assert record.result.status == "completed"
    folder = Path(config.output.folder)
    before = transformers.AutoModel.from_pretrained(config.model.name).state_dict()
    after = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "model").bert.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.rpartition(".")[0].endswith(BitFit().modules) and "bias" in name}
    assert "# BitFit leaves a whole model" in (folder / "README.md").read_text()
    assert record.run.prediction.num_trainable_parameters == record.result.measurement.num_trainable_parameters
    assert "| BitFit |" in markdown(collect_runs([folder]))


def test_it_is_planned_and_profiled_alike(settings, tmp_path):
    config = load_config(settings=[*settings, "model.precision=fp32"])
    prediction = predict(config, find_target())
    profile_run(config, only_process(), tmp_path, prediction, num_timed=1)

    measured = read_record(tmp_path).result.measurement
    assert measured.num_trainable_parameters == prediction.num_trainable_parameters > 0
    assert measured.peak_active_bytes == prediction.peak_active_bytes


def test_what_it_calls_cheaper_is_what_a_search_tries(settings):
    long = ["data.max_length=64", "batch.global_batch_size=32", "batch.micro_batch_size=32"]  # so activations count
    config = load_config(settings=[*settings, *long])
    needed = predict(config, find_target("t4")).peak_process_bytes
    tried = cures(config, options_at(config, find_target("t4", memory_budget=f"{needed - 1}B")))
    assert {"method.name": "feature-extraction"} in [one.changes for one in tried]


def test_its_flags_stand_on_the_command_line():
    @click.command()
    @config_options
    def command(**flags: Any) -> None:
        click.echo(read_config(flags).method.model_dump()["modules"])

    assert "BitFit: The modules whose biases train." in CliRunner().invoke(command, ["--help"]).output.replace("\n", "")
    done = CliRunner().invoke(command, ["--method", "bitfit", "--bias", "query", "--bias", "key"])
    assert done.output == "('query', 'key')\n"


def test_its_section_is_checked_and_described_as_any_other(settings):
    with pytest.raises(ConfigError, match=r"unknown key 'method.module'; did you mean 'modules'"):
        load_config(settings=["method.name=bitfit", "method.module=[query]"])
    with pytest.raises(ConfigError, match="unknown method 'bitfits'; did you mean 'bitfit'"):
        load_config(settings=["method.name=bitfits"])
    assert "The modules whose biases train." in json_schema()


def test_no_method_and_no_configuration_needs_torch():
    code = "import sys; from ftkit.config.tree import RunConfig; RunConfig(method='full'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ftkit.models.methods.lora" in done.stdout.split()
    assert not set(done.stdout.split()) & {"torch", "transformers", "peft", "bitsandbytes"}
