"""The hub is asked only for what could be there, and once."""

import os
import socket

import pytest

from ftkit.machine.hub import work_offline_if_unreachable


@pytest.fixture(autouse=True)
def online(monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "")  # so that what the test sets is undone
        monkeypatch.delenv(name)


def test_a_hub_that_does_not_answer_leaves_the_cache(monkeypatch):
    with socket.socket() as closed:  # bound and not listening: a connection is refused at once
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert work_offline_if_unreachable(["org/model", "demo"])
    assert os.environ["HF_HUB_OFFLINE"] == os.environ["HF_DATASETS_OFFLINE"] == "1"


def test_a_hub_that_answers_is_used(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert not work_offline_if_unreachable(["org/model"])
    assert "HF_HUB_OFFLINE" not in os.environ


def test_local_names_ask_nobody(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise AssertionError("a connection for a local file")

    monkeypatch.setattr(socket, "create_connection", refuse)
    (tmp_path / "texts.csv").touch()
    assert not work_offline_if_unreachable(["demo", "./model", str(tmp_path / "texts.csv")])
