"""A stand-in of the Hugging Face hub over loopback: what its own client calls, no more.

Repositories are kept in memory, a list of commits each. It speaks the protocol of git-lfs for
large files, as the hub does to clients without Xet.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "a" * 34
READ_ONLY = "hf_" + "b" * 34


@dataclass
class Repo:
    """Branches and tags, each with the files of its last commit."""

    private: bool = False
    gated: bool = False
    heads: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    messages: list[str] = field(default_factory=list)

    def sha(self, revision: str) -> str:
        files = self.heads[revision]
        state = json.dumps([[n, hashlib.sha1(d).hexdigest()] for n, d in sorted(files.items())])
        return hashlib.sha1(state.encode()).hexdigest()

    def find(self, revision: str) -> str | None:
        """The branch or tag of a name or commit."""
        known = (name for name in self.heads if revision in (name, self.sha(name)))
        return next(known, None)


class Hub(ThreadingHTTPServer):
    """The server; `faults` by a pattern of "METHOD /path" are statuses, or "cut" to hang up."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: dict[str, int | str] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Quiet."""

    # --- answers ------------------------------------------------------------------------------

    def reply(self, status: int, content: Any = None, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content or {}).encode()
        cut = headers.pop("cut", None)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True

    def refuse(self, status: int, code: str = "", message: str = "") -> None:
        headers = {"X_Error_Code": code} if code else {}
        headers |= {"X_Error_Message": message} if message else {}
        self.reply(status, {"error": message or code}, **headers)

    # --- requests -----------------------------------------------------------------------------

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        asked = f"{self.command} {path}"
        self.server.asked.append(asked)
        for pattern, fault in self.server.faults.items():
            if re.search(pattern, asked):
                if fault == "cut":
                    self.close_connection = True
                    return
                if isinstance(fault, int):
                    self.refuse(fault, message="out of order" if fault >= 500 else "refused")
                    return
        routes = {
            r"POST /api/validate-yaml": lambda: self.reply(200, {"errors": [], "warnings": []}),
            r"POST /api/repos/create": lambda: self.create(json.loads(body)),
            r"POST /api/models/([^/]+/[^/]+)/preupload/(.+)": lambda *a: self.preupload(*a, body),
            r"POST /([^/]+/[^/]+)\.git/info/lfs/objects/batch": lambda *a: self.batch(*a, body),
            r"PUT /lfs/(\w+)": lambda oid: self.store(oid, body),
            r"POST /api/models/([^/]+/[^/]+)/commit/(.+)": lambda *a: self.commit(*a, body, query),
            r"GET /api/models/([^/]+/[^/]+)(?:/revision/(.+))?": self.info,
            r"GET /api/models/([^/]+/[^/]+)/tree/([^/]+).*": self.tree,
            r"(?:HEAD|GET) /([^/]+/[^/]+)/resolve/([^/]+)/(.+)": self.resolve,
        }
        for pattern, act in routes.items():
            if match := re.fullmatch(pattern, asked):
                act(*match.groups())
                return
        self.refuse(404, message=f"no such endpoint: {asked}")

    # --- access -------------------------------------------------------------------------------

    @property
    def token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def readable(self, name: str) -> Repo | None:
        """The repository, or None after an error was sent, in the way of the hub."""
        repo = self.server.repos.get(name)
        if self.token and self.token not in (TOKEN, READ_ONLY):
            self.refuse(401, message="Invalid credentials in Authorization header")
        elif repo is None or (repo.private and not self.token):
            self.refuse(404 if self.token else 401, "RepoNotFound", "Repository not found")
        elif repo.gated and not self.token and "/resolve/" in self.path:
            self.refuse(401, "GatedRepo", "Access to this model is restricted.")
        else:
            return repo
        return None

    def writable(self, name: str) -> Repo | None:
        if self.token == READ_ONLY:
            message = "You don't have the rights to write to this repository"
            self.refuse(403, message=message)
            return None
        if not self.token:
            self.refuse(401, message="Please log in")
            return None
        return self.readable(name)

    # --- writing ------------------------------------------------------------------------------

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        self.server.repos.setdefault(
            name, known := Repo(asked.get("private") or asked.get("visibility") == "private")
        )
        if self.server.repos[name] is not known:
            self.reply(409, {"error": "exists", "url": f"{self.server.url}/{name}"})
        elif self.writable(name) is None:
            del self.server.repos[name]
        else:
            self.reply(200, {"url": f"{self.server.url}/{name}"})

    def preupload(self, name: str, revision: str, body: bytes) -> None:
        if self.writable(name) is None:
            return
        files = [
            {
                "path": each["path"],
                "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for each in json.loads(body)["files"]
        ]
        self.reply(200, {"files": files})

    def batch(self, name: str, body: bytes) -> None:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.server.url}/lfs/{each['oid']}"}}}
            for each in json.loads(body)["objects"]
        ]
        self.reply(200, {"transfer": "basic", "objects": objects})

    def store(self, oid: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            self.refuse(422, message="another digest")
            return
        self.server.blobs[oid] = body
        self.reply(200)

    def commit(self, name: str, revision: str, body: bytes, query: Any) -> None:
        repo = self.writable(name)
        if repo is None:
            return
        branch = "refs/pr/1" if query.get("create_pr") else revision
        if branch == revision and revision not in repo.heads:
            self.refuse(404, "RevisionNotFound", "Invalid rev id")
            return
        files = dict(repo.heads["main" if query.get("create_pr") else revision])
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                repo.messages.append(value["summary"])
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
        repo.heads[branch] = files
        url = f"{self.server.url}/{name}"
        answer = {"commitUrl": f"{url}/commit/{repo.sha(branch)}", "commitOid": repo.sha(branch)}
        if query.get("create_pr"):
            answer["pullRequestUrl"] = f"{url}/discussions/1"
        self.reply(200, answer)

    # --- reading ------------------------------------------------------------------------------

    def found(self, name: str, revision: str | None) -> tuple[Repo, str] | None:
        repo = self.readable(name)
        if repo is None:
            return None
        branch = repo.find(revision or "main")
        if branch is None:
            self.refuse(404, "RevisionNotFound", "Invalid rev id")
            return None
        return repo, branch

    def info(self, name: str, revision: str | None) -> None:
        if found := self.found(name, revision):
            repo, branch = found
            names = [{"rfilename": path} for path in repo.heads[branch]]
            answer = {"id": name, "modelId": name, "sha": repo.sha(branch), "siblings": names}
            self.reply(200, {**answer, "private": repo.private, "tags": [], "downloads": 0})

    def tree(self, name: str, revision: str) -> None:
        if found := self.found(name, revision):
            repo, branch = found
            files = repo.heads[branch].items()
            self.reply(
                200,
                [
                    {"type": "file", "path": path, "size": len(data), "oid": _blob(data)}
                    for path, data in files
                ],
            )

    def resolve(self, name: str, revision: str, path: str) -> None:
        if not (found := self.found(name, revision)):
            return
        repo, branch = found
        data = repo.heads[branch].get(path)
        if data is None:
            self.refuse(404, "EntryNotFound", "Entry not found")
            return
        fault = next((f for p, f in self.server.faults.items() if f == "half" and p in path), None)
        more = {"cut": "yes"} if fault and self.command == "GET" else {}
        etag = f'"{_blob(data)}"'
        self.reply(200, data, ETag=etag, X_Repo_Commit=repo.sha(branch), **more)


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
