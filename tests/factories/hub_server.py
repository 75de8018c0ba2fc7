"""A Hub on the loopback interface, as far as pushing models and Spaces goes, and downloading models and datasets.

    with HubServer(fail_on="lfs") as server:
        subprocess.run([...], env=server.env())
    server.files("tester/model")  # {path: bytes} of everything committed; of a Space: "spaces/tester/page"
    server.offer("somebody/model", {"config.json": b"…"}, revision="v1")  # can be downloaded
    server.offer("datasets/somebody/pictures", {"id2label.json": b"…"})

It takes the basic LFS transfer only, hence HF_HUB_DISABLE_XET in `env()`.
"""

import base64
import hashlib
import json
import os
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

USER, TOKEN = "tester", "hf_dummy"
LFS_SUFFIXES = (".safetensors", ".npy", ".jpg", ".bin")

# Kind of request, by method and path.
ROUTES = {
    "whoami": r"GET /api/whoami-v2",
    "create": r"POST /api/repos/create",
    "branch": r"POST /api/models/(?P<repo>.+)/branch/(?P<branch>.+)",
    "info": r"GET /api/models/(?P<repo>[^/]+/[^/]+)(/revision/.+)?",
    "listing": r"GET /api/datasets/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?",
    "tree": r"GET /api/datasets/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?",
    "download": r"(GET|HEAD) /(?P<repo>(datasets/)?[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
    "validate": r"POST /api/validate-yaml",
    "preupload": r"POST /api/(models/|(?=spaces/))(?P<repo>.+)/preupload/(?P<branch>.+)",
    "lfs_batch": r"POST /(?P<repo>.+)\.git/info/lfs/objects/batch",
    "lfs": r"PUT /lfs/(?P<oid>[0-9a-f]{64})",
    "commit": r"POST /api/(models/|(?=spaces/))(?P<repo>.+)/commit/(?P<branch>.+)",
}


