"""What users read, and what DeepSpeed receives, word for word."""

import io
import json

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

from ftkit.cli import main
from ftkit.config.files import load_config
from ftkit.config.tree import DataConfig
from ftkit.engine.ds_config import Sizes, deepspeed_dict, read_template, template_name, templates_folder
from ftkit.models.methods.lora import Lora
from ftkit.plan.explain import explain, priced_changes
from ftkit.plan.inputs.target import find_target
from ftkit.plan.predict import Tapes, predict_with_grounds
from ftkit.report import text
from ftkit.report.collect import collect_runs
from ftkit.report.contest import contest
from ftkit.report.planned.explained import explanation_lines
from tests.golden.conftest import EXPECTED
from tests.made_records import write_runs
from tests.plan.models import architecture, run_config


def commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the words of every command below a group, the group's own first."""
    found = [path]
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        found += commands(command, (*path, name)) if isinstance(command, click.Group) else [(*path, name)]
    return found


@pytest.mark.parametrize("words", commands(main), ids=lambda words: "-".join(("ftkit", *words)))
def test_the_help_of_a_command(golden, words, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    done = CliRunner().invoke(main, [*words, "--help"], terminal_width=100, prog_name="ftkit")
    assert done.exit_code == 0
    golden(f"help/{'-'.join(('ftkit', *words))}.txt", done.output)


TEMPLATES = {
    "zero1": [1, "none", "none"],
    "zero1_offload_optimizer": [1, "cpu", "none"],
    "zero2": [2, "none", "none"],
    "zero2_offload_optimizer": [2, "cpu", "none"],
    "zero3": [3, "none", "none"],
    "zero3_offload": [3, "cpu", "cpu"],
    "zero3_offload_optimizer": [3, "cpu", "none"],
    "zero3_offload_parameters": [3, "none", "cpu"],
    "zero3_nvme": [3, "nvme", "nvme"],
    "zero3_nvme_optimizer": [3, "nvme", "none"],
    "zero3_nvme_parameters": [3, "none", "nvme"],
}
SIZES = Sizes(num_trainable_parameters=1_000_000, largest_trainable=65_536, largest_layer=7_000_000)
PLACES = {
    "bf16, 2 x cuda": ("bf16", 2, "cuda"),
    "fp16, 8 x cuda": ("fp16", 8, "cuda"),
    "fp32, 2 x cpu": ("fp32", 2, "cpu"),
}


def test_every_template_has_its_golden_file():
    assert set(TEMPLATES) == {path.stem for path in templates_folder().glob("*.json")}
    assert set(TEMPLATES) == {path.stem for path in (EXPECTED / "deepspeed").glob("*")}


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_deepspeed_receives_of_a_template(golden, name):
    stage, optimizer, parameters = TEMPLATES[name]
    settings = [f"engine.zero_stage={stage}", f"engine.offload_optimizer={optimizer}"]
    settings += [f"engine.offload_parameters={parameters}", "engine.nvme_path=/nvme"]
    config = load_config(settings=settings)
    assert template_name(config.engine) == name
    template = read_template(config.engine)
    received = {place: deepspeed_dict(template, config, *where, SIZES) for place, where in PLACES.items()}
    golden(f"deepspeed/{name}.json", json.dumps(received, indent=2) + "\n")


def test_what_a_plan_rests_on(golden):
    config = run_config("llama", Lora(targets=("all-linear",)), data=DataConfig(max_length=128))
    tapes = Tapes()
    grounds = predict_with_grounds(config, find_target("t4"), architecture("llama"), tapes=tapes)
    # The versions are those of whoever runs this.
    explanation = explain(grounds, priced_changes(grounds, tapes)).model_copy(update={"versions": {"torch": "2.13.0"}})
    golden("report/explanation.txt", "\n".join(explanation_lines(explanation)) + "\n")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Nine made runs, the last of which failed."""
    return collect_runs([write_runs(tmp_path_factory.mktemp("runs"), 9)])


@pytest.mark.parametrize("width", [80, 160])
def test_the_table_of_a_terminal(golden, runs, width):
    file = io.StringIO()
    text.print_table(runs, Console(width=width, file=file, color_system=None, legacy_windows=False))
    golden(f"report/terminal-{width}.txt", "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n")


@pytest.mark.parametrize(
    ("name", "render"),
    [
        ("report.md", text.markdown),
        ("report.csv", text.as_csv),
        ("report.tex", lambda runs: text.comparison_latex(contest(runs))),
    ],
)
def test_the_tables_of_a_report(golden, runs, name, render):
    golden(f"report/{name}", render(runs))
