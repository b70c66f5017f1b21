"""A small model hub on loopback, as the hub's client meets it: lists, files, ranges, checksums, redirects, refusals.

Large files are redirected to a second address, another origin, as a store's signed addresses are. ``log`` has every
request; ``sent`` counts the bytes of bodies. ``python tests/support/hub.py COMMAND`` runs a command beside such a hub,
on a machine that has no models.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, unquote, urlsplit

import torch
from huggingface_hub import constants, file_download, hf_api

sys.path.insert(0, str(Path(__file__).parents[1]))

from longlive_optimized.weights.random_checkpoint import make_checkpoint, write_small_vaes
from support.umt5 import write_fp8

LARGE = (".pt", ".pth", ".safetensors", "tokenizer.json", ".model")
LONGLIVE, WAN, VIDEO = "daydreamlive/LongLive-1.3B", "daydreamlive/Wan2.1-T2V-1.3B", "daydreamlive/WanVideo_comfy"
SMALL, WAN_AI = "daydreamlive/Autoencoders", "Wan-AI/Wan2.1-T2V-1.3B"
PIECE = 1 << 14


@dataclass
class Repo:
    """``commits``: the files of each. ``revisions``: names for them. token: what a reader must present."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False

    def commit(self, files: dict[str, bytes], *names: str) -> str:
        """Add a commit, which ``names`` then stand for."""
        told = "".join(f"{name}{hashlib.sha1(data).hexdigest()}" for name, data in sorted(files.items()))
        made = hashlib.sha1(told.encode()).hexdigest()
        self.commits[made] = files
        self.revisions |= dict.fromkeys(names, made)
        return made

    @property
    def files(self) -> dict[str, bytes]:
        """Those of ``main``."""
        return self.commits[self.revisions["main"]]


@dataclass
class Seen:
    """A request: its bytes are those of the body that was sent. offset: of its range."""

    method: str
    path: str
    offset: int
    authorization: str | None
    sent: int = 0


class Hub:
    """Two servers on loopback.

    cut: bytes of a large file, by name, after which the connection breaks, each once; with ``down_after_cut`` the store
    is then down: no large file is sent at all; with ``resets`` it breaks by a reset, not by an end. spoiled: names of
    large files that arrive with another byte. ranges: whether ranges are honoured. pace: seconds between pieces.
    """

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.log: list[Seen] = []
        self.cut: dict[str, list[int]] = {}
        self.spoiled: set[str] = set()
        self.down, self.down_after_cut, self.resets, self.ranges, self.pace = False, False, False, True, 0.0
        self._stored: dict[str, tuple[str, bytes]] = {}
        self._servers = [_Server(("127.0.0.1", 0), _handler(self, kind)) for kind in ("hub", "store")]
        hosts = "127.0.0.1", "localhost"  # the client follows redirects within a host
        self.endpoint, self.store = (
            f"http://{host}:{server.server_address[1]}" for host, server in zip(hosts, self._servers, strict=True)
        )

    @contextmanager
    def running(self) -> Iterator[Hub]:
        """Serve until the end."""
        threads = [threading.Thread(target=server.serve_forever, args=(0.02,)) for server in self._servers]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            for server in self._servers:
                server.shutdown()
                server.server_close()
            for thread in threads:
                thread.join()

    def forget(self) -> None:
        """Forget the requests so far."""
        self.log.clear()

    @property
    def sent(self) -> int:
        """Bytes of large files that were sent."""
        return sum(seen.sent for seen in self.log if seen.path.startswith("/store/"))

    def fetched(self) -> set[str]:
        """Names of files of which anything was sent."""
        files = [seen for seen in self.log if seen.method == "GET" and not seen.path.startswith("/api/")]
        return {unquote(seen.path.rsplit("/", 1)[1]) for seen in files if seen.sent}

    def keep(self, sha: str, name: str, data: bytes) -> str:
        """Where the store has it."""
        self._stored[sha] = name, data
        return f"{self.store}/store/{sha}/{name}?signature=secret"

    def stored(self, sha: str) -> tuple[str, bytes]:
        """The name and bytes behind an address of the store."""
        return self._stored[sha]


