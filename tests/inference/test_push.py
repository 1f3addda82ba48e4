"""`ftkit export --push` uploads what was exported and nothing else: the hub's own client asks a server over HTTP."""

import json
import socket

import pytest
from click.testing import CliRunner

from ftkit.cli import main
from tests.made_hub import TOKEN, Hub


@pytest.fixture
def hub(monkeypatch):
    """A hub that the client takes for the real one; large files go over HTTP, not by the client's other protocol."""
    with Hub() as server:
        use(monkeypatch, server.address)
        yield server


def use(monkeypatch, address):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture(scope="module")
def run(trained):
    """The folder of a run of two classes."""
    return trained("single", "lora")[0]


def export(run, folder, *flags):
    words = ["export", str(run), "--output", str(folder), "--no-compare", *flags]
    done = CliRunner().invoke(main, words)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def test_what_is_pushed_is_the_exported_folder_and_names_nothing_of_this_machine(hub, run, tmp_path):
    folder = tmp_path / "merged"
    done = export(run, folder, "--to", "merged", "--push", "me/mine", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["place"] == str(folder)
    exported = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert "ftkit.yaml stays here" in done.stderr
    assert hub.models == {"me/mine": {name: content for name, content in exported.items() if name != "ftkit.yaml"}}
    assert hub.is_private == {"me/mine": True}
    assert f"uploaded to {hub.address}/me/mine" in done.stderr
    lines = [line for file in run.glob("../single/*.jsonl") for line in file.read_text(encoding="utf-8").splitlines()]
    texts = [text for line in lines if len(text := json.loads(line)["text"]) > 9]
    assert texts
    for name, content in hub.models["me/mine"].items():
        if name != "tokenizer.json":  # which holds the same words
            assert str(run.parent).encode() not in content, name
            assert str(tmp_path).encode() not in content, name
            assert not [text for text in texts if text.encode() in content], name
    assert 'folder = "me/mine"' in (folder / "README.md").read_text(encoding="utf-8")


def test_nothing_is_asked_of_the_hub_without_the_flag(hub, run, tmp_path):
    assert export(run, tmp_path / "merged", "--to", "merged").exit_code == 0
    assert hub.asked == []


def test_an_adapter_whose_base_model_only_this_machine_has_is_not_pushed(hub, run, tmp_path):
    done = export(run, tmp_path / "adapter", "--to", "adapter", "--push", "me/mine")
    assert done.exit_code == 2
    assert "export it with --to merged" in done.output
    assert hub.models == {}
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    ("token", "name", "reason", "cure"),
    [
        ("hf_bad", "me/mine", "Invalid user token", "log in with `hf auth login`"),
        (TOKEN, "me/mine/too", "Repo id must be", "give another name"),
        ("", "me/mine", "no token found", "log in with `hf auth login`"),
    ],
)
def test_a_login_or_a_name_that_the_hub_refuses_is_a_sentence_before_anything_is_made(
    token, name, reason, cure, hub, run, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    done = export(run, tmp_path / "merged", "--to", "merged", "--push", name)
    assert done.exit_code == 7
    assert reason in done.output
    assert done.output.rstrip().partition("nothing has been made yet: ")[2].startswith(cure)
    assert done.output.count("\n") == 2  # what is opened, and the sentence
    assert hub.models == {}
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("place", ["/repos/create", "/commit/"])
def test_a_connection_that_breaks_is_a_sentence_and_the_folder_is_whole(place, hub, run, tmp_path):
    hub.breaks_at = place
    done = export(run, tmp_path / "merged", "--to", "merged", "--push", "me/mine")
    assert done.exit_code == 7
    assert "Server disconnected" in done.output
    assert f"try `hf upload me/mine {tmp_path / 'merged'} --exclude ftkit.yaml`" in done.output
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert not hub.models.get("me/mine")


def test_a_hub_that_takes_no_connection_is_a_sentence(run, tmp_path, monkeypatch):
    with socket.socket() as closed:  # bound and not listening: a connection is refused at once
        closed.bind(("127.0.0.1", 0))
        use(monkeypatch, f"http://127.0.0.1:{closed.getsockname()[1]}")
        done = export(run, tmp_path / "merged", "--to", "merged", "--push", "me/mine")
    assert done.exit_code == 7
    assert "cannot upload me/mine: " in done.output
    assert "nothing has been made yet: try again" in done.output
