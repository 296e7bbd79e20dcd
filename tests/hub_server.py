"""A model hub in a thread: as much of its interface as pushing and loading a student need."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

TOKEN = "hf_of_a_test"


class Hub:
    """Repositories in memory.

    Attributes:
        url: of the server.
        repos: by name, whether each is private and its branches with their files.
        refuses: HTTP status of every answer, where that is set.
        requests: method and path of each.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.repos: dict[str, dict[str, Any]] = {}
        self.refuses: int | None = None
        self.requests: list[str] = []

    def create(self, name: str, private: bool = False) -> None:
        """Make an empty repository."""
        self.repos[name] = {"private": private, "branches": {"main": {".gitattributes": b""}}}

    def files(self, name: str, revision: str = "main") -> dict[str, bytes] | None:
        """Files of a branch, or of a commit; None where there is no such thing."""
        branches = self.repos.get(name, {"branches": {}})["branches"]
        return next((files for branch, files in branches.items() if revision in (branch, commit(files))), None)


def connect(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Let the hub's client take the server at `url` for the hub; it read its settings when it was imported."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def disconnect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the hub's client reach no hub: nobody listens on the port of discard."""
    connect(monkeypatch, "http://127.0.0.1:9")


def commit(files: dict[str, bytes]) -> str:
    """Hash of a commit that holds these files."""
    return hashlib.sha1(repr([(path, _oid(content)) for path, content in sorted(files.items())]).encode()).hexdigest()


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that answers until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub = Hub(f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.hub  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._read()

    def do_HEAD(self) -> None:
        self._read()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub, path = self._begin()
        if hub.refuses:
            self._answer(hub.refuses, {"error": "refused"})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": "Invalid credentials in Authorization header"})
        elif path == "/api/repos/create":
            self._create(hub, json.loads(body))
        elif path == "/api/validate-yaml":
            self._answer(200, {"warnings": [], "errors": []})
        else:
            owner, name, action, *revision = path.removeprefix("/api/models/").split("/")
            repo = f"{owner}/{name}"
            {"preupload": self._preupload, "commit": self._commit, "branch": self._branch}[action](
                hub, repo, "/".join(revision), body
            )

    def _begin(self) -> tuple[Hub, str]:
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)  # type: ignore[attr-defined]
        hub.requests.append(f"{self.command} {path}")
        return hub, path

    def _answer(self, status: int, content: Any, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _create(self, hub: Hub, wanted: dict[str, Any]) -> None:
        repo = f"{wanted['organization']}/{wanted['name']}"
        if wanted["organization"] != "me":
            self._answer(403, {"error": "no rights"})
        elif repo in hub.repos:
            self._answer(409, {"error": "there already", "url": f"{hub.url}/{repo}"})
        else:
            hub.create(repo, private=wanted.get("visibility") == "private")
            self._answer(200, {"url": f"{hub.url}/{repo}"})

    def _branch(self, hub: Hub, repo: str, branch: str, body: bytes) -> None:
        branches = hub.repos[repo]["branches"]
        status = 409 if branch in branches else 200
        branches.setdefault(branch, dict(branches["main"]))
        self._answer(status, {})

    def _preupload(self, hub: Hub, repo: str, revision: str, body: bytes) -> None:
        files = [
            {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]
        ]
        self._answer(200, {"files": files})

    def _commit(self, hub: Hub, repo: str, revision: str, body: bytes) -> None:
        files = hub.repos[repo]["branches"][revision]
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del files[line["value"]["path"]]
        self._answer(200, {"commitUrl": f"{hub.url}/{repo}/commit/{commit(files)}", "commitOid": commit(files)})

    def _read(self) -> None:
        hub, path = self._begin()
        parts = path.strip("/").split("/")
        api = parts[0] == "api"
        if api and parts[1] != "models":
            return self._answer(404, {"error": "no such thing here"})
        owner, name, *rest = parts[2:] if api else parts
        repo = f"{owner}/{name}"
        revision = rest[1] if len(rest) > 1 else "main"
        files = hub.files(repo, revision)
        private = hub.repos.get(repo, {}).get("private", False)
        if hub.refuses:
            self._answer(hub.refuses, {"error": "refused"})
        elif repo not in hub.repos or (private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            self._answer(401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        elif files is None:
            self._answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        elif not api:
            self._file(files, "/".join(rest[2:]))
        elif rest[:1] == ["tree"]:
            self._answer(200, [_entry(path, content) for path, content in files.items()])
        else:
            siblings = [{"rfilename": path} for path in files]
            self._answer(200, {"id": repo, "sha": commit(files), "private": private, "siblings": siblings})

    def _file(self, files: dict[str, bytes], path: str) -> None:
        content = files[path]
        self._answer(200, content, ETag=f'"{_oid(content)}"', X_Repo_Commit=commit(files))


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": _oid(content)}


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
