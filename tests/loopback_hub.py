"""A small Hugging Face Hub on 127.0.0.1, for tests that push and pull without a network.

    with LoopbackHub(tmp_path) as hub:
        hub.add("user/data", folder, repo_type="dataset")
        subprocess.run([sys.executable, script], env={**os.environ, **hub.env()}, check=True)
        assert "config.json" in hub.files("user/model")

The client libraries read their environment at import, so client code runs in a subprocess.
`hub.fail("POST", "/commit/", 429, times=2)` makes the next requests fail on purpose.
A file is stored once under its id: the sha256 for the kinds the Hub keeps in LFS, else the git id.
Not here: pull requests, discussions, spaces, deletion of folders, and the dataset viewer.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

import yaml  # comes with huggingface_hub

USER, TOKEN = "user", "hf_loopback"
LFS_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".onnx", ".msgpack", ".npz"}
LFS_SUFFIXES |= {".parquet", ".arrow", ".npy", ".zip", ".gz", ".tar", ".model", ".png", ".jpg"}
REPO = r"(?P<repo>[^/]+(?:/[^/]+)??)"
API = rf"/api/(?P<kind>models|datasets)/{REPO}"
WEB = rf"/(?:(?P<kind>datasets)/)?{REPO}"
REV = r"(?P<rev>[^/]+)"
ROUTES = []


class HubError(Exception):
    def __init__(
        self,
        status: int,
        message: str,
        code: str = "",
        body: dict | None = None,
        headers: dict | None = None,
    ):
        super().__init__(message)
        self.status, self.code, self.body = status, code, body or {"error": message}
        self.headers = headers or {}


@dataclass
class Reply:
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200


@dataclass
class Fault:
    """An answer instead of the right one; without a status, the connection breaks half way.

    ``after``: it breaks when all was done, before the answer.
    """

    method: str
    pattern: str  # looked for in the path
    status: int | None
    times: int
    after: bool
    headers: dict[str, str]

    @property
    def breaks(self) -> bool:
        return self.status is None and not self.after


@dataclass
class Repo:
    private: bool = False
    commits: dict[str, dict[str, str]] = field(default_factory=dict)  # sha -> {path: file id}
    refs: dict[str, str] = field(default_factory=dict)  # branch or tag -> sha

    def sha(self, rev: str) -> str:
        sha = self.refs.get(rev, rev)
        if sha not in self.commits:
            raise HubError(404, f"Invalid rev id: {rev}", "RevisionNotFound")
        return sha

    def commit(self, files: dict[str, str], branch: str = "main") -> str:
        record = [len(self.commits), self.refs.get(branch), sorted(files.items())]
        sha = hashlib.sha1(json.dumps(record).encode()).hexdigest()
        self.commits[sha], self.refs[branch] = files, sha
        return sha


def is_lfs(path: str, size: int) -> bool:
    return size > 10_000_000 or PurePosixPath(path).suffix in LFS_SUFFIXES


def file_id(content: bytes, lfs: bool) -> str:
    if lfs:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def read_card(card: str) -> tuple[dict, list[str]]:
    """The metadata of a card, and what a push of it is refused for."""
    found = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", card, re.DOTALL | re.MULTILINE)
    try:
        data = (yaml.safe_load(found[1]) if found else None) or {}
    except yaml.YAMLError as error:
        return {}, [f"the metadata is not YAML: {error}"]
    if not isinstance(data, dict):
        return {}, ["the metadata is not a mapping"]
    return data, list(value_errors(data, ""))


def value_errors(value: object, place: str) -> Iterator[str]:
    if value is None:
        yield f'"{place}" is null'
    elif isinstance(value, str) and (value.startswith("/") or "/tmp/" in value):
        yield f'"{place}" is a path of one machine: {value}'
    elif isinstance(value, dict | list):
        inside = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in inside:
            yield from value_errors(item, f"{place}.{key}".lstrip("."))


def route(method: str, pattern: str, write: bool = False):
    """The method answers `method` on paths that are `pattern`; `write` asks for a token."""

    def register(function):
        ROUTES.append((method, re.compile(pattern), write, function))
        return function

    return register


class Handler(BaseHTTPRequestHandler):
    """One method per endpoint: returns JSON or a Reply, raises HubError."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: LoopbackHub  # pyright: ignore[reportIncompatibleVariableOverride]

    def answer(self):
        url, size = urlsplit(self.path), int(self.headers.get("Content-Length", 0))
        self.query = parse_qs(url.query)
        self.server.requests.append((self.command, unquote(url.path)))
        fault = self.server.fault(self.command, unquote(url.path))
        self.body = self.rfile.read(size // 2 if fault and fault.breaks else size)
        if fault and fault.breaks:
            return self.hang_up()
        try:
            if fault and fault.status:
                raise HubError(fault.status, "a fault of the test", headers=fault.headers)
            answer = self.dispatch(url.path)
        except HubError as error:
            headers = {"X-Error-Code": error.code} if error.code else {}
            headers |= error.headers
            headers["X-Error-Message"] = str(error).encode("ascii", "replace").decode()
            answer = Reply(json.dumps(error.body).encode(), headers, error.status)
        if not isinstance(answer, Reply):
            answer = Reply(json.dumps(answer).encode(), {"Content-Type": "application/json"})
        if fault and fault.after:
            return self.hang_up()
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": len(answer.body)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)
        return None

    def hang_up(self) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def dispatch(self, path: str):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in ("", TOKEN):
            raise HubError(401, "Invalid credentials in Authorization header")
        self.signed_in = token == TOKEN
        method = "GET" if self.command == "HEAD" else self.command
        for verb, pattern, write, function in ROUTES:
            found = pattern.fullmatch(path) if verb == method else None
            if found is None:
                continue
            if write and not self.signed_in:
                raise HubError(401, "Invalid username or password.")
            parts = {name: unquote(part or "") for name, part in found.groupdict().items()}
            with self.server.lock:
                return function(self, **parts)
        raise HubError(404, f"the loopback Hub has no {method} {path}")

    def log_message(self, format: str, *args: object):
        pass  # hub.requests is the log

    def repo(self, kind: str, name: str) -> Repo:
        repo = self.server.repos.get((kind or "models", name))
        if repo is None or (repo.private and not self.signed_in):
            raise HubError(404, "Repository not found", "RepoNotFound")
        return repo

    def at(self, kind: str, name: str, rev: str) -> tuple[str, dict[str, str]]:
        repo = self.repo(kind, name)
        sha = repo.sha(rev or "main")
        return sha, repo.commits[sha]

    def flag(self, name: str) -> bool:
        return self.query.get(name, [""])[0].lower() in ("1", "true")

    def entry(self, path: str, oid: str) -> dict:
        size = self.server.blob(oid).stat().st_size
        entry = {"type": "file", "path": path, "size": size, "oid": oid[:40]}
        lfs = {"lfs": {"oid": oid, "size": size, "pointerSize": 134}}
        return entry | lfs if len(oid) == 64 else entry

    @route("GET", "/api/whoami-v2", write=True)
    def whoami(self):
        return {"type": "user", "name": USER, "auth": {"type": "access_token"}, "orgs": []}

    @route("POST", "/api/repos/create", write=True)
    def create(self):
        ask = json.loads(self.body)
        kind = ask.get("type", "model") + "s"
        name = f"{ask.get('organization') or USER}/{ask['name']}"
        if kind not in ("models", "datasets"):
            raise HubError(400, f"the loopback Hub keeps models and datasets, not {kind}")
        url = f"{self.server.endpoint}/{'datasets/' * (kind == 'datasets')}{name}"
        if (kind, name) in self.server.repos:
            taken = f"You already created this {kind[:-1]} repo"
            raise HubError(409, taken, body={"error": taken, "url": url})
        private = ask.get("visibility") == "private" or ask.get("private") is True
        self.server.create(kind, name, private)
        return {"url": url, "name": name, "private": private}

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self):
        data, errors = read_card(json.loads(self.body)["content"])
        if errors:
            said = {"errors": [{"message": error} for error in errors], "warnings": []}
            raise HubError(400, "Invalid metadata", body=said)
        empty = [{"message": "empty or missing yaml metadata in repo card"}]
        return {"errors": [], "warnings": [] if data else empty}

    @route("GET", rf"{API}(?:/revision/{REV})?")
    def info(self, kind: str, repo: str, rev: str):
        sha, files = self.at(kind, repo, rev)
        card = files.get("README.md")
        data, _ = read_card(self.server.blob(card).read_text("utf-8") if card else "")
        siblings = [{"rfilename": path} for path in sorted(files)]
        info = {"id": repo, "author": repo.split("/")[0], "sha": sha, "siblings": siblings}
        info |= {"private": self.repo(kind, repo).private, "gated": False, "disabled": False}
        info |= {key: data[key] for key in ("pipeline_tag", "library_name") if key in data}
        return info | {"tags": data.get("tags") or [], "cardData": data}

    @route("GET", rf"{API}/tree/{REV}(?:/(?P<path>.+))?")
    def tree(self, kind: str, repo: str, rev: str, path: str):
        _, files = self.at(kind, repo, rev)
        prefix = f"{path}/" if path else ""
        inside = [name for name in sorted(files) if name.startswith(prefix)]
        if path and not inside:
            raise HubError(404, f"{path} does not exist on {rev}", "EntryNotFound")
        folders = {str(folder) for name in inside for folder in PurePosixPath(name).parents}
        found = [self.folder(name) for name in sorted(folders - {"."}) if name.startswith(prefix)]
        found += [self.entry(name, files[name]) for name in inside]
        if self.flag("recursive"):
            return found
        return [entry for entry in found if "/" not in entry["path"].removeprefix(prefix)]

    def folder(self, path: str) -> dict:
        return {"type": "directory", "path": path, "size": 0, "oid": file_id(path.encode(), False)}

    @route("GET", rf"{WEB}/resolve/{REV}/(?P<path>.+)")
    def resolve(self, kind: str, repo: str, rev: str, path: str):
        sha, files = self.at(kind, repo, rev)
        if path not in files:
            raise HubError(404, "Entry not found", "EntryNotFound")
        oid, content = files[path], self.server.blob(files[path]).read_bytes()
        headers = {"X-Repo-Commit": sha, "ETag": f'"{oid}"', "Accept-Ranges": "bytes"}
        if len(oid) == 64:
            headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part is None:
            return Reply(content, headers)
        start, end = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
        if start > end:
            raise HubError(416, "Range Not Satisfiable")
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        return Reply(content[start : end + 1], headers, 206)

    @route("POST", rf"{API}/(?P<what>branch|tag)/{REV}", write=True)
    def add_ref(self, kind: str, repo: str, what: str, rev: str):
        ask, target = json.loads(self.body or "{}"), self.repo(kind, repo)
        start = rev if what == "tag" else ask.get("startingPoint", "main")
        name = ask["tag"] if what == "tag" else rev
        if name in target.refs:
            raise HubError(409, f"Reference already exists: {name}")
        target.refs[name] = target.sha(start)
        return {}

    @route("POST", rf"{API}/preupload/{REV}", write=True)
    def preupload(self, kind: str, repo: str, rev: str):
        _, files = self.at(kind, repo, rev)
        answer = []
        for file in json.loads(self.body)["files"]:
            mode = "lfs" if is_lfs(file["path"], file["size"]) else "regular"
            known = {"path": file["path"], "oid": files.get(file["path"])}
            answer.append({**known, "uploadMode": mode, "shouldIgnore": False})
        return {"files": answer}

    @route("POST", rf"{WEB}\.git/info/lfs/objects/batch", write=True)
    def lfs_batch(self, kind: str, repo: str):
        self.repo(kind, repo)
        objects = json.loads(self.body)["objects"]
        for item in objects:
            href = f"{self.server.endpoint}/lfs/{item['oid']}"
            if not self.server.blob(item["oid"]).exists():
                item["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
        return {"transfer": "basic", "objects": objects}

    @route("PUT", "/lfs/(?P<oid>[0-9a-f]{64})")
    def lfs_put(self, oid: str):
        if file_id(self.body, lfs=True) != oid:
            raise HubError(400, "the content is not what its oid says")
        self.server.store(self.body, lfs=True)
        return {}

    @route("POST", "/lfs/(?P<oid>[0-9a-f]{64})/verify", write=True)
    def lfs_verify(self, oid: str):
        blob = self.server.blob(oid)
        if not blob.exists() or blob.stat().st_size != json.loads(self.body)["size"]:
            raise HubError(404, "the object was not uploaded")
        return {}

    @route("POST", rf"{API}/commit/{REV}", write=True)
    def commit(self, kind: str, repo: str, rev: str):
        target, (head, files) = self.repo(kind, repo), self.at(kind, repo, rev)
        if self.flag("create_pr") or rev not in target.refs:
            raise HubError(400, "the loopback Hub commits to branches only")
        header, *changes = [json.loads(line) for line in self.body.splitlines()]
        if header["value"].get("parentCommit", head) != head:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(files)
        for change in changes:
            self.apply(files, **change)
        sha = target.commit(files, rev)
        return {"commitOid": sha, "commitUrl": f"{self.server.endpoint}/{repo}/commit/{sha}"}

    def apply(self, files: dict[str, str], key: str, value: dict):
        if key == "file":
            content = base64.b64decode(value["content"])
            files[value["path"]] = self.server.store(content, lfs=False)
        elif key == "lfsFile":
            if not self.server.blob(value["oid"]).exists():
                raise HubError(400, f"{value['path']} was not uploaded before the commit")
            files[value["path"]] = value["oid"]
        elif key == "deletedFile":
            files.pop(value["path"], None)
        else:
            raise HubError(400, f"the loopback Hub does not know the change {key}")


class LoopbackHub(ThreadingHTTPServer):
    """Listens from the start of the `with` block to its end, on a free port."""

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.lock = Path(root), threading.RLock()
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.repos: dict[tuple[str, str], Repo] = {}
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        (self.root / "blobs").mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> LoopbackHub:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object):
        self.shutdown()
        self.server_close()

    def env(self) -> dict[str, str]:
        """What a client needs in its environment, over that of the parent process."""
        home = self.root / "home"
        env = {"HF_ENDPOINT": self.endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(home)}
        env |= {"HF_HUB_CACHE": str(home / "hub"), "HF_DATASETS_CACHE": str(home / "datasets")}
        env |= {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
        env |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return env | {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}

    def fail(self, method: str, pattern: str, status: int | None, times=1, after=False, **headers):
        """Answer the next requests like this otherwise; see `Fault`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.faults.append(Fault(method, pattern, status, times, after, named))

    def fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and fault.pattern in path:
                    fault.times -= 1
                    return fault
        return None

    def add(self, repo_id: str, folder: Path, repo_type="model", private=False) -> str:
        """Commit the files of `folder` over what the repo has, and return the commit's sha."""
        with self.lock:
            key = (f"{repo_type}s", repo_id)
            repo = self.repos.get(key) or self.create(*key, private)
            files = dict(repo.commits[repo.sha("main")])
            for path in sorted(Path(folder).rglob("*")):
                if path.is_file():
                    name, content = path.relative_to(folder).as_posix(), path.read_bytes()
                    files[name] = self.store(content, is_lfs(name, len(content)))
            return repo.commit(files)

    def files(self, repo_id: str, repo_type="model", revision="main") -> dict[str, bytes]:
        repo = self.repos[f"{repo_type}s", repo_id]
        found = repo.commits[repo.sha(revision)]
        return {path: self.blob(oid).read_bytes() for path, oid in found.items()}

    def is_private(self, repo_id: str, repo_type="model") -> bool:
        return self.repos[f"{repo_type}s", repo_id].private

    def create(self, kind: str, repo_id: str, private: bool) -> Repo:
        repo = self.repos[kind, repo_id] = Repo(private)
        repo.commit({})
        return repo

    def blob(self, oid: str) -> Path:
        return self.root / "blobs" / Path(oid).name

    def store(self, content: bytes, lfs: bool) -> str:
        oid = file_id(content, lfs)
        self.blob(oid).write_bytes(content)
        return oid
