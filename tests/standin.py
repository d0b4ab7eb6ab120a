"""A small stand-in of the Hugging Face hub: real files behind the few paths that its client asks for."""

from __future__ import annotations

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
Files = Mapping[str, Path]


@dataclass
class Hub:
    """Repositories by name, data sets as ``datasets/org/name``, and what was asked for so far."""

    repositories: Mapping[str, Files]
    url: str = ""
    requests: list[str] = field(default_factory=list)


@contextmanager
def serving(repositories: Mapping[str, Files]) -> Iterator[Hub]:
    """A hub on a free port of this machine, for as long as the block runs."""
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

        def _reply(self, with_body: bool) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            body, headers = _answer(hub, self.path.partition("?")[0])
            self.send_response(404 if body is None else 200)
            for name, value in {**headers, "Content-Length": str(len(body or b""))}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body and body:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Silent: ``hub.requests`` has it all."""

    return Handler


def _answer(hub: Hub, path: str) -> tuple[bytes | None, dict[str, str]]:
    """The body, None for what is not there, and headers."""
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
