import contextlib
import io
import logging
import sys
from types import SimpleNamespace

import pytest

import longlive_optimized.cli
from longlive_optimized.cli import main


@pytest.fixture
def run(monkeypatch):
    """The command in this process, which has loaded torch."""
    monkeypatch.setattr(logging, "basicConfig", lambda **options: None)
    monkeypatch.setattr(longlive_optimized.cli, "share_the_machine", lambda: None)

    def call(*args, check=True) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["longlive-optimized", *map(str, args)])
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
            main()
        done = SimpleNamespace(returncode=end.value.code or 0, stdout=out.getvalue(), stderr=err.getvalue())
        assert not check or done.returncode == 0, done.stderr
        return done

    return call
