"""Where commands run: a fresh checkout, an environment of its own, a folder of its own, few variables."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[3]
# What a machine needs to install and to share its cores; all else of the environment is left out.
_KEPT = ("PIP_", "OMP_", "SSL_CERT_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")


class Ran(NamedTuple):
    """A command that has ended: its status, and all that it wrote to stdout and stderr."""

    status: int
    text: str
    seconds: float


class Place:
    """``folder`` is empty at first; ``checkout`` is a clone of this repository with its uncommitted changes.

    environment: a virtual environment's folder, None for the one that ``./setup_env.sh`` makes in the checkout.
    """

    def __init__(self, folder: Path, environment: Path | None):
        self.folder, self.home = folder / "work", folder / "home"
        self.checkout = folder / "checkout"
        self.environment = environment or self.checkout / ".venv"
        for path in (self.folder, self.home):
            path.mkdir(parents=True)
        _clone(self.checkout)

    @property
    def variables(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name.startswith(_KEPT)}
        path = f"{self.environment / 'bin'}:/usr/local/bin:/usr/bin:/bin"
        base = getattr(sys, "_base_executable", sys.executable)
        own = {"PATH": path, "HOME": str(self.home), "LANG": "C.UTF-8", "COLUMNS": "160", "PYTHON": base}
        places = {"ENVIRONMENT": self.environment, "WORK": self.folder, "CHECKOUT": self.checkout}
        return kept | own | {name: str(path) for name, path in places.items()}

    @functools.cached_property
    def model(self) -> Path:
        """A folder of small random weights in the published layout."""
        ran = self.run("longlive-optimized make-checkpoint small --config tiny")
        assert ran.status == 0, ran.text
        return self.folder / "small"

    def run(self, command: str, where: Path | None = None, limit: float = 1200) -> Ran:
        """Run a shell command; one that takes more than ``limit`` seconds is ended, with status 124."""
        variables = self.variables
        if "$MODEL" in command:
            variables["MODEL"] = str(self.model)
        began = time.monotonic()
        process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=where or self.folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            text, status = process.communicate(timeout=limit)[0], process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            text, status = process.communicate()[0] + f"\nended after {limit:.0f} s", 124
        return Ran(status, text, time.monotonic() - began)

    @functools.cache  # noqa: B019  (there is one place)
    def passes(self, tests: str) -> None:
        """Raises AssertionError unless these tests pass, of which some must not be skipped."""
        ran = self.run(f"pytest -q {tests}", self.checkout)
        assert ran.status == 0 and " passed" in ran.text, ran.text


def _clone(to: Path) -> None:
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(to)], check=True)
    listed = ["git", "-C", str(ROOT), "ls-files", "--modified", "--others", "--exclude-standard", "-z"]
    for name in filter(None, subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
        else:
            (to / name).unlink(missing_ok=True)
