# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""A Hub on the loopback: what the unmodified `huggingface_hub` client asks for, answered over its real protocol.

Models alone, kept in memory, by LFS and not by Xet. Repositories have branches, tags and commits, may be private, and
change by commits only, which take place whole or not at all. Faults can be ordered.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote

import yaml


# What the Hub writes into a new repository; these files go through LFS.
LFS_FILES = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.onnx", "*.parquet", "*.zip", "*tfevents*")
GIT_ATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_FILES).encode()


class HubError(Exception):
    """An answer other than success, with the headers that tell the client which."""

    def __init__(self, status: int, message: str, code: str | None = None, **extra: Any):
        super().__init__(message)
        self.status, self.message, self.code, self.extra = status, message, code, extra


@dataclass
class Repository:
    """Commits are mappings from path to content; branches and tags name commits."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        identity = repr((len(self.commits), branch, message, sorted(files))).encode()
        sha = hashlib.sha1(identity).hexdigest()
        self.commits[sha], self.messages[sha], self.branches[branch] = files, message, sha
        return sha

    def resolve(self, revision: str) -> str:
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        if sha not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.resolve(revision)]


@dataclass
class Fault:
    """Requests that match are answered with `status`, or cut after `cut_after` bytes of their body: after the first
    `spared` of them the next `times`."""

    method: str
    path: str
    status: int | None = None
    cut_after: int | None = None
    times: int = 1
    spared: int = 0


def blob_id(content: bytes) -> str:
    """What git names a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def is_lfs(path: str, size: int) -> bool:
    return any(fnmatch(path, pattern) for pattern in LFS_FILES) or size > 10_000_000


def card_metadata(files: dict[str, bytes]) -> dict[str, Any]:
    """The block between the first two lines of dashes of README.md."""
    found = re.match(r"\s*---\s*\n(.*?)\n---\s*\n", files.get("README.md", b"").decode(), re.DOTALL)
    return (yaml.safe_load(found[1]) or {}) if found else {}


class HubServer:
    """A running Hub: `repositories` by id, `users` by token, `faults` to come, and the `requests` it had.

    A request that it does not know is kept in `unknown` and answered with 501.
    """

    def __init__(self, users: dict[str, str]):
        self.users = users
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.unknown: list[str] = []
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        # Another host by name, as the Hub's storage is: the client takes no token there.
        self.storage_url = f"http://localhost:{self._server.server_port}/storage"

    def start(self) -> None:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times == 0 or fault.method != method or not re.search(fault.path, path):
                    continue
                if fault.spared > 0:
                    fault.spared -= 1
                    continue
                fault.times -= 1
                return fault
        return None

    def find(self, repo_id: str, user: str | None) -> Repository:
        """As the Hub answers: whoever may not see a repository is told that there is none."""
        repository = self.repositories.get(repo_id)
        if repository is not None and (not repository.private or user == repo_id.split("/")[0]):
            return repository
        if user is None:
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        raise HubError(404, "Repository not found", "RepoNotFound")

    def find_own(self, repo_id: str, user: str | None) -> Repository:
        repository = self.find(repo_id, user)
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if user != repo_id.split("/")[0]:
            raise HubError(403, "You don't have the rights to write to this repository.")
        return repository

    def describe(self, repo_id: str, repository: Repository, revision: str) -> dict[str, Any]:
        """Model info, whose task, library and tags the Hub computes from the card."""
        sha = repository.resolve(revision)
        files = repository.commits[sha]
        card = card_metadata(files)
        config = json.loads(files.get("config.json", b"{}"))
        tags = [card.get("library_name"), card.get("pipeline_tag"), *(card.get("tags") or [])]
        tags += ["safetensors"] if any(path.endswith(".safetensors") for path in files) else []
        tags += ["custom_code"] if "auto_map" in config else []
        tags += [config.get("model_type")]
        for name, prefix in (("license", "license"), ("datasets", "dataset"), ("base_model", "base_model")):
            values = card.get(name) or []
            tags += [f"{prefix}:{value}" for value in ([values] if isinstance(values, str) else values)]
        return {
            "id": repo_id,
            "modelId": repo_id,
            "author": repo_id.split("/")[0],
            "sha": sha,
            "private": repository.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "library_name": card.get("library_name"),
            "pipeline_tag": card.get("pipeline_tag"),
            "tags": list(dict.fromkeys(tag for tag in tags if tag)),
            "cardData": card,
            "model-index": card.get("model-index"),
            "config": {key: config[key] for key in ("architectures", "model_type", "auto_map") if key in config},
            "siblings": [{"rfilename": path} for path in sorted(files)],
        }


