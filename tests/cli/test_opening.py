"""What cannot be is told before anything that takes seconds, and what takes seconds is announced."""

import json
import os
import socket
import subprocess
import sys

import pytest
from click.testing import CliRunner

from ftkit.cli import main
from ftkit.errors import ConfigError, DataError
from ftkit.machine.hub import is_cached
from ftkit.models.sources.adapters import asked_names

ASKING = {"predict": ["a text"], "evaluate": [], "chat": [], "export": ["--to", "merged"]}


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """Leave a hub that refuses connections at once, an empty cache, and an empty folder to work in."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "")  # so that what the test sets is undone
        monkeypatch.delenv(name)
    with socket.socket() as closed:  # bound and not listening
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        (tmp_path / "runs" / "mine").mkdir(parents=True)
        yield tmp_path


def refusal(*arguments):
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code in (3, 4), done.output
    return done.output.splitlines()[-1]


@pytest.mark.parametrize("command", ASKING)
@pytest.mark.parametrize("run", ["./absent", "a/b/c", "runs/nine", "a text in the wrong place", "x" * 300 + " y"])
def test_a_folder_that_is_not_there_is_told_before_any_library_is_loaded(command, run, no_hub, monkeypatch):
    def refuse(*_):
        raise AssertionError("the libraries were loaded first")

    monkeypatch.setattr(f"ftkit.cli.{command}.quieten", refuse)
    told = refusal(command, run, *ASKING[command])
    assert told.startswith(f"error: there is no folder {run}; give a run's folder"), told
    assert ("did you mean 'runs/mine'?" in told) == (run == "runs/nine")


def test_a_file_that_is_given_as_a_text_is_taken_for_neither(no_hub):
    (no_hub / "some texts.csv").write_text("text\nlong winded\n")
    done = CliRunner().invoke(main, ["predict", "runs/mine", "a text", "some texts.csv"])
    assert done.exit_code == 2
    assert "error: some texts.csv is a file; to answer its rows: --dataset 'some texts.csv'" in done.output
    assert "is a file" not in refusal("predict", "runs/mine", "a text.", "x" * 5000 + ".csv")


def test_a_model_that_the_cache_has_is_not_taken_for_a_folder(no_hub):
    (no_hub / "cache" / "models--runs--nine").mkdir(parents=True)
    assert is_cached("runs/nine")
    assert "no folder" not in refusal("predict", "runs/nine", "a text")


def test_the_hub_may_be_asked_for_the_base_of_an_adapter(no_hub):
    adapter = no_hub / "runs" / "mine"
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))
    assert asked_names("runs/mine") == ("runs/mine", "owner/base")
    assert asked_names("owner/other") == ("owner/other",)


@pytest.mark.parametrize(
    "command",
    [["tune"], ["compare"], ["train", "--seeds", "2"], ["study", "features"]],
    ids=lambda command: command[0],
)
def test_several_runs_are_refused_once_for_what_each_would_be_refused_for(command, no_hub):
    assert "no file absent.csv" in refusal(*command, "--dataset", "absent.csv", "--output", "out")
    assert "no model at" in refusal(*command, "--model", "./absent", "--output", "out")
    assert not (no_hub / "out").exists()


def test_a_first_line_is_shown_before_what_takes_seconds_to_load():
    code = """
import sys
from importlib import import_module

def shown(*_, **__):
    sys.exit(f"loaded first: {loaded}" if (loaded := {"torch", "transformers"} & set(sys.modules)) else 7)

for name in ("train", "plan.command", "tune.command", "study", "predict"):
    module = f"ftkit.cli.{name}"
    command = import_module(module)
    name = "begin_with" if module.endswith("predict") else "say_begun"
    setattr(command, name, shown)
    called = getattr(command, module.split(".")[2])
    try:
        called({"ftkit.cli.study": ["features"], "ftkit.cli.predict": ["run", "a text"]}.get(module, []))
    except SystemExit as end:
        assert end.code == 7, f"{module}: {end.code}"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [["report", ""], ["data", ""], ["train", "--dataset", ""], ["plan", "--model", ""]])
def test_an_empty_name_is_not_the_folder_where_the_command_runs(words):
    done = CliRunner().invoke(main, words)
    assert done.exit_code in (ConfigError.exit_code, DataError.exit_code), done.output
    assert "is empty; give a" in done.output
