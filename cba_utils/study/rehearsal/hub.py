"""A hub on loopback: serves folders as repositories, and keeps a log of what was asked for.

It answers what ``huggingface_hub`` asks of ``HF_ENDPOINT``: what a repository holds, and its files,
whole or in ranges. Repositories are the folders ``models/<owner>/<name>`` and
``datasets/<owner>/<name>`` of its root.
"""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Files above this size are told as large ones, by SHA-256, as the hub does it.
_LARGE = 10_000_000
_PIECE = 1 << 20


class Hub(ThreadingHTTPServer):
    """The server; `log` has one entry a request.

    Parameters
    ----------
    root : Path
        Folder with ``models/`` and ``datasets/``.
    """

    daemon_threads = True

    def __init__(self, root):
        super().__init__(("127.0.0.1", 0), _Request)
        self.root = Path(root)
        self.log = []

    @property
    def url(self):
        """What ``HF_ENDPOINT`` has to be."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fetched(self):
        """Bytes that were sent of every file, by ``<repository>/<file>``.

        Returns
        -------
        dict of str to int
        """
        sent = {}
        for entry in self.log:
            if entry["method"] == "GET" and entry["file"]:
                name = f"{entry['repository']}/{entry['file']}"
                sent[name] = sent.get(name, 0) + entry["bytes"]
        return sent


@contextmanager
def serve(root):
    """A hub that runs in a thread of this process until the block ends.

    Parameters
    ----------
    root : Path

    Yields
    ------
    Hub
    """
    hub = Hub(root)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def repository_files(folder):
    """Files of a repository by their names in it.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    dict of str to Path
    """
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _digest(path, kind):
    status = path.stat()
    return _digest_of(path, kind, status.st_size, status.st_mtime_ns)


@cache
def _digest_of(path, kind, size, _changed):
    digest = hashlib.new(kind, f"blob {size}\0".encode() if kind == "sha1" else b"")
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _entry(name, path):
    size = path.stat().st_size
    entry = {"type": "file", "path": name, "size": size, "oid": _digest(path, "sha1")}
    if size > _LARGE:
        entry["lfs"] = {"oid": _digest(path, "sha256"), "size": size, "pointerSize": 134}
    return entry


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer(body=True)

    def do_HEAD(self):
        self._answer(body=False)

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._note(None, None, 0)
        self._refuse("EntryNotFound")

    def _answer(self, body):
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[0] == "api":
            kind, rest, about = parts[1], parts[2:], True
        else:
            kind = parts[0] if parts[0] == "datasets" else "models"
            rest, about = parts[kind == "datasets" :], False
        repository = "/".join(rest[:2])
        folder = self.server.root / kind / repository
        known = (
            re.fullmatch(r"[\w.-]+/[\w.-]+", repository) and ".." not in rest and folder.is_dir()
        )
        if not known:
            self._note(repository, None, 0)
            return self._refuse("RepoNotFound")
        files = repository_files(folder)
        self._commit = hashlib.sha1(
            "".join(f"{name} {_digest(path, 'sha1')}\n" for name, path in files.items()).encode()
        ).hexdigest()
        if about:
            self._note(repository, None, 0)
            return self._about(repository, kind, files, rest[2:], body)
        name = "/".join(rest[4:])
        if rest[2:3] != ["resolve"] or name not in files:
            self._note(repository, None, 0)
            return self._refuse("EntryNotFound")
        return self._file(repository, name, files[name], body)

    def _about(self, repository, kind, files, rest, body):
        if rest[:1] == ["tree"]:
            found = [_entry(name, path) for name, path in files.items()]
        else:
            found = {
                "id": repository,
                "sha": self._commit,
                "private": False,
                "gated": False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "siblings": [
                    {"rfilename": name, "size": path.stat().st_size} for name, path in files.items()
                ],
                "lastModified": "2026-01-01T00:00:00.000Z",
                "createdAt": "2026-01-01T00:00:00.000Z",
            }
            if kind == "models":
                found["modelId"] = repository
        text = json.dumps(found).encode()
        self._head(200, {"Content-Type": "application/json", "Content-Length": len(text)})
        if body:
            self.wfile.write(text)

    def _file(self, repository, name, path, body):
        size = path.stat().st_size
        start, end, status = 0, size, 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            start, end = int(asked[1]), min(size, int(asked[2] or size) + 1)
            status = 206
        self._note(repository, name, end - start if body else 0)
        kind = "sha256" if size > _LARGE else "sha1"
        headers = {
            "ETag": f'"{_digest(path, kind)}"',
            "Content-Length": end - start,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        if asked:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        self._head(status, headers)
        if body:
            with path.open("rb") as file:
                file.seek(start)
                while start < end and (piece := file.read(min(_PIECE, end - start))):
                    self.wfile.write(piece)
                    start += len(piece)

    def _head(self, status, headers):
        self.send_response(status)
        for key, value in {**headers, "X-Repo-Commit": self._commit}.items():
            self.send_header(key, str(value))
        self.end_headers()

    def _refuse(self, code):
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _note(self, repository, file, sent):
        self.server.log.append(
            {
                "method": self.command,
                "path": self.path,
                "repository": repository,
                "file": file,
                "bytes": sent,
            }
        )
