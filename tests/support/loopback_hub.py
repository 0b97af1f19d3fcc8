"""A hub on loopback that answers as Hugging Face's does: data sets with commits, files, gates, limits and cut lines."""

from __future__ import annotations

import hashlib
import io
import json
import socket
import threading
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow
import pyarrow.parquet
from loopback_server import serving

TOKEN = "hf_testtokenofthehub0000"
_LARGE = 64  # bytes from which a file is kept as LFS, whose SHA-256 the API states


@dataclass
class HubRepository:
    """A data set's files at each commit, and which commit a branch is."""

    files: dict[str, bytes]
    card: dict[str, Any] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    downloads: int = 0
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.push(self.files)

    def push(self, files: dict[str, bytes], branch: str = "main") -> str:
        """A new commit on a branch."""
        content = json.dumps(sorted((name, hashlib.sha1(data).hexdigest()) for name, data in files.items()))
        commit = hashlib.sha1((branch + content).encode()).hexdigest()
        self.commits[commit] = self.branches_files(branch) | files if branch == "main" else dict(files)
        self.branches[branch] = commit
        return commit

    def branches_files(self, branch: str) -> dict[str, bytes]:
        return dict(self.commits.get(self.branches.get(branch, ""), {}))


@dataclass
class Hub:
    """What the hub holds, how it behaves, and what it was asked."""

    repositories: dict[str, HubRepository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    tokens: set[str | None] = field(default_factory=set)
    granted: bool = True
    limited: int = 0
    retry_after: str = "1"
    cut_after: int | None = None
    cuts: int = 0
    status: int = 0
    wrong_bytes: bool = False
    may_send: threading.Event = field(default_factory=threading.Event)
    ranges: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.may_send.set()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        return

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self._answer(body=True, posted=self.rfile.read(length))

    def _answer(self, *, body: bool, posted: bytes = b"") -> None:
        hub, url = self.hub, urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        with hub.lock:
            hub.requests.append(f"{self.command} {unquote(self.path)}")
            if url.path != "/":
                hub.tokens.add(self.headers.get("Authorization"))
            limited, hub.limited = hub.limited > 0 and url.path != "/", hub.limited - (url.path != "/")
        if url.path == "/":
            return self._send(200, b"", body=body)
        if hub.status:
            return self._send(hub.status, b"", body=body)
        if limited:
            return self._send(429, b"", {"Retry-After": hub.retry_after}, body=body)
        if parts[:2] == ["api", "datasets"] and len(parts) == 2:
            return self._list(parse_qs(url.query), body=body)
        if parts[:2] == ["api", "datasets"]:
            return self._api("/".join(parts[2:4]), parts[4:], posted, body=body)
        if parts[0] == "datasets" and len(parts) > 4 and parts[3] == "resolve":
            return self._resolve("/".join(parts[1:3]), parts[4], "/".join(parts[5:]), body=body)
        return self._send(404, b"", body=body)

    def _list(self, query: dict[str, list[str]], *, body: bool) -> None:
        words = query.get("search", [""])[0].lower()
        author = query.get("author", [""])[0]
        limit = int(query.get("limit", ["1000"])[0])
        found = [
            self._info(name, repository)
            for name, repository in self.hub.repositories.items()
            if words in name.lower() and name.startswith(f"{author}/" if author else "") and not repository.private
        ]
        self._json(found[:limit], body=body)

    def _api(self, name: str, rest: list[str], posted: bytes, *, body: bool) -> None:
        repository = self._repository(name, body=body)
        if repository is None:
            return None
        if rest[:1] == ["refs"]:
            branches = [
                {"name": b, "ref": f"refs/heads/{b}", "targetCommit": c} for b, c in repository.branches.items()
            ]
            return self._json({"branches": branches, "tags": [], "converts": []}, body=body)
        revision = rest[1] if len(rest) > 1 else "main"
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}", body=body)
        if rest[:1] == ["paths-info"]:
            wanted = parse_qs(posted.decode()).get("paths") or json.loads(posted).get("paths", [])
            files = repository.commits[commit]
            return self._json([_entry(path, files[path]) for path in wanted if path in files], body=body)
        if rest[:1] == ["tree"]:
            folder = "/".join(rest[2:])
            files = repository.commits[commit].items()
            return self._json([_entry(p, data) for p, data in files if p.startswith(folder)], body=body)
        return self._json(self._info(name, repository, commit), body=body)

    def _info(self, name: str, repository: HubRepository, commit: str | None = None) -> dict[str, Any]:
        commit = commit or repository.branches["main"]
        licence = repository.card.get("license")
        return {
            "_id": "1",
            "id": name,
            "author": name.split("/")[0],
            "sha": commit,
            "lastModified": "2026-01-02T03:04:05.000Z",
            "createdAt": "2026-01-02T03:04:05.000Z",
            "private": repository.private,
            "gated": "auto" if repository.gated else False,
            "disabled": False,
            "downloads": repository.downloads,
            "likes": 1,
            "tags": [f"license:{licence}"] if licence else [],
            "cardData": repository.card,
            "siblings": [_sibling(path, data) for path, data in repository.commits[commit].items()],
        }

    def _repository(self, name: str, *, body: bool) -> HubRepository | None:
        repository = self.hub.repositories.get(name)
        authorized = self.headers.get("Authorization")
        if authorized and authorized != f"Bearer {TOKEN}":
            self._send(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"}, body=body)
            return None
        if repository is None or (repository.private and authorized is None):
            if authorized is None:
                self._send(401, b'{"error":"Invalid username or password."}', body=body)
            else:
                self._error(404, "RepoNotFound", "Repository not found", body=body)
            return None
        return repository

    def _resolve(self, name: str, revision: str, path: str, *, body: bool) -> None:
        hub, repository = self.hub, self._repository(name, body=body)
        if repository is None:
            return
        if repository.gated and (self.headers.get("Authorization") is None or not hub.granted):
            status = 403 if self.headers.get("Authorization") else 401
            return self._error(status, "GatedRepo", f"Access to dataset {name} is restricted.", body=body)
        commit = repository.branches.get(revision, revision)
        files = repository.commits.get(commit)
        if files is None:
            return self._error(404, "RevisionNotFound", "Invalid rev id", body=body)
        if path not in files:
            return self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit}, body=body)
        self._file(path, files[path], commit, body=body)

    def _file(self, path: str, data: bytes, commit: str, *, body: bool) -> None:
        hub = self.hub
        headers = {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if hub.wrong_bytes:
            data = bytes(len(data))
        status, first = 200, 0
        wanted = self.headers.get("Range")
        if wanted and body:
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last = int(start), int(end) if end else len(data) - 1
            headers["Content-Range"] = f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}"
            data, status = data[first : last + 1], 206
        with hub.lock:
            cut = body and hub.cut_after is not None and hub.cuts > 0 and len(data) > hub.cut_after
            if body:
                hub.ranges += [wanted] if wanted else []
                hub.cuts -= bool(cut)
                hub.sent[path] += hub.cut_after if cut and hub.cut_after else len(data)
        if body:
            hub.may_send.wait(60)
        if not cut:
            return self._send(status, data, headers, body=body)
        self._head(status, len(data), headers)
        self.wfile.write(data[: hub.cut_after])
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
        return None

    def _json(self, value: Any, *, body: bool) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"}, body=body)

    def _error(
        self, status: int, code: str, message: str, headers: dict[str, str] | None = None, *, body: bool
    ) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}, body=body)

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None, *, body: bool) -> None:
        self._head(status, len(data), headers or {})
        if body:
            self.wfile.write(data)


