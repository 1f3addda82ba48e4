"""`ftkit plan` as somebody types it."""

import json

import pytest
from click.testing import CliRunner, Result

from ftkit.cli import main
from ftkit.config.files import load_config
from ftkit.models.sources.known import table_names
from ftkit.plan.choices.solve import positions
from ftkit.plan.inputs.architectures import find_architecture


def plan(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["plan", *arguments])


def test_the_cards_and_the_models_that_are_known_are_listed():
    lines = plan("--list").output.splitlines()
    assert any(line.startswith("rtx3060ti ") and "7.78 GiB" in line for line in lines)
    assert any(line.startswith("llama-3.1-8b ") and line.endswith("meta-llama/Llama-3.1-8B") for line in lines)
    listed = {words[0]: words[1] for words in map(str.split, lines) if len(words) > 2}
    for name in table_names():
        architecture = find_architecture(load_config(settings=[f"model.name={name}"]))
        assert listed[name] == f"{positions(architecture):,}", name


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--gpu", "t4"], 0),
        (["--gpu", "t4", "--memory-used", "14.4GiB", "--json"], 8),
        (["--gpu", "nosuch"], 2),
        (["--model", "nosuch-1b"], 4),
    ],
)
def test_the_exit_code_says_whether_it_fits_or_why_nobody_knows(arguments, code, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert plan("--max-length", "64", *arguments).exit_code == code


def test_an_optimizer_that_only_a_gpu_can_page_is_planned_without_one_and_a_cut_beyond_the_batch_is_told():
    flags = ["--optimizer", "paged_adamw_8bit", "--micro-batch-size", "64"]
    done = plan("--model", "gpt2", "--gpu", "t4", "--max-length", "64", "--global-batch-size", "16", *flags)
    assert done.exit_code == 0, done.output
    assert "bitsandbytes" not in done.output
    assert "batch.micro_batch_size=64 does what 16 would" in done.stderr


def test_data_that_is_elsewhere_is_told():
    done = plan("--model", "gpt2", "--gpu", "t4", "--max-length", "64", "--dataset", "elsewhere.csv")
    assert done.exit_code == 0, done.output
    assert "note: elsewhere.csv is not on this machine" in done.stderr
    assert "not on this machine" not in plan("--model", "gpt2", "--gpu", "t4", "--max-length", "64").stderr


@pytest.mark.parametrize(
    ("budget", "verdict", "advice"),
    [
        (
            ["--memory-budget", "10MiB"],
            "CUDA's context alone is 140.88 MiB, more than the 10.00 MiB of T4",
            "CUDA's context",
        ),
        (["--ram-budget", "1MiB"], "of host memory, and there are 1.00 MiB", "libraries alone take 1.40 GiB"),
    ],
)
def test_a_budget_below_what_any_process_takes_is_not_met_with_the_advice_of_a_smaller_model(budget, verdict, advice):
    done = plan("--model", "gpt2", "--gpu", "t4", "--max-length", "64", *budget)
    assert done.exit_code == 8
    assert verdict in done.output
    assert f"nothing that ftkit can change makes it fit; {advice}" in done.output
    assert "smaller model" not in done.output


@pytest.mark.slow
def test_a_search_that_the_host_s_memory_refuses_says_so():
    done = plan("--gpu", "rtx3060", "--ram-budget", "1GiB", "--search", "--max-length", "64")
    assert done.exit_code == 8
    assert "nothing fits in the 1.00 GiB of host memory" in done.output


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--advise", "--solve", "rank"], "--solve and --advise do not go together; ask one at a time"),
        (["--advise", "--write", "best.yaml"], "--write and --advise do not go together; ask one at a time"),
        (["--html", "fits.html"], "--html writes the table of --what-fits; give both"),
        (["--exact", "--search"], "--search and --exact do not go together"),
        (["--exact", "--solve", "rank"], "--solve and --exact do not go together"),
        (["--what-fits", "--samples", "9"], "--what-fits and --samples do not go together"),
        (["--list", "--json"], "--list and --json do not go together"),
        (["--gpu", "t4", "--list", "--rank", "4"], "--rank and --gpu and --list do not go together"),
    ],
)
def test_flags_of_which_one_alone_would_be_heard_are_refused(flags, said):
    done = plan(*flags)
    assert done.exit_code == 2
    assert said in done.output


def test_what_fits_is_printed_and_written_as_a_page(tmp_path, monkeypatch):
    monkeypatch.setattr("ftkit.cli.plan.what_fits.table_names", lambda: ["distilgpt2"])
    done = plan("--what-fits", "--gpu", "t4", "--html", str(tmp_path / "fits.html"))
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-3].split()[:2] == ["distilgpt2", "1,024*"]
    assert "1,024*" in (tmp_path / "fits.html").read_text(encoding="utf-8")
    assert "is a folder" in plan("--what-fits", "--html", str(tmp_path)).output


def test_cards_of_one_name_in_other_numbers_have_a_table_each_and_one_that_comes_twice_has_one(monkeypatch):
    monkeypatch.setattr("ftkit.cli.plan.what_fits.table_names", lambda: ["distilgpt2"])
    done = plan("--what-fits", "--gpu", "t4,2xt4,T4", "--json")
    fits = json.loads(done.output)
    assert [fit["device"] for fit in fits if fit["method"] == "full"] == ["T4", "2 x T4"]
