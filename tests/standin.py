"""A fake Hugging Face hub on this machine: real files behind the few paths that huggingface_hub requests."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_thisTokenMayWriteToTheRepositoriesOfMe"
"""A token with write access to the repositories of ``me``."""
Files = Mapping[str, Path]


@dataclass
class Hub:
    """Repositories by name (data sets as ``datasets/org/name``), and a record of requests and uploads.

    ``uploaded`` maps a repository to its files, ``private`` a created repository to its visibility.
    """

    repositories: Mapping[str, Files]
    url: str = ""
    requests: list[str] = field(default_factory=list)
    uploaded: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)


@contextmanager
def serving(repositories: Mapping[str, Files]) -> Iterator[Hub]:
    """A hub on a free port of this machine, until the block ends."""
    hub = Hub(repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._reply(with_body=True)

        def do_HEAD(self) -> None:
            self._reply(with_body=False)

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            status, answer = _written(hub, self.path, content) if known else (401, {"error": "invalid token"})
            hub.requests.append(f"{self.command} {self.path}")
            self._send(status, json.dumps(answer).encode(), {"Content-Type": "application/json"}, with_body=True)

        def _reply(self, with_body: bool) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            body, headers = _answer(hub, self.path.partition("?")[0])
            self._send(404 if body is None else 200, body, headers, with_body)

        def _send(self, status: int, body: bytes | None, headers: Mapping[str, str], with_body: bool) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body or b""))}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body and body:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log nothing; ``hub.requests`` records the requests."""

    return Handler


def _answer(hub: Hub, path: str) -> tuple[bytes | None, dict[str, str]]:
    """The body (None for 404) and the headers."""
    if (match := re.fullmatch(r"/api/models/([^/]+/[^/]+)", path)) and match[1] in hub.private:
        found = {"id": match[1], "private": hub.private[match[1]], "tags": [], "siblings": []}
        return json.dumps(found).encode(), {"Content-Type": "application/json"}
    if match := re.fullmatch(r"/api/(?:models/)?(.+)/(revision|tree)/[^/]+", path):
        files = hub.repositories.get(match[1])
        if files is None:
            return None, {"X-Error-Code": "RepoNotFound"}
        contents = {name: file.read_bytes() for name, file in files.items()}
        if match[2] == "tree":
            listing: object = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in contents.items()
            ]
        else:
            listing = {"id": match[1], "sha": COMMIT, "siblings": [{"rfilename": name} for name in contents]}
        return json.dumps(listing).encode(), {"Content-Type": "application/json"}
    if match := re.fullmatch(r"/(.+)/resolve/[^/]+/(.+)", path):
        file = hub.repositories.get(match[1], {}).get(match[2])
        if file is None:
            return None, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
        content = file.read_bytes()
        return content, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
    return None, {}


def _written(hub: Hub, path: str, content: bytes) -> tuple[int, dict[str, object]]:
    """The status and the body for a POST request."""
    lines = [json.loads(line) for line in content.decode().splitlines()]
    if path == "/api/repos/create":
        name = f"{lines[0]['organization']}/{lines[0]['name']}"
        if not name.startswith("me/"):
            return 403, {"error": "no write access"}
        if name in hub.private:
            return 409, {"error": "exists", "url": f"{hub.url}/{name}"}
        hub.private[name] = lines[0].get("visibility") == "private"
        return 200, {"url": f"{hub.url}/{name}"}
    if path == "/api/validate-yaml":
        return 200, {"errors": [], "warnings": []}
    if path.endswith("/preupload/main"):
        small = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in lines[0]["files"]]
        return 200, {"files": small}
    if match := re.fullmatch(r"/api/models/(.+)/commit/main", path):
        files = [line["value"] for line in lines if line["key"] == "file"]
        hub.uploaded[match[1]] = {file["path"]: base64.b64decode(file["content"]) for file in files}
        return 200, {"success": True, "commitOid": COMMIT, "commitUrl": f"{hub.url}/{match[1]}/commit/{COMMIT}"}
    return 404, {"error": f"unexpected path {path}"}
