"""A small Hub on loopback: enough of the Hub's HTTP API for its unmodified clients.

Repositories (models, datasets and Spaces, which do not run) with commits, branches and access
tokens. Files travel as on the real one: small text inside the commit, the rest through LFS, to and
from a storage host of its own (a second port) by signed addresses. Not spoken: Xet, pull requests,
discussions.

    with serve(tmp_path, tokens={"hf_writer": User("me", write=True)}) as hub:
        ...  # HF_ENDPOINT=hub.endpoint in the environment of the clients
"""

import base64
import hashlib
import json
import secrets
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

LFS_SUFFIXES = (".safetensors", ".parquet", ".bin", ".png")
LICENSES = ("apache-2.0", "mit", "cc-by-4.0", "other")
"""A few of the licences that the Hub knows; it refuses cards that name any other."""


@dataclass(frozen=True)
class User:
    """What a token stands for: a namespace, and whether it may write there."""

    name: str
    write: bool = False


@dataclass(frozen=True)
class File:
    """A file at one commit; its bytes lie in the store under `key`."""

    key: str
    """SHA-256 of the content for LFS, git's SHA-1 of the blob otherwise: also the ETag."""
    size: int
    lfs: bool

    @property
    def pointer(self) -> bytes:
        """What git holds in place of an LFS file."""
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.key}\nsize {self.size}\n"
        ).encode()

    def describe(self, path: str) -> dict[str, Any]:
        """The entry of a tree listing."""
        said = {"type": "file", "path": path, "size": self.size, "oid": self.key}
        if self.lfs:
            said["oid"] = git_blob(self.pointer)
            said["lfs"] = {
                "oid": self.key,
                "size": self.size,
                "pointerSize": len(self.pointer),
            }
        return said


Tree = dict[str, File]


@dataclass
class Repo:
    """Commits never change or vanish; branches point at them."""

    id: str
    private: bool
    commits: dict[str, Tree] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, tree: Tree, message: str) -> str:
        """Add a commit on a branch and return its SHA."""
        said = [self.id, self.branches.get(branch), message, str(len(self.commits))]
        said += [f"{path} {file.key}" for path, file in sorted(tree.items())]
        sha = hashlib.sha1(repr(said).encode()).hexdigest()
        self.commits[sha], self.messages[sha] = tree, message
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str:
        """The commit that a branch or a SHA names."""
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha


def git_blob(content: bytes) -> str:
    """The SHA-1 under which git stores a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def refusal(status: int, message: str, code: str | None = None) -> HTTPException:
    """An answer that the Hub's client turns into one of its errors."""
    headers = {"X-Error-Message": message}
    if code is not None:
        headers["X-Error-Code"] = code
    return HTTPException(status, message, headers)