def _etag(data: bytes) -> str:
    return (hashlib.sha256 if len(data) >= _LARGE else hashlib.sha1)(data).hexdigest()


def _sibling(path: str, data: bytes) -> dict[str, Any]:
    facts: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
    if len(data) >= _LARGE:
        facts["lfs"] = {"sha256": _etag(data), "size": len(data), "pointerSize": 130}
    return facts


def _entry(path: str, data: bytes) -> dict[str, Any]:
    facts: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    if len(data) >= _LARGE:
        facts["lfs"] = {"oid": _etag(data), "size": len(data), "pointerSize": 130}
    return facts


def parquet(rows: list[dict[str, Any]]) -> bytes:
    """Rows as a Parquet file."""
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def json_lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def gsm8k(count: int = 40) -> HubRepository:
    """The shape of openai/gsm8k: two configurations of two splits, in Parquet."""
    rows = [{"question": f"What is {n} plus 1?", "answer": f"It is one more.\n#### {n + 1}"} for n in range(count)]
    names = {"main": "main", "socratic": "socratic"}
    features = [{"name": "question", "dtype": "string"}, {"name": "answer", "dtype": "string"}]
    sizes = {"train": count, "test": count // 4}
    return HubRepository(
        files={"README.md": b"A card."}
        | {f"{name}/{s}-00000-of-00001.parquet": parquet(rows[:n]) for name in names for s, n in sizes.items()},
        card={
            "license": "mit",
            "configs": [
                {"config_name": name, "data_files": [{"split": s, "path": f"{name}/{s}-*"} for s in sizes]}
                for name in names
            ],
            "dataset_info": [
                {
                    "config_name": name,
                    "features": features,
                    "splits": [{"name": s, "num_bytes": 1, "num_examples": n} for s, n in sizes.items()],
                }
                for name in names
            ],
        },
        downloads=500_000,
    )


@contextmanager
def serving_hub(hub: Hub) -> Generator[str]:
    """The hub behind a port on loopback; yields the address."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    with serving(handler) as url:
        yield url
