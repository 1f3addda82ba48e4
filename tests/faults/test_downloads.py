"""The ranks of one host fetch a model from the hub once: one fetches, and the others wait for it."""

import hashlib
import http.server
import threading
from collections import Counter
from pathlib import Path

import pytest

from ftkit.records.files import read_record
from tests.e2e.command import flags
from tests.faults.launched import TOOLS, Launched

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

NAME = "someone/tiny"


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub with one model, as far as its client asks for files."""

    folder: Path
    fetched: Counter[str]
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._answer(with_body=False)

    def do_GET(self):
        self._answer(with_body=True)

    def _answer(self, *, with_body):
        start, name = f"/{NAME}/resolve/main/", self.path.rpartition("/")[2]
        body = self.folder.joinpath(name).read_bytes() if self._holds(start, name) else b""
        self.send_response(200 if body else 404)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", "0" * 40)
        if body:
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        else:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if with_body and body:
            self.fetched[name] += 1
            self.wfile.write(body)

    def _holds(self, start, name):
        return self.path.startswith(start) and (self.folder / name).is_file()

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(work, monkeypatch, tmp_path):
    """A hub on this machine, and an empty cache."""
    Hub.folder, Hub.fetched = work / "bert", Counter()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    yield Hub
    server.shutdown()
    server.server_close()


def test_two_ranks_of_one_host_fetch_each_file_once(hub, work, tmp_path):
    command = [TOOLS / "torchrun", "--standalone", "--nproc-per-node", 2, "-m", "ftkit", "train"]
    with Launched(
        [*command, *flags(work, tmp_path / "run", "--model", NAME, "--max-steps", 2, "--no-plan")],
        tmp_path / "said.txt",
    ) as job:
        assert job.end() == 0, job.said()
    assert read_record(tmp_path / "run").run.world_size == 2
    assert hub.fetched["model.safetensors"] == 1
    assert set(hub.fetched.values()) == {1}, hub.fetched