class HubServer:
    """Context manager; attributes may be changed while it runs.

    Args:
        reject_token: every request with credentials is answered with 401.
        role: of the token, "write" or "read".
        fail_on: kind of request (a key of `ROUTES`) that fails from the `fail_from`-th one on, with `fail_status`,
            or with a connection closed without an answer if that is None.

    Attributes:
        requests: kinds of all requests so far, in order. repos: id → {"private", "branches"}, and of Spaces "sdk".
        commits: {"repo", "branch", "summary", "files": {path: bytes}} in order.
        offered: (repository, branch or commit) → {path: bytes}, to be downloaded.
        gated: path of an offered file → 401 or 403, which is answered for it as for one behind a gate.
    """

    def __init__(self, reject_token=False, role="write", fail_on=None, fail_from=1, fail_status: int | None = 500):
        self.reject_token, self.role = reject_token, role
        self.fail_on, self.fail_from, self.fail_status = fail_on, fail_from, fail_status
        self.requests, self.repos, self.commits, self.lfs_objects, self.offered, self.gated = [], {}, [], {}, {}, {}

    def __enter__(self):
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._http.hub = self
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._http.server_close()

    def env(self, token: str | None = TOKEN, **more: str) -> dict[str, str]:
        """The environment for a child process whose Hub is this server."""
        env = {key: value for key, value in os.environ.items() if not key.endswith("_OFFLINE") and key != "HF_TOKEN"}
        env |= {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
        return env | {"NO_PROXY": "127.0.0.1"} | ({"HF_TOKEN": token} if token else {}) | more

    def files(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        """Path → content of everything committed to a branch."""
        commits = [commit for commit in self.commits if (commit["repo"], commit["branch"]) == (repo, branch)]
        return {path: content for commit in commits for path, content in commit["files"].items()}

    def offer(self, repo: str, files: dict[str, bytes], revision: str = "main") -> str:
        """Lets files be downloaded, of a dataset if the name begins with `datasets/`; returns the commit's hash."""
        commit = hashlib.sha1(f"{repo} {revision} {sorted(files)}".encode()).hexdigest()
        self.offered[repo, revision] = self.offered[repo, commit] = files | {"": commit.encode()}
        return commit

    # One method for each kind of request: (body, fields of the path) → (status, JSON).

    def whoami(self, body):
        return 200, {"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": {"role": self.role}}}

    def create(self, body):
        request = json.loads(body)
        kind = "spaces/" if request.get("type") == "space" else ""
        repo = f"{kind}{request.get('organization') or USER}/{request['name']}"
        if repo in self.repos:
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{repo}"}
        if not repo.startswith(f"{kind}{USER}/"):
            return 403, {"error": f"You don't have the rights to create a model under the namespace {repo}"}
        private = request.get("visibility") == "private" or bool(request.get("private"))
        self.repos[repo] = {"private": private, "branches": ["main"]} | ({"sdk": request["sdk"]} if kind else {})
        return 200, {"url": f"{self.url}/{repo}", "name": repo}

    def branch(self, body, repo, branch):
        branches = self.repos[repo]["branches"]
        if unquote(branch) in branches:
            return 409, {"error": "Reference already exists"}
        branches.append(unquote(branch))
        return 200, {}

    def info(self, body, repo):
        return (200, {"id": repo, "sha": "0" * 40}) if repo in self.repos else (404, {"error": "Repository not found"})

    def listing(self, body, repo, revision="main"):
        files = self.offered.get((f"datasets/{repo}", unquote(revision)))
        if files is None:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        siblings = [{"rfilename": path} for path in files if path]
        return 200, {"id": repo, "sha": files[""].decode(), "siblings": siblings, "private": False}

    def tree(self, body, repo, revision, folder=""):
        """What lies in a folder; the real one lists subfolders as well where it is asked to."""
        files = self.offered[f"datasets/{repo}", unquote(revision)]
        prefix = f"{unquote(folder)}/" if folder else ""
        below = [path for path in files if path and path.startswith(prefix)]
        names = {path: path.removeprefix(prefix).split("/")[0] for path in below}
        entries = {prefix + name: {"type": "directory", "path": prefix + name, "oid": ""} for name in names.values()}
        for path, name in names.items():
            if path == prefix + name:
                oid = hashlib.sha1(files[path]).hexdigest()
                entries[path] = {"type": "file", "path": path, "size": len(files[path]), "oid": oid}
        return 200, list(entries.values())

    def download(self, body, repo, revision, path):
        files = self.offered.get((repo, unquote(revision)))
        if files is None:
            known = any(offered == repo for offered, _ in self.offered)
            return 404, {"error": "not found"}, {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"}
        content = files.get(unquote(path)) if path else None
        headers = {"X-Repo-Commit": files[""].decode()}
        if path in self.gated:
            return self.gated[path], {"error": "gated"}, headers | {"X-Error-Code": "GatedRepo"}
        if content is None:
            return 404, {"error": "not found"}, headers | {"X-Error-Code": "EntryNotFound"}
        return 200, content, headers | {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'}

    def validate(self, body):
        return 200, {"errors": [], "warnings": []}

    def preupload(self, body, repo, branch):
        if unquote(branch) not in self.repos[repo]["branches"]:
            return 404, {"error": "Invalid rev id"}
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        return 200, {"files": modes}

    def lfs_batch(self, body, repo):
        objects = [
            {**item, "actions": {"upload": {"href": f"{self.url}/lfs/{item['oid']}"}}}
            if item["oid"] not in self.lfs_objects
            else item
            for item in json.loads(body)["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}

    def lfs(self, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, {"error": "content does not match its sha256"}
        self.lfs_objects[oid] = body
        return 200, {}

    def commit(self, body, repo, branch):
        files, summary = {}, ""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                summary = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.lfs_objects[value["oid"]]
        self.commits.append({"repo": repo, "branch": unquote(branch), "summary": summary, "files": files})
        oid = hashlib.sha1(body).hexdigest()
        return 200, {"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{repo}/commit/{oid}"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self):
        hub = self.server.hub
        body = self._body()
        path = urlsplit(self.path).path
        matches = ((kind, re.fullmatch(route, f"{self.command} {path}")) for kind, route in ROUTES.items())
        kind, match = next((found for found in matches if found[1]), (None, None))
        if match is None:
            return self._send(404, {"error": f"no such page: {path}"}, {"X-Error-Code": "EntryNotFound"})
        hub.requests.append(kind)
        public = kind in ("lfs", "listing", "tree", "download")
        if not public and (hub.reject_token or self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            message = "Invalid credentials in Authorization header"
            return self._send(401, {"error": message}, {"X-Error-Message": message})
        if kind == hub.fail_on and hub.requests.count(kind) >= hub.fail_from:
            if hub.fail_status is None:
                self.close_connection = True
                return None
            # Without the header the client would wait 23 s in all before it gives up on a 5xx.
            return self._send(hub.fail_status, {"error": "made to fail"}, {"Retry-After": "0"})
        fields = {name: value for name, value in match.groupdict().items() if value is not None}
        return self._send(*getattr(hub, kind)(body, **fields))

    do_GET = do_POST = do_PUT = do_HEAD = _answer

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, status: int, content: dict | list | bytes, headers: dict[str, str] | None = None):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked and status == 200:  # as files are read that are streamed
            first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
            headers = (headers or {}) | {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
            status, data = 206, data[first : last + 1]
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_):
        pass
