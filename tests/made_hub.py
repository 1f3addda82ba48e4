"""A hub that takes uploads over HTTP, as the client of the Hugging Face hub asks for them (huggingface_hub 2.4)."""

import base64
import hashlib
import json
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

TOKEN = "hf_good"


class Hub:
    """The server, what it was asked for, and the files of the models that were committed."""

    def __init__(self):
        self.asked: list[str] = []
        self.models: dict[str, dict[str, bytes]] = {}
        self.is_private: dict[str, bool] = {}
        self.breaks_at = ""
        """A part of an address at which the connection is closed without an answer."""
        self._blobs: dict[str, bytes] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path, token, body):
        """Return the status and the answer to what was asked for."""
        parts = path.strip("/").split("/")
        if parts[0] == "upload":
            assert hashlib.sha256(body).hexdigest() == parts[1]
            self._blobs[parts[1]] = body
            return 200, {}
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid credentials in Authorization header"}
        if path == "/api/whoami-v2":
            return 200, {"name": "me", "type": "user"}
        if parts[:2] == ["api", "models"] and len(parts) == 4:
            return (200, {"id": "/".join(parts[2:])}) if "/".join(parts[2:]) in self.models else (404, {})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.models.setdefault(name, {})
            self.is_private[name] = asked["visibility"] == "private"
            return 200, {"url": f"{self.address}/{name}"}
        if path == "/api/validate-yaml":
            return 200, {}
        if path.endswith("/info/lfs/objects/batch"):
            return 200, {"objects": [self._place(one) for one in json.loads(body)["objects"]]}
        if "/preupload/" in path:
            return 200, {"files": [_mode(one) for one in json.loads(body)["files"]]}
        if "/commit/" in path:
            self._commit("/".join(parts[2:4]), [json.loads(line) for line in body.splitlines()])
            return 200, {"commitUrl": f"{self.address}/{parts[2]}/{parts[3]}/commit/0", "commitOid": "0" * 40}
        return 404, {"error": f"nothing at {path}"}

    def _place(self, asked):
        return asked | {"actions": {"upload": {"href": f"{self.address}/upload/{asked['oid']}"}}}

    def _commit(self, name, lines):
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.models[name][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.models[name][value["path"]] = self._blobs[value["oid"]]


def _mode(asked):
    """Weights are large files, all else lies in the commit."""
    is_large = asked["path"].endswith((".safetensors", ".gguf", ".onnx"))
    return {"path": asked["path"], "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub, *connection):
        self.hub = hub
        super().__init__(*connection)

    def _answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.hub.asked.append(f"{self.command} {path}")
        if self.hub.breaks_at and self.hub.breaks_at in path:
            self.close_connection = True
            return
        status, answer = self.hub.answer(path, self.headers.get("Authorization"), body)
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = _answer  # the names that the server looks for

    def log_message(self, *_):
        """Say nothing."""