@contextmanager
def running_hub(users: dict[str, str]) -> Iterator[HubServer]:
    """A Hub with these users by token, until the end of the block."""
    hub = HubServer(users)
    hub.start()
    try:
        yield hub
    finally:
        hub.stop()


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_ROUTES: list[tuple[str, re.Pattern[str], Callable]] = []


def _route(methods: str, pattern: str) -> Callable[[Callable], Callable]:
    def register(function: Callable) -> Callable:
        for method in methods.split():
            _ROUTES.append((method, re.compile(pattern + r"$"), function))
        return function

    return register


class _Handler(BaseHTTPRequestHandler):
    """One connection. A route's function takes this handler and the named parts of the path."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    # Answers are small, and a client waits for each.
    disable_nagle_algorithm = True

    def log_message(self, *args: Any) -> None:
        pass

    # ---- one request ----

    def do_GET(self) -> None:
        self._body: bytes | None = None
        path, _, self.query = self.path.partition("?")
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {path}")
        fault = self.hub.take_fault(self.command, path)
        if fault is not None and fault.cut_after is not None:
            self.rfile.read(fault.cut_after)
            self.close_connection = True
            self.connection.close()
            return
        try:
            if fault is not None:
                raise HubError(fault.status or 500, "A fault that was ordered.")
            self._dispatch(path)
        except HubError as error:
            headers = {"X-Error-Message": error.message}
            if error.code:
                headers["X-Error-Code"] = error.code
            if "commit" in error.extra:
                headers["X-Repo-Commit"] = error.extra.pop("commit")
            self.answer({"error": error.message, **error.extra}, error.status, headers)

    do_HEAD = do_POST = do_PUT = do_GET

    def _dispatch(self, path: str) -> None:
        for method, pattern, function in _ROUTES:
            found = pattern.match(path) if method == self.command else None
            if found:
                function(self, **{name: unquote(value or "") for name, value in found.groupdict().items()})
                return
        self.hub.unknown.append(f"{self.command} {self.path}")
        raise HubError(501, f"This Hub does not know {self.command} {path}.")

    @property
    def user(self) -> str | None:
        header = self.headers.get("Authorization")
        if header is None:
            return None
        user = self.hub.users.get(header.removeprefix("Bearer "))
        if user is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return user

    @property
    def body(self) -> bytes:
        if self._body is None:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                chunks = []
                while size := int(self.rfile.readline(), 16):
                    chunks.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                self._body = b"".join(chunks)
            else:
                self._body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return self._body

    def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """JSON, or bytes as they are."""
        # What is left unread would be taken for the next request.
        self.body  # noqa: B018
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


# ---- users and repositories ----


@_route("GET", r"/api/whoami-v2")
def _whoami(request: _Handler) -> None:
    if request.user is None:
        raise HubError(401, "Invalid username or password.")
    request.answer({"type": "user", "name": request.user, "orgs": [], "auth": {"type": "access_token"}})


@_route("GET", r"/api/agent-harnesses")
def _agents(request: _Handler) -> None:
    # The client asks which programs may call it. It lives without an answer.
    raise HubError(404, "Not found")


@_route("POST", r"/api/repos/create")
def _create(request: _Handler) -> None:
    hub, asked, user = request.hub, json.loads(request.body), request.user
    if user is None:
        raise HubError(401, "Invalid username or password.")
    owner = asked.get("organization") or user
    if owner != user:
        raise HubError(403, f"You don't have the rights to create a model under the namespace {owner!r}.")
    repo_id = f"{owner}/{asked['name']}"
    with hub.lock:
        if repo_id in hub.repositories:
            raise HubError(409, "You already created this model repo", url=f"{hub.url}/{repo_id}")
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        hub.repositories[repo_id] = repository = Repository(private)
        repository.commit("main", {".gitattributes": GIT_ATTRIBUTES}, "initial commit")
    request.answer({"url": f"{hub.url}/{repo_id}", "name": repo_id, "id": repo_id})


@_route("POST", r"/api/validate-yaml")
def _validate(request: _Handler) -> None:
    try:
        metadata = card_metadata({"README.md": json.loads(request.body)["content"].encode()})
    except yaml.YAMLError as error:
        request.answer({"errors": [{"message": str(error)}], "warnings": []}, 400)
        return
    warnings = [] if metadata else [{"message": "empty or missing yaml metadata in repo card"}]
    request.answer({"errors": [], "warnings": warnings})


@_route("GET", rf"/api/models/{_REPO}(/revision/(?P<revision>[^/]+))?")
def _info(request: _Handler, repo: str, revision: str) -> None:
    repository = request.hub.find(repo, request.user)
    request.answer(request.hub.describe(repo, repository, revision or "main"))


@_route("GET", rf"/api/models/{_REPO}/refs")
def _refs(request: _Handler, repo: str) -> None:
    repository = request.hub.find(repo, request.user)

    def describe(kind: str, refs: dict[str, str]) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha} for name, sha in refs.items()]

    branches, tags = describe("heads", repository.branches), describe("tags", repository.tags)
    request.answer({"branches": branches, "converts": [], "tags": tags})


@_route("POST", rf"/api/models/{_REPO}/branch/(?P<branch>[^/]+)")
def _branch(request: _Handler, repo: str, branch: str) -> None:
    repository = request.hub.find_own(repo, request.user)
    if branch in repository.branches:
        raise HubError(409, f"Reference already exists: {branch}")
    start = json.loads(request.body or b"{}").get("startingPoint", "main")
    repository.branches[branch] = repository.resolve(start)
    request.answer({})


@_route("POST", rf"/api/models/{_REPO}/tag/(?P<revision>[^/]+)")
def _tag(request: _Handler, repo: str, revision: str) -> None:
    repository, name = request.hub.find_own(repo, request.user), json.loads(request.body)["tag"]
    if name in repository.tags:
        raise HubError(409, f"Tag reference exists already: {name}")
    repository.tags[name] = repository.resolve(revision)
    request.answer({})


# ---- uploads ----


@_route("POST", rf"/api/models/{_REPO}/preupload/(?P<revision>[^/]+)")
def _preupload(request: _Handler, repo: str, revision: str) -> None:
    there = request.hub.find_own(repo, request.user).files(revision)
    files = []
    for asked in json.loads(request.body)["files"]:
        path, lfs = asked["path"], is_lfs(asked["path"], asked["size"])
        answer = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
        if path in there:
            answer["oid"] = sha256(there[path]) if lfs else blob_id(there[path])
        files.append(answer)
    request.answer({"files": files})


@_route("POST", rf"/{_REPO}\.git/info/lfs/objects/batch")
def _lfs_batch(request: _Handler, repo: str) -> None:
    request.hub.find_own(repo, request.user)
    objects = []
    for asked in json.loads(request.body)["objects"]:
        if asked["oid"] not in request.hub.objects:
            upload = {"href": f"{request.hub.storage_url}/{asked['oid']}"}
            verify = {"href": f"{request.hub.url}/{repo}.git/info/lfs/verify"}
            asked = {**asked, "actions": {"upload": upload, "verify": verify}}
        objects.append(asked)
    request.answer({"transfer": "basic", "objects": objects})


@_route("PUT", r"/storage/(?P<oid>[0-9a-f]{64})")
def _store(request: _Handler, oid: str) -> None:
    if request.headers.get("Authorization"):
        raise HubError(400, "Only one auth mechanism allowed")
    if sha256(request.body) != oid:
        raise HubError(400, "The content does not have the SHA-256 that was announced.")
    request.hub.objects[oid] = request.body
    request.answer(b"")


@_route("POST", rf"/{_REPO}\.git/info/lfs/verify")
def _lfs_verify(request: _Handler, repo: str) -> None:
    request.hub.find_own(repo, request.user)
    asked = json.loads(request.body)
    if len(request.hub.objects.get(asked["oid"], b"")) != asked["size"]:
        raise HubError(404, "Object not found")
    request.answer({})


@_route("POST", rf"/api/models/{_REPO}/commit/(?P<branch>[^/]+)")
def _commit(request: _Handler, repo: str, branch: str) -> None:
    hub = request.hub
    lines = [json.loads(line) for line in request.body.splitlines()]
    with hub.lock:
        repository = hub.find_own(repo, request.user)
        if branch not in repository.branches:
            raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        files, message = dict(repository.files(branch)), ""
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile" and value["oid"] in hub.objects:
                files[value["path"]] = hub.objects[value["oid"]]
            elif key == "deletedFile":
                files.pop(value["path"])
            else:
                raise HubError(400, f"What is {line} to be? An object that was not uploaded, or an unknown operation.")
        sha = repository.commit(branch, files, message)
    request.answer({"success": True, "commitOid": sha, "commitUrl": f"{hub.url}/{repo}/commit/{sha}"})


# ---- downloads ----


@_route("GET", rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?")
def _tree(request: _Handler, repo: str, revision: str, folder: str) -> None:
    files = request.hub.find(repo, request.user).files(revision)
    prefix = f"{folder}/" if folder else ""
    recursive = parse_qs(request.query).get("recursive", ["false"])[0].lower() in ("true", "1")
    entries: dict[str, dict[str, Any]] = {}
    for path, content in sorted(files.items()):
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts)):
            name = prefix + "/".join(parts[:depth])
            if recursive or depth == 1:
                entries[name] = {"type": "directory", "path": name, "oid": blob_id(name.encode()), "size": 0}
        if recursive or len(parts) == 1:
            entries[path] = {"type": "file", "path": path, "oid": blob_id(content), "size": len(content)}
            if is_lfs(path, len(content)):
                entries[path]["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 135}
    if folder and not entries:
        raise HubError(404, f"{folder} does not exist on {revision!r}", "EntryNotFound")
    request.answer(list(entries.values()))


@_route("GET HEAD", rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def _resolve(request: _Handler, repo: str, revision: str, path: str) -> None:
    repository = request.hub.find(repo, request.user)
    sha = repository.resolve(revision)
    if path not in repository.commits[sha]:
        raise HubError(404, "Entry not found", "EntryNotFound", commit=sha)
    content = repository.commits[sha][path]
    if not is_lfs(path, len(content)):
        _send(request, content, {"X-Repo-Commit": sha, "ETag": f'"{blob_id(content)}"'})
        return
    oid = sha256(content)
    # Large files lie elsewhere; a commit made in a test need not have uploaded them.
    request.hub.objects[oid] = content
    headers = {"X-Repo-Commit": sha, "X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
    request.answer(b"", 302, {**headers, "Location": f"{request.hub.storage_url}/{oid}"})


@_route("GET HEAD", r"/storage/(?P<oid>[0-9a-f]{64})")
def _fetch(request: _Handler, oid: str) -> None:
    if request.headers.get("Authorization"):
        raise HubError(400, "Only one auth mechanism allowed")
    _send(request, request.hub.objects[oid], {"ETag": f'"{oid}"'})


def _send(request: _Handler, content: bytes, headers: dict[str, str]) -> None:
    """The whole, or the part from `Range: bytes=FIRST-` on."""
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
    asked = re.match(r"bytes=(\d+)-(\d*)$", request.headers.get("Range", ""))
    if asked is None:
        request.answer(content, 200, headers)
        return
    first, last = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
    headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
    request.answer(content[first : last + 1], 206, headers)
