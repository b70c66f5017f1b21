"""A scope server in a process of its own, and its REST interface."""

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

PLUGIN = "longlive-optimized"
START, LOAD = 180.0, 120.0  # seconds
KEPT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "TMPDIR", "OMP_NUM_THREADS")


class ScopeServer:
    """``with ScopeServer(checkout, python, folder) as server:``; logs, models and settings stay in ``folder``.

    python: an interpreter with scope's requirements and the plugin, which is found by its entry point.
    """

    def __init__(self, checkout: str, python: str, folder: Path):
        self.folder, self._trace = folder, folder / "trace.jsonl"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        # A clean environment: no account's tokens, no one's models.
        settings = {name: os.environ[name] for name in KEPT if name in os.environ}
        settings |= {"HOME": str(folder), "HF_HUB_OFFLINE": "1"}
        script = Path(__file__).with_name("serve.py")
        self._log = open(folder / "log.txt", "wb")
        self._process = subprocess.Popen(
            [python, str(script), checkout, str(self.port), str(self._trace)],
            cwd=folder,
            env=settings,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> "ScopeServer":
        end = time.monotonic() + START
        while time.monotonic() < end and self._process.poll() is None:
            try:
                self.get("/health")
                return self
            except OSError:
                time.sleep(0.2)
        self.__exit__()
        raise RuntimeError(f"scope did not start:\n{self.log()[-3000:]}")

    def __exit__(self, *error) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def get(self, path: str) -> dict:
        """The answer's JSON. Raises urllib.error.HTTPError, which is an OSError."""
        return json.loads(self.fetch("GET", path))

    def post(self, path: str, body: dict | None = None) -> dict:
        """The answer's JSON. Raises urllib.error.HTTPError."""
        return json.loads(self.fetch("POST", path, body or {}))

    def fetch(self, method: str, path: str, body: dict | None = None) -> bytes:
        """The answer's bytes. Raises urllib.error.HTTPError."""
        data = None if body is None else json.dumps(body).encode()
        url, headers = f"http://127.0.0.1:{self.port}{path}", {"Content-Type": "application/json"}
        request = urllib.request.Request(url, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def load(self, pipeline_id: str, load_params: dict) -> str:
        """Load a pipeline and wait: ``loaded`` or ``error``."""
        return self.load_nodes({pipeline_id: (pipeline_id, load_params)})

    def load_nodes(self, nodes: dict[str, tuple[str, dict]]) -> str:
        """Load a graph's pipelines, by nodes, as scope's page does, and wait: ``loaded`` or ``error``."""
        keys = "node_id", "pipeline_id", "load_params"
        items = [dict(zip(keys, (node, *what), strict=True)) for node, what in nodes.items()]
        self.post("/api/v1/pipeline/load", {"pipelines": items})
        load_params = items[0]["load_params"]  # the status has the first one's
        end, loaded = time.monotonic() + LOAD, 0
        while time.monotonic() < end:
            state = self.get("/api/v1/pipeline/status")
            if state["load_params"] == load_params and state["status"] == "error":
                return "error"  # said once
            # Just before it begins, scope still calls the old instance loaded, with the new parameters.
            loaded = loaded + 1 if (state["load_params"], state["status"]) == (load_params, "loaded") else 0
            if loaded == 3:
                return "loaded"
            time.sleep(0.1)
        raise TimeoutError(f"not loaded in {LOAD} s: {state}")

    def trace(self, what: str, pipeline_id: str = PLUGIN) -> list[dict]:
        """The lines so far of ``init``, ``call`` or ``collected``."""
        lines = self._trace.read_text().splitlines() if self._trace.exists() else []
        records = map(json.loads, lines)
        return [record for record in records if (record["what"], record["pipeline_id"]) == (what, pipeline_id)]

    def log(self) -> str:
        """What the server wrote."""
        return (self.folder / "log.txt").read_text(errors="replace")


def refused(call, *args) -> int:
    """The HTTP status with which a request is refused; 0 when it is not."""
    try:
        call(*args)
    except urllib.error.HTTPError as error:
        return error.code
    return 0
