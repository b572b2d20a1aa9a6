"""A Hub on this machine: enough of its protocol for the real client to read and write data sets."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class FakeHub:
    """Data sets by name and commit, and what is asked about them.

    `troubles` is how many requests from now on are answered with 503, and `broken` the files for
    which all are. `served` counts the bytes of files.
    """

    def __init__(self):
        self.branches: dict[tuple[str, str], str] = {}
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}
        self.asked: list[str] = []
        self.fetched: list[str] = []
        self.served = 0
        self.troubles = 0
        self.broken: set[str] = set()
        self.url = ""

    def push(self, repo: str, files: dict[str, bytes], branch: str = "main", commit="") -> str:
        content = repr(sorted(files.items())).encode()
        commit = commit or hashlib.sha1(content, usedforsecurity=False).hexdigest()
        self.branches[repo, branch] = commit
        self.files[repo, commit] = dict(files)
        return commit

    def commit(self, repo: str, revision: str) -> str | None:
        commit = self.branches.get((repo, revision), revision)
        return commit if (repo, commit) in self.files else None


@contextmanager
def running():
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Quiet."""

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def _answer(self, status: int, body: bytes = b"", **headers: str):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value):
        self._answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def _told(self) -> tuple[list[str], bytes]:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.asked.append(f"{self.command} {path}")
        return path.strip("/").split("/"), body

    def _in_trouble(self) -> bool:
        if self.hub.troubles or any(urlsplit(self.path).path.endswith(b) for b in self.hub.broken):
            self.hub.troubles = max(0, self.hub.troubles - 1)
            self._answer(503, b"busy")
            return True
        return False

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        parts, _ = self._told()
        if self._in_trouble():
            return
        match parts:
            case ["api", "datasets", owner, name, "tree", commit, *folder]:
                files = self.hub.files[f"{owner}/{name}", commit]
                inside = [p for p in files if p.rpartition("/")[0] == "/".join(folder)]
                self._json([self._entry(p, files[p]) for p in inside])
            case ["api", "datasets", owner, name, *rest]:
                repo = f"{owner}/{name}"
                self._info(repo, rest[1] if rest[:1] == ["revision"] else "main")
            case ["datasets", owner, name, "resolve", revision, *path]:
                self._file(f"{owner}/{name}", revision, "/".join(path))
            case _:
                self._answer(404)

    @staticmethod
    def _entry(path: str, data: bytes) -> dict:
        return {"type": "file", "path": path, "size": len(data), "oid": "0" * 40}

    def _info(self, repo: str, revision: str):
        commit = self.hub.commit(repo, revision)
        if commit is None:
            known = any(name == repo for name, _ in self.hub.files)
            code = "RevisionNotFound" if known else "RepoNotFound"
            self._answer(404, b"{}", X_Error_Code=code)
            return
        files = self.hub.files[repo, commit]
        siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
        self._json({"id": repo, "sha": commit, "siblings": siblings})

    def _file(self, repo: str, revision: str, path: str):
        commit = self.hub.commit(repo, revision)
        data = self.hub.files.get((repo, commit or ""), {}).get(path)
        if data is None:
            self._answer(404, X_Error_Code="EntryNotFound")
            return
        etag = hashlib.sha256(data).hexdigest()
        headers = {"ETag": f'"{etag}"', "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
        if self.command == "HEAD":
            self._answer(200, Content_Length=str(len(data)), **headers)
            return
        wanted = self.headers.get("Range")
        if wanted:
            start, _, stop = wanted.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(stop or len(data) - 1), len(data) - 1)
            self.hub.served += last + 1 - first
            headers["Content_Range"] = f"bytes {first}-{last}/{len(data)}"
            self._answer(206, data[first : last + 1], **headers)
        else:
            self.hub.fetched.append(path)
            self.hub.served += len(data)
            self._answer(200, data, **headers)

    def do_POST(self):
        parts, body = self._told()
        if self._in_trouble():
            return
        match parts:
            case ["api", "repos", "create"]:
                asked = json.loads(body)
                repo = f"{asked['organization']}/{asked['name']}"
                self.hub.push(repo, {})
                self._json({"url": f"{self.hub.url}/datasets/{repo}"})
            case ["api", "datasets", owner, name, "paths-info", revision]:
                commit = self.hub.commit(f"{owner}/{name}", revision)
                files = self.hub.files[f"{owner}/{name}", commit or ""]
                wanted = json.loads(body)["paths"] if body[:1] == b"{" else []
                self._json([self._entry(p, files[p]) for p in wanted if p in files])
            case ["api", "datasets", _, _, "preupload", _]:
                asked = json.loads(body)["files"]
                self._json(
                    {
                        "files": [
                            {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                            for f in asked
                        ]
                    }
                )
            case ["api", "datasets", owner, name, "commit", branch]:
                self._commit(f"{owner}/{name}", branch, body)
            case ["api", "validate-yaml"]:
                self._json({"errors": [], "warnings": []})
            case _:
                self._answer(404)

    def _commit(self, repo: str, branch: str, body: bytes):
        before = self.hub.files[repo, self.hub.branches[repo, branch]]
        given = [json.loads(line) for line in body.splitlines()]
        new = {
            one["value"]["path"]: base64.b64decode(one["value"]["content"])
            for one in given
            if one["key"] == "file"
        }
        commit = self.hub.push(repo, before | new, branch)
        self._json(
            {
                "commitOid": commit,
                "commitUrl": f"{self.hub.url}/datasets/{repo}/commit/{commit}",
                "success": True,
            }
        )