class Hub:
    """The server's state and its handlers."""

    def __init__(self, store: Path, tokens: Mapping[str, User]) -> None:
        self.store, self.tokens = store, dict(tokens)
        self.endpoint = self.storage = ""
        self.repos: dict[tuple[str, str], Repo] = {}
        self.unknown: list[str] = []
        """Requests of a kind not spoken here."""
        self.seen: list[str] = []
        """All requests, as "METHOD /path"."""
        self.ranges = 0
        """Answers that held a part of a file."""
        self.full: set[str] = set()
        """Namespaces whose storage is used up."""
        self._signature = secrets.token_urlsafe(16)
        store.mkdir(parents=True)

    # -- what tests look at ------------------------------------------------------------------

    def repo(self, repo_id: str, kind: str = "models") -> Repo:
        """A repository, by its Hub id."""
        return self.repos[kind, repo_id]

    def read(self, repo_id: str, path: str, revision: str = "main", kind: str = "models") -> bytes:
        """The content of a file."""
        repo = self.repo(repo_id, kind)
        return (self.store / repo.commits[repo.resolve(revision)][path].key).read_bytes()

    # -- who asks, and for what --------------------------------------------------------------

    def _user(self, request: Request) -> User | None:
        given = request.headers.get("authorization")
        if given is None:
            return None
        user = self.tokens.get(given.removeprefix("Bearer "))
        if user is None:
            raise refusal(401, "Invalid credentials in Authorization header")
        return user

    def _writer(self, request: Request, namespace: str) -> User:
        user = self._user(request)
        if user is None:
            raise refusal(401, "Invalid username or password.")
        if not user.write or user.name != namespace:
            raise refusal(403, f"You don't have the rights to write under the name {namespace}")
        return user

    def _found(self, request: Request, *, write: bool = False) -> Repo:
        """The repository of a request, if it exists for the one who asks."""
        values = request.path_params
        kind = values.get("kind", "models")
        user = self._user(request)
        repo = self.repos.get((kind, f"{values['owner']}/{values['name']}"))
        hidden = repo is not None and repo.private and (not user or user.name != values["owner"])
        if repo is None or hidden:
            # Who is not logged in is not told whether it exists.
            raise refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        if write:
            self._writer(request, values["owner"])
        if request.query_params.get("create_pr"):
            raise refusal(403, "Pull requests are disabled for this repository")
        return repo

    # -- account and repositories ------------------------------------------------------------

    async def whoami(self, request: Request) -> Response:
        user = self._user(request)
        if user is None:
            raise refusal(401, "Invalid username or password.")
        role = "write" if user.write else "read"
        token = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
        return JSONResponse({"type": "user", "name": user.name, "orgs": [], "auth": token})

    async def delete_repo(self, request: Request) -> Response:
        asked = await request.json()
        user = self._user(request)
        owner = asked.get("organization") or (user.name if user else "")
        self._writer(request, owner)
        self.repos.pop((f"{asked.get('type') or 'model'}s", f"{owner}/{asked['name']}"))
        return JSONResponse({})

    async def create_repo(self, request: Request) -> Response:
        asked = await request.json()
        user = self._user(request)
        owner = asked.get("organization") or (user.name if user else "")
        self._writer(request, owner)
        kind = f"{asked.get('type') or 'model'}s"
        repo_id = f"{owner}/{asked['name']}"
        if kind == "spaces" and asked.get("sdk") != "gradio":
            raise refusal(400, "a Space needs an sdk")
        url = f"{self.endpoint}/{'' if kind == 'models' else f'{kind}/'}{repo_id}"
        if (kind, repo_id) in self.repos:
            message = f"You already created this {kind[:-1]} repo: {repo_id}"
            return JSONResponse({"error": message, "url": url}, status_code=409)
        repo = Repo(repo_id, asked.get("visibility") == "private" or bool(asked.get("private")))
        attributes = "".join(f"*{s} filter=lfs diff=lfs merge=lfs -text\n" for s in LFS_SUFFIXES)
        repo.commit("main", {".gitattributes": self._keep(attributes.encode())}, "initial commit")
        self.repos[kind, repo_id] = repo
        return JSONResponse({"url": url, "name": repo_id, "id": repo_id})

    async def validate_yaml(self, request: Request) -> Response:
        text = (await request.json())["content"]
        errors = []
        try:
            front = text.split("---\n")[1] if text.startswith("---\n") else ""
            data = yaml.safe_load(front) or {}
        except yaml.YAMLError as error:
            data, errors = {}, [str(error)]
        if "license" in data and data["license"] not in LICENSES:
            errors.append(f'"license" must be one of [{", ".join(LICENSES)}]')
        body = {"errors": [{"message": message} for message in errors], "warnings": []}
        return JSONResponse(body, status_code=400 if errors else 200)

    # -- reading -----------------------------------------------------------------------------

    async def info(self, request: Request) -> Response:
        repo = self._found(request)
        sha = repo.resolve(request.path_params.get("revision", "main"))
        return JSONResponse(
            {
                "id": repo.id,
                "author": repo.id.partition("/")[0],
                "sha": sha,
                "private": repo.private,
                "gated": False,
                "disabled": False,
                "lastModified": "2025-01-01T00:00:00.000Z",
                "createdAt": "2025-01-01T00:00:00.000Z",
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "siblings": [{"rfilename": path} for path in sorted(repo.commits[sha])],
            }
        )

    async def refs(self, request: Request) -> Response:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha}
            for name, sha in self._found(request).branches.items()
        ]
        return JSONResponse({"branches": branches, "tags": [], "converts": []})

    async def tree(self, request: Request) -> Response:
        repo = self._found(request)
        tree = repo.commits[repo.resolve(request.path_params["revision"])]
        folder = request.path_params.get("path", "").strip("/")
        recursive = request.query_params.get("recursive", "").lower() in ("true", "1")
        inside = {p: f for p, f in tree.items() if not folder or p.startswith(f"{folder}/")}
        if folder and not inside:
            raise refusal(404, f"{folder} does not exist on the tree", "EntryNotFound")
        entries: dict[str, dict[str, Any]] = {}
        for path, file in sorted(inside.items()):
            parts = path.split("/")
            depth = len(folder.split("/")) if folder else 0
            for i in range(depth + 1, len(parts) if recursive else min(depth + 2, len(parts))):
                parent = "/".join(parts[:i])
                entries.setdefault(parent, _describe_folder(parent))
            if recursive or len(parts) == depth + 1:
                entries[path] = file.describe(path)
        return JSONResponse(list(entries.values()))

    async def paths_info(self, request: Request) -> Response:
        repo = self._found(request)
        tree = repo.commits[repo.resolve(request.path_params["revision"])]
        asked = parse_qs((await request.body()).decode()).get("paths", [])
        found = []
        for path in asked:
            if path in tree:
                found.append(tree[path].describe(path))
            elif any(name.startswith(f"{path}/") for name in tree):
                found.append(_describe_folder(path))
        return JSONResponse(found)

    async def resolve(self, request: Request) -> Response:
        """A file: text at once, LFS by a signed address on the storage host."""
        repo = self._found(request)
        sha = repo.resolve(request.path_params["revision"])
        file = repo.commits[sha].get(request.path_params["path"])
        if file is None:
            error = refusal(404, "Entry not found", "EntryNotFound")
            raise HTTPException(404, error.detail, {**(error.headers or {}), "X-Repo-Commit": sha})
        if not file.lfs:
            headers = {"X-Repo-Commit": sha, "ETag": f'"{file.key}"'}
            return FileResponse(self.store / file.key, headers=headers)
        headers = {
            "X-Repo-Commit": sha,
            "X-Linked-ETag": f'"{file.key}"',
            "X-Linked-Size": str(file.size),
        }
        return RedirectResponse(self._signed(file.key), status_code=302, headers=headers)

    # -- writing -----------------------------------------------------------------------------

    async def create_branch(self, request: Request) -> Response:
        repo = self._found(request, write=True)
        branch = request.path_params["branch"]
        if branch in repo.branches:
            raise refusal(409, f"Reference already exists: refs/heads/{branch}")
        asked = json.loads(await request.body() or b"{}")
        repo.branches[branch] = repo.resolve(asked.get("startingPoint", "main"))
        return JSONResponse({"success": True})

    async def preupload(self, request: Request) -> Response:
        """Say for each file whether it goes into the commit or through LFS."""
        repo = self._found(request, write=True)
        tree = repo.commits[repo.resolve(request.path_params["revision"])]
        answers = []
        for asked in (await request.json())["files"]:
            path, sample = asked["path"], base64.b64decode(asked["sample"])
            lfs = path.endswith(LFS_SUFFIXES) or b"\0" in sample
            answer = {
                "path": path,
                "uploadMode": "lfs" if lfs else "regular",
                "shouldIgnore": False,
            }
            if path in tree and tree[path].lfs == lfs:
                answer["oid"] = tree[path].key
            answers.append(answer)
        return JSONResponse({"files": answers})

    async def lfs_batch(self, request: Request) -> Response:
        """Say where each object is to be put, or that it is there already."""
        self._found(request, write=True)
        asked, owner = await request.json(), request.path_params["owner"]
        objects = []
        for one in asked["objects"]:
            answer = {"oid": one["oid"], "size": one["size"]}
            if not (self.store / one["oid"]).exists():
                answer["authenticated"] = True
                answer["actions"] = {
                    "upload": {"href": f"{self._signed(one['oid'])}&owner={owner}"},
                    "verify": {"href": f"{self.endpoint}/lfs/verify"},
                }
            objects.append(answer)
        body = {"transfer": "basic", "objects": objects}
        return JSONResponse(body, media_type="application/vnd.git-lfs+json")

    async def lfs_verify(self, request: Request) -> Response:
        asked = await request.json()
        path = self.store / asked["oid"]
        if not path.exists() or path.stat().st_size != asked["size"]:
            raise refusal(404, "The object was not uploaded")
        return JSONResponse({})

    async def commit(self, request: Request) -> Response:
        """One commit from NDJSON: a header, then files, LFS files and deletions."""
        repo = self._found(request, write=True)
        branch = request.path_params["revision"]
        if branch not in repo.branches:
            raise refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        tree = dict(repo.commits[repo.branches[branch]])
        message = ""
        for line in (await request.body()).splitlines():
            item = json.loads(line)
            value = item["value"]
            match item["key"]:
                case "header":
                    message = value["summary"]
                    if value.get("parentCommit", repo.branches[branch]) != repo.branches[branch]:
                        raise refusal(412, "A commit has happened since")
                case "file":
                    tree[value["path"]] = self._keep(base64.b64decode(value["content"]))
                case "lfsFile":
                    if not (self.store / value["oid"]).exists():
                        raise refusal(400, f"The LFS object of {value['path']} was not uploaded")
                    size = (self.store / value["oid"]).stat().st_size
                    tree[value["path"]] = File(value["oid"], size, lfs=True)
                case "deletedFile":
                    if tree.pop(value["path"], None) is None:
                        raise refusal(404, "A file with this name doesn't exist", "EntryNotFound")
                case "deletedFolder":
                    folder = f"{value['path'].rstrip('/')}/"
                    tree = {p: f for p, f in tree.items() if not p.startswith(folder)}
                case other:
                    raise refusal(400, f"Unknown operation {other}")
        sha = repo.commit(branch, tree, message)
        kind = request.path_params["kind"]
        place = "" if kind == "models" else f"{kind}/"
        url = f"{self.endpoint}/{place}{repo.id}/commit/{sha}"
        return JSONResponse({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    # -- the storage host --------------------------------------------------------------------

    async def stored(self, request: Request) -> Response:
        """GET and HEAD an object, whole or in part, or PUT one."""
        if request.query_params.get("signature") != self._signature:
            raise refusal(403, "The signature is missing or wrong")
        if "authorization" in request.headers:
            raise refusal(400, "Only one way to authorise is allowed, and the address is signed")
        path = self.store / request.path_params["oid"]
        if request.method == "PUT":
            content = await request.body()
            if request.query_params["owner"] in self.full:
                raise refusal(403, "Storage limit reached")
            if hashlib.sha256(content).hexdigest() != path.name:
                raise refusal(400, "The content does not have that SHA-256")
            path.write_bytes(content)
            return Response(headers={"ETag": f'"{path.name}"'})
        if not path.exists():
            raise refusal(404, "No such object")
        if "range" in request.headers:
            self.ranges += 1
        return FileResponse(path, headers={"ETag": f'"{path.name}"'})

    def _signed(self, oid: str) -> str:
        return f"{self.storage}/objects/{oid}?signature={self._signature}"

    def _keep(self, content: bytes) -> File:
        file = File(git_blob(content), len(content), lfs=False)
        (self.store / file.key).write_bytes(content)
        return file

    # -- the application ---------------------------------------------------------------------

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/api/whoami-v2", self.whoami),
            Route("/api/repos/create", self.create_repo, methods=["POST"]),
            Route("/api/repos/delete", self.delete_repo, methods=["DELETE"]),
            Route("/api/validate-yaml", self.validate_yaml, methods=["POST"]),
            Route("/lfs/verify", self.lfs_verify, methods=["POST"]),
            Route("/objects/{oid}", self.stored, methods=["GET", "PUT"]),
        ]
        for kind in ("models", "datasets", "spaces"):
            api = f"/api/{kind}/{{owner}}/{{name}}"
            page = "/{owner}/{name}" if kind == "models" else f"/{kind}/{{owner}}/{{name}}"
            for path, handler, methods in (
                (api, self.info, ["GET"]),
                (f"{api}/revision/{{revision}}", self.info, ["GET"]),
                (f"{api}/refs", self.refs, ["GET"]),
                (f"{api}/tree/{{revision}}", self.tree, ["GET"]),
                (f"{api}/tree/{{revision}}/{{path:path}}", self.tree, ["GET"]),
                (f"{api}/paths-info/{{revision}}", self.paths_info, ["POST"]),
                (f"{api}/branch/{{branch}}", self.create_branch, ["POST"]),
                (f"{api}/preupload/{{revision}}", self.preupload, ["POST"]),
                (f"{api}/commit/{{revision}}", self.commit, ["POST"]),
                (f"{page}.git/info/lfs/objects/batch", self.lfs_batch, ["POST"]),
                (f"{page}/resolve/{{revision}}/{{path:path}}", self.resolve, ["GET"]),
            ):
                routes.append(Route(path, _of_kind(kind, handler), methods=methods))
        routes.append(Route("/{path:path}", self._not_spoken, methods=ANY))
        app = Starlette(routes=routes, exception_handlers={HTTPException: _answer})
        app.add_middleware(_Log, hub=self)
        return app

    async def _not_spoken(self, request: Request) -> Response:
        self.unknown.append(f"{request.method} {request.url.path}")
        raise HTTPException(404, "This server does not speak that")


ANY = ["GET", "POST", "PUT", "DELETE"]
Handler = Callable[[Request], Awaitable[Response]]


def _of_kind(kind: str, handler: Handler) -> Handler:
    async def handle(request: Request) -> Response:
        request.path_params["kind"] = kind
        return await handler(request)

    return handle


def _describe_folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": git_blob(path.encode())}


async def _answer(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(
        {"error": error.detail}, status_code=error.status_code, headers=error.headers
    )


class _Log:
    """Notes every request."""

    def __init__(self, app: Any, hub: Hub) -> None:
        self.app, self.hub = app, hub

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self.hub.seen.append(f"{scope['method']} {scope['path']}")
        await self.app(scope, receive, send)


@contextmanager
def serve(folder: Path, tokens: Mapping[str, User]) -> Iterator[Hub]:
    """Run a Hub on two free ports of the loopback interface, its files in `folder`."""
    hub = Hub(folder / "objects", tokens)
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    hub.endpoint, hub.storage = (f"http://127.0.0.1:{s.getsockname()[1]}" for s in sockets)
    server = uvicorn.Server(uvicorn.Config(hub.app(), log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": sockets}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        if time.monotonic() > deadline or not thread.is_alive():
            raise RuntimeError("the local Hub server did not start")
        time.sleep(0.01)
    try:
        yield hub
    finally:
        server.should_exit = True
        thread.join(30)