@contextmanager
def alone(files: dict[str, dict[str, bytes]], folder: Path, monkeypatch) -> Iterator[Hub]:
    """A hub with ``files`` by repository, and a machine that has nothing yet and asks no other one."""
    hub = Hub()
    for name, content in files.items():
        hub.repos[name] = Repo()
        hub.repos[name].commit(dict(content), "main")
    for name, value in {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(folder / "cache"),
        "HF_TOKEN_PATH": str(folder / "token"),
        "DOWNLOAD_CHUNK_SIZE": PIECE,
    }.items():
        for module in (constants, file_download, hf_api):  # some versions import them by name
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    monkeypatch.setenv("DAYDREAM_SCOPE_MODELS_DIR", str(folder / "scope"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("longlive_optimized.weights.hub.PAUSE", 0.01)
    impatient = SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None})  # between the client's own tries
    for module in ("file_download", "utils._http"):
        monkeypatch.setattr(f"huggingface_hub.{module}.time", impatient)
    with hub.running():
        yield hub


def is_large(name: str) -> bool:
    """Whether a file lies in the store, with its SHA-256."""
    return name.endswith(LARGE)


def blob_id(data: bytes) -> str:
    """Git's name for a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _described(name: str, data: bytes) -> dict:
    """A file in a list of the hub."""
    told: dict = {"rfilename": name, "size": len(data), "blobId": blob_id(data)}
    if is_large(name):
        told["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return told


class _Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # readers go whenever they like
            super().handle_error(request, client_address)


def _handler(hub: Hub, kind: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            offset = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
            url = urlsplit(self.path)
            self.seen = Seen(self.command, url.path, offset, self.headers.get("Authorization"))
            hub.log.append(self.seen)
            parts = [unquote(part) for part in url.path.strip("/").split("/")]
            if kind == "store":
                self._send_large(parts[1])
            elif parts[:2] == ["api", "models"]:
                self._list("/".join(parts[2:4]), parts[4:], parse_qs(url.query))
            elif parts[2:3] != ["resolve"]:
                self._send(404, b"", {})
            else:
                self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))

        def _readable(self, name: str) -> Repo | None:
            """The repository, or None once the refusal is sent: like the hub's, it does not say what there is."""
            repo, given = hub.repos.get(name), (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if repo is not None and repo.gated and given != repo.token:
                self._refuse(403 if given else 401, "GatedRepo", f"{given or 'nobody'} may not read it")
            elif repo is None or (repo.token and given != repo.token):
                self._refuse(401, "RepoNotFound", f"nothing for {given or 'nobody'}")
            else:
                return repo
            return None

        def _refuse(self, status: int, code: str, message: str, **headers: str) -> None:
            self._send(status, message.encode(), {"X-Error-Code": code, "X-Error-Message": message, **headers})

        def _list(self, name: str, rest: list[str], query: dict) -> None:
            if (repo := self._readable(name)) is None:
                return
            revision = "/".join(rest[1:]) if rest else "main"
            commit = repo.revisions.get(revision, revision)
            if commit not in repo.commits:
                self._refuse(404, "RevisionNotFound", "no such revision")
                return
            files = repo.commits[commit]
            if rest[:1] == ["tree"]:
                told = [self._in_tree(path, data) for path, data in files.items()]
            else:
                blobs = query.get("blobs", ["false"])[0].lower() == "true"
                siblings = [_described(p, d) if blobs else {"rfilename": p} for p, d in files.items()]
                told = {"id": name, "modelId": name, "sha": commit, "private": False, "siblings": siblings}
            self._send(200, json.dumps(told).encode(), {"Content-Type": "application/json"})

        def _in_tree(self, path: str, data: bytes) -> dict:
            told = {"type": "file", "path": path, "size": len(data), "oid": blob_id(data)}
            lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            return told | ({"lfs": lfs} if is_large(path) else {})

        def _resolve(self, name: str, revision: str, path: str) -> None:
            if (repo := self._readable(name)) is None:
                return
            commit = repo.revisions.get(revision, revision)
            if (data := repo.commits.get(commit, {}).get(path)) is None:
                known = {"X-Repo-Commit": commit} if commit in repo.commits else {}
                self._refuse(404, "EntryNotFound" if known else "RevisionNotFound", "no such thing", **known)
            elif is_large(path):
                sha = hashlib.sha256(data).hexdigest()
                headers = {"X-Linked-Etag": f'"{sha}"', "X-Linked-Size": str(len(data)), "X-Repo-Commit": commit}
                headers |= {"ETag": f'"{blob_id(data)}"', "Location": hub.keep(sha, path.rsplit("/", 1)[-1], data)}
                self._send(302, b"", headers)
            else:
                self._send(200, data, {"X-Repo-Commit": commit, "ETag": f'"{blob_id(data)}"'})

        def _send_large(self, sha: str) -> None:
            if hub.down:
                self._send(503, b"down", {})
                return
            name, data = hub.stored(sha)
            if name in hub.spoiled:
                data = data[:-1] + bytes([data[-1] ^ 1])
            offset = self.seen.offset if hub.ranges else 0
            if offset >= len(data):
                self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            ranged = {"Content-Range": f"bytes {offset}-{len(data) - 1}/{len(data)}"} if offset else {}
            cuts = hub.cut.get(name, [])
            self._send(206 if offset else 200, data[offset:], ranged, cuts.pop(0) if cuts else None)

        def _send(self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
            """Answer; with ``cut`` only so many bytes of the body, and then break the connection."""
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            body = body if cut is None else body[:cut]
            try:
                for start in range(0, len(body), PIECE):
                    self.wfile.write(body[start : start + PIECE])
                    self.seen.sent += len(body[start : start + PIECE])
                    if hub.pace:
                        self.wfile.flush()
                        time.sleep(hub.pace)
            except OSError:  # the reader has gone
                self.close_connection = True
            if cut is not None:
                hub.down |= hub.down_after_cut
                self.wfile.flush()
                if hub.resets:
                    time.sleep(0.1)  # or what was sent would be lost with the connection
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    for each in (self.rfile, self.wfile, self.connection):
                        each.close()
                self.close_connection = True

    return Handler


def contents(folder: Path) -> dict[str, dict[str, bytes]]:
    """A tiny model's files by repository, as the public ones have them, with much beside that nobody needs."""
    made = make_checkpoint(folder / "made", "tiny", control=True)
    write_small_vaes(made)
    wan = made / "wan_models/Wan2.1-T2V-1.3B"
    bf16 = wan / "models_t5_umt5-xxl-enc-bf16.pth"
    fp8 = folder / "umt5-xxl-enc-fp8_e4m3fn.safetensors"
    write_fp8(fp8, torch.load(bf16, weights_only=True))
    much = bytes(300_000)
    unneeded = {"README.md": b"# A model", "diffusion_pytorch_model.safetensors": much, ".gitattributes": b"* lfs"}
    tokenizer = {f"google/umt5-xxl/{path.name}": path.read_bytes() for path in (wan / "google/umt5-xxl").iterdir()}
    tokenizer["google/umt5-xxl/spiece.model"] = b"pieces" * 1000
    module = made / "WanVideo_comfy/Wan2_1-VACE_module_1_3B_bf16.safetensors"
    models = made / "longlive_models/models"
    return {
        LONGLIVE: unneeded
        | {"config.json": b'{"model_name": "LongLive"}'}
        | {f"models/{name}": (models / name).read_bytes() for name in ("longlive_base.pt", "lora.pt")},
        WAN: unneeded | tokenizer | {name: (wan / name).read_bytes() for name in ("config.json", "Wan2.1_VAE.pth")},
        VIDEO: unneeded
        | {
            "config.json": b'{"model_name": "WanVideo_comfy"}',
            fp8.name: fp8.read_bytes(),
            "other-14B.safetensors": much,
        }
        | {module.name: module.read_bytes()},
        SMALL: {"config.json": b"{}"} | {path.name: path.read_bytes() for path in (made / "Autoencoders").iterdir()},
        WAN_AI: unneeded | {bf16.name: bf16.read_bytes()},
    }


def main() -> int:
    """Run the command of the arguments beside a hub; its status."""
    with tempfile.TemporaryDirectory() as folder:
        hub = Hub()
        for name, content in contents(Path(folder)).items():
            hub.repos[name] = Repo()
            hub.repos[name].commit(content, "main")
        variables = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": f"{folder}/home",
            "DAYDREAM_SCOPE_MODELS_DIR": f"{folder}/s",
        }
        with hub.running():
            return subprocess.run(sys.argv[1:], env=os.environ | variables).returncode


if __name__ == "__main__":
    sys.exit(main())
