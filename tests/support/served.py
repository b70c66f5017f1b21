"""The command, serving a page."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def serving(*options: str, port: int = 0) -> Iterator[tuple[subprocess.Popen, str]]:
    """``serve``, running with a small picture; and its address."""
    code = "from longlive_optimized.cli import main; main()"
    small = [] if "--height" in options else ["--height", "32", "--width", "48"]
    server = subprocess.Popen(
        [sys.executable, "-c", code, "serve", *small, "--port", str(port), *options],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )
    assert server.stderr
    try:
        found = re.search(r"http://\S+", server.stderr.readline())
        assert found
        yield server, found.group()
    finally:
        server.kill()
        print(server.communicate()[1])  # seen where a test fails
