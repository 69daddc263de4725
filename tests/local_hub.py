"""A Hugging Face Hub on loopback: real HTTP, git-like storage in memory, tokens, and faults on the wire.

Clients find it by `HF_ENDPOINT` (`LocalHub.environment`), which their libraries read when they are imported, so they
run in processes of their own. A commit is a mapping of paths to contents, a branch is the name of a commit: what the
real Hub does with git is here a few dictionaries. Weights and tables take the LFS route, all others the regular one.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

import babylm_vlm

TOKEN, READ_TOKEN = "hf_" + "writeswritewrites" * 2, "hf_" + "readsreadsreadsread" * 2
KINDS = {"models": "", "datasets": "datasets/", "spaces": "spaces/"}
SOURCE = Path(babylm_vlm.__file__).parents[1]
FRONT = re.compile(r"---\r?\n(.*?)\r?\n---", flags=re.DOTALL)


@dataclass
class Commit:
    """Files (path -> content) after a commit, and what it is called."""

    sha: str
    title: str
    parent: str | None
    files: dict[str, bytes]


@dataclass
class Repository:
    """Commits by hash; branches and tags name them. A pull request is the branch `refs/pr/N`."""

    private: bool
    sdk: str | None = None
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def find(self, revision: str) -> Commit | None:
        """The commit of a branch, a tag or a hash."""
        return self.commits.get(self.branches.get(revision) or self.tags.get(revision) or revision)

    def commit(self, branch: str, parent: str | None, title: str, files: dict[str, bytes]) -> Commit:
        content = "".join(f"{path} {blob_id(files[path])}\n" for path in sorted(files))
        sha = hashlib.sha1(f"{parent} {title} {len(self.commits)}\n{content}".encode()).hexdigest()
        self.commits[sha] = Commit(sha, title, parent, files)
        self.branches[branch] = sha
        return self.commits[sha]

    def history(self, revision: str) -> list[Commit]:
        """A commit and all before it, newest first."""
        commits, commit = [], self.find(revision)
        while commit:
            commits.append(commit)
            commit = self.commits.get(commit.parent)
        return commits


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose method and path match.

    Attributes:
        status: answered instead of the right answer; None: the connection is dropped.
        after: bytes of the request's or the answer's body that pass before it is dropped.
    """

    method: str
    path: str
    status: int | None
    times: int
    after: int = 0
    headers: dict[str, str] = field(default_factory=dict)


class LocalHub:
    """The storage, and the address of the server in front of it.

    Attributes:
        repositories: "models/user/name" -> repository; "spaces/…" and "datasets/…" likewise.
        requests: "METHOD path" of all requests so far.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.collections: dict[str, dict] = {}
        self.large: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def fail(self, method: str, path: str, status: int | None = None, times: int = 1, **more) -> None:
        """Let the next requests fail; `path` is a regular expression. See `Fault`."""
        self.faults.append(Fault(method, path, status, times, **more))

    def files(self, repo_id: str, revision: str = "main", kind: str = "models") -> dict[str, bytes]:
        """Contents by path, without what every repository begins with."""
        files = self.repositories[f"{kind}/{repo_id}"].find(revision).files
        return {path: content for path, content in files.items() if path != ".gitattributes"}

    def environment(self, cache: Path, **more: str) -> dict[str, str]:
        """Environment of a client with its cache in a folder."""
        return os.environ | {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(cache),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(SOURCE),
            "COLUMNS": "200",
            **more,
        }

    def python(self, code: str, *arguments: object, cache: Path, **more: str) -> str:
        """What Python code prints in a fresh process without this package; an error there is one here."""
        code = f'import sys\nsys.modules["babylm_vlm"] = None  # it cannot be imported\n{code}'
        command = [sys.executable, "-c", code, *map(str, arguments)]
        environment = self.environment(cache, **more)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=cache.parent)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def command(self, *arguments: object, cache: Path, **more: str) -> tuple[int, str, str]:
        """Run `babylm-vlm ARGUMENTS` in a fresh process; returns exit code, stdout and stderr."""
        command = [sys.executable, "-m", "babylm_vlm.cli", *map(str, arguments)]
        done = subprocess.run(
            command, env=self.environment(cache, **more), capture_output=True, text=True, timeout=300
        )
        return done.returncode, done.stdout, done.stderr


@pytest.fixture
def local_hub() -> Iterator[LocalHub]:
    """An empty Hub, on which the user "someone" may write under its own name."""
    hub = LocalHub()
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def blob_id(content: bytes) -> str:
    """What git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".arrow", ".parquet"))


def oid(path: str, content: bytes) -> str:
    """By what the Hub says whether a file has changed."""
    return hashlib.sha256(content).hexdigest() if is_large(path) else blob_id(content)


class _Answer(Exception):
    """Ends a request."""

    def __init__(self, status: int, content: object = None, **headers: str):
        self.status, self.content = status, content
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self) -> None:
        url = urlsplit(self.path)
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {url.path}")
            fault = self._fault(url.path)
        if fault and fault.status is None and self.command in ("PUT", "POST"):
            self.rfile.read(fault.after)
            self.close_connection = True
            return
        self.body = self._read_body()
        self.query = parse_qs(url.query)
        try:
            if fault and fault.status:
                raise _Answer(fault.status, {"error": "injected"}, **fault.headers)
            with self.hub.lock:
                self._route(url.path)
            raise _Answer(404, {"error": "no such route"})
        except _Answer as answer:
            self._send(answer, fault)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _fault(self, path: str) -> Fault | None:
        for fault in self.hub.faults:
            if fault.times and fault.method == self.command and re.search(fault.path, path):
                fault.times -= 1
                return fault
        return None

    def _send(self, answer: _Answer, fault: Fault | None) -> None:
        content = answer.content
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            answer.headers["Content-Type"] = "application/json"
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault and fault.status is None:
            content, self.close_connection = content[: fault.after], True
        self.wfile.write(content)

    def _route(self, path: str) -> None:
        """Answer by raising `_Answer`; a route is a pattern and the method that answers."""
        repository = r"/api/(models|datasets|spaces)/([^/]+/[^/]+)"
        for method, pattern, answer in (
            ("POST", r"/api/validate-yaml", self._validate),
            ("POST", r"/api/repos/create", self._create),
            ("GET", rf"{repository}(?:/revision/([^/]+))?", self._info),
            ("POST", rf"{repository}/preupload/([^/]+)", self._preupload),
            ("POST", rf"{repository}/commit/([^/]+)", self._commit),
            ("GET", rf"{repository}/tree/([^/]+)(?:/(.+))?", self._tree),
            ("GET", rf"{repository}/refs", self._refs),
            ("GET", rf"{repository}/commits/([^/]+)", self._commits),
            ("POST", rf"{repository}/branch/([^/]+)", self._branch),
            ("POST", rf"{repository}/tag/([^/]+)", self._tag),
            ("GET|HEAD", r"/(datasets/|spaces/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
            ("POST", r"/(datasets/|spaces/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._large_batch),
            ("PUT", r"/large/([0-9a-f]{64})", self._put_large),
            ("POST", r"/api/collections", self._create_collection),
            ("POST", r"/api/collections/([^/]+/[^/]+)/items", self._add_to_collection),
            ("GET", r"/api/collections/([^/]+/[^/]+)", self._collection),
        ):
            match = re.fullmatch(pattern, path)
            if match and re.fullmatch(method, self.command):
                answer(*(unquote(part) if part else part for part in match.groups()))

    def _user(self) -> str | None:
        """Name of the token's owner; None without a token."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in (TOKEN, READ_TOKEN):
            raise _Answer(401, {"error": "Invalid credentials in Authorization header"})
        return "someone" if token else None

    def _check_writer(self, namespace: str) -> None:
        if self._user() is None:
            raise _Answer(401, {"error": "Invalid username or password."})
        if namespace != "someone" or self.headers["Authorization"].endswith(READ_TOKEN):
            raise _Answer(403, {"error": f"You don't have the rights to write under the namespace {namespace}"})

    def _repository(self, kind: str, name: str, write: bool = False) -> Repository:
        repository = self.hub.repositories.get(f"{kind}/{name}")
        user = self._user()
        if repository is None or (repository.private and user is None):
            status = 404 if user else 401  # the Hub tells strangers no more than this
            raise _Answer(status, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        if write and not self.query.get("create_pr"):
            self._check_writer(name.split("/")[0])
        return repository

    def _found(self, repository: Repository, revision: str) -> Commit:
        commit = repository.find(revision)
        if commit is None:
            raise _Answer(404, {"error": f"Invalid rev id: {revision}"}, X_Error_Code="RevisionNotFound")
        return commit

    def _validate(self) -> None:
        """The metadata of a card must be a YAML mapping with a model-index of the right form."""
        content = json.loads(self.body)["content"]
        front = FRONT.match(content)
        try:
            metadata = yaml.safe_load(front[1]) if front else {}
            for index in metadata.get("model-index", []):
                for result in index["results"]:
                    result["task"]["type"], result["dataset"]["name"], result["dataset"]["type"], result["metrics"]
        except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
            raise _Answer(400, {"errors": [{"message": str(error)}], "warnings": []}) from error
        raise _Answer(200, {"errors": [], "warnings": []})

    def _create(self) -> None:
        asked = json.loads(self.body)
        namespace = asked.get("organization") or "someone"
        self._check_writer(namespace)
        kind, name = asked.get("type", "model") + "s", f"{namespace}/{asked['name']}"
        url = {"url": f"{self.hub.endpoint}/{KINDS[kind]}{name}"}
        if f"{kind}/{name}" in self.hub.repositories:
            raise _Answer(409, {**url, "error": "You already created this repo"})
        private = asked.get("private") or asked.get("visibility") == "private"
        repository = Repository(bool(private), asked.get("sdk"))
        repository.commit("main", None, "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.hub.repositories[f"{kind}/{name}"] = repository
        raise _Answer(200, url)

    def _info(self, kind: str, name: str, revision: str | None) -> None:
        repository = self._repository(kind, name)
        commit = self._found(repository, revision or "main")
        files = [{"rfilename": path} for path in sorted(commit.files)]
        about = {"id": name, "sha": commit.sha, "private": repository.private, "tags": [], "siblings": files}
        card = commit.files.get("README.md", b"").decode()
        raise _Answer(200, about | {"cardData": yaml.safe_load(FRONT.match(card)[1]) if FRONT.match(card) else None})

    def _preupload(self, kind: str, name: str, revision: str) -> None:
        repository = self._repository(kind, name, write=True)
        there = self._found(repository, revision).files
        files = [
            {"path": path, "uploadMode": "lfs" if is_large(path) else "regular", "shouldIgnore": False}
            | ({"oid": oid(path, there[path])} if path in there else {})
            for path in (file["path"] for file in json.loads(self.body)["files"])
        ]
        raise _Answer(200, {"files": files})

    def _commit(self, kind: str, name: str, revision: str) -> None:
        repository = self._repository(kind, name, write=True)
        parent = self._found(repository, revision)
        files, title = dict(parent.files), ""
        for line in self.body.splitlines():
            key, value = (json.loads(line)[part] for part in ("key", "value"))
            if key == "header":
                title = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.hub.large:
                    raise _Answer(400, {"error": f"LFS object {value['oid']} was not uploaded"})
                files[value["path"]] = self.hub.large[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        pull_requests = sum(branch.startswith("refs/pr/") for branch in repository.branches)
        branch = f"refs/pr/{pull_requests + 1}" if self.query.get("create_pr") else revision
        commit = repository.commit(branch, parent.sha, title, files)
        url = f"{self.hub.endpoint}/{KINDS[kind]}{name}"
        answer = {"success": True, "commitOid": commit.sha, "commitUrl": f"{url}/commit/{commit.sha}"}
        raise _Answer(200, answer | {"pullRequestUrl": f"{url}/discussions/{pull_requests + 1}"})

    def _tree(self, kind: str, name: str, revision: str, folder: str | None) -> None:
        files = self._found(self._repository(kind, name), revision).files
        rows = []
        for path, content in sorted(files.items()):
            if folder and not path.startswith(f"{folder}/"):
                continue
            row = {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
            if is_large(path):
                row["lfs"] = {"oid": oid(path, content), "size": len(content), "pointerSize": 134}
            rows.append(row)
        if folder and not rows:
            raise _Answer(404, {"error": f"{folder} does not exist"}, X_Error_Code="EntryNotFound")
        raise _Answer(200, rows)

    def _refs(self, kind: str, name: str) -> None:
        repository = self._repository(kind, name)
        branches, tags = (
            [{"name": ref, "ref": f"refs/{place}/{ref}", "targetCommit": sha} for ref, sha in refs.items()]
            for place, refs in (("heads", repository.branches), ("tags", repository.tags))
        )
        raise _Answer(200, {"branches": branches, "tags": tags, "converts": []})

    def _commits(self, kind: str, name: str, revision: str) -> None:
        repository = self._repository(kind, name)
        self._found(repository, revision)
        day = {"authors": [{"user": "someone"}], "date": "2025-01-01T00:00:00.000Z", "message": ""}
        raise _Answer(200, [{"id": c.sha, "title": c.title} | day for c in repository.history(revision)])

    def _branch(self, kind: str, name: str, branch: str) -> None:
        repository = self._repository(kind, name, write=True)
        if branch in repository.branches:
            raise _Answer(409, {"error": f"Reference already exists: refs/heads/{branch}"})
        start = json.loads(self.body or b"{}").get("startingPoint", "main")
        repository.branches[branch] = self._found(repository, start).sha
        raise _Answer(200, {})

    def _tag(self, kind: str, name: str, revision: str) -> None:
        repository, tag = self._repository(kind, name, write=True), json.loads(self.body)["tag"]
        if tag in repository.tags:
            raise _Answer(409, {"error": f"Tag reference exists already: refs/tags/{tag}"})
        repository.tags[tag] = self._found(repository, revision).sha
        raise _Answer(200, {})

    def _resolve(self, prefix: str | None, name: str, revision: str, path: str) -> None:
        commit = self._found(self._repository((prefix or "models/").rstrip("/"), name), revision)
        if path not in commit.files:
            raise _Answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=commit.sha)
        content = commit.files[path]
        headers = {"ETag": f'"{oid(path, content)}"', "X_Repo_Commit": commit.sha, "Accept_Ranges": "bytes"}
        start = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if start and int(start[1]):
            rest = f"bytes {start[1]}-{len(content) - 1}/{len(content)}"
            raise _Answer(206, content[int(start[1]) :], Content_Range=rest, **headers)
        raise _Answer(200, content, **headers)

    def _large_batch(self, prefix: str | None, name: str) -> None:
        self._repository((prefix or "models/").rstrip("/"), name)
        objects = []
        for one in json.loads(self.body)["objects"]:
            upload = {"upload": {"href": f"{self.hub.endpoint}/large/{one['oid']}"}}
            objects.append(one if one["oid"] in self.hub.large else one | {"actions": upload})
        raise _Answer(200, {"transfer": "basic", "objects": objects})

    def _put_large(self, digest: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != digest:
            raise _Answer(400, {"error": "The content does not have this hash"})
        self.hub.large[digest] = self.body
        raise _Answer(200, {})

    def _create_collection(self) -> None:
        asked = json.loads(self.body)
        self._check_writer(asked["namespace"])
        slug = f"{asked['namespace']}/{re.sub(r'[^a-z0-9]+', '-', asked['title'].lower())}-{'0' * 24}"
        if slug in self.hub.collections:
            raise _Answer(409, {"slug": slug, "error": "Collection already exists"})
        about = {"slug": slug, "title": asked["title"], "owner": {"name": asked["namespace"]}, "items": []}
        about |= {"description": asked.get("description"), "position": 0, "private": asked["private"], "theme": "blue"}
        self.hub.collections[slug] = about | {"upvotes": 0, "lastUpdated": "2025-01-01T00:00:00.000Z"}
        raise _Answer(200, self.hub.collections[slug])

    def _add_to_collection(self, slug: str) -> None:
        self._check_writer(slug.split("/")[0])
        collection, item = self.hub.collections[slug], json.loads(self.body)["item"]
        if any(one["id"] == item["id"] for one in collection["items"]):
            raise _Answer(409, {"error": "Item already exists"})
        place = len(collection["items"])
        collection["items"].append({"_id": f"{place:024x}", "position": place, "gated": False, **item})
        raise _Answer(200, collection)

    def _collection(self, slug: str) -> None:
        raise _Answer(200, self.hub.collections[slug])


if __name__ == "__main__":  # for scripts: print the address and a token, serve until killed
    standing = LocalHub()
    print(standing.endpoint, TOKEN, flush=True)
    standing.server.serve_forever()
