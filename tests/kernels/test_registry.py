import logging
import os
import subprocess
import sys

import pytest
import torch

from longlive_optimized.kernels import registry
from longlive_optimized.kernels.linear_gelu import linear_gelu
from longlive_optimized.kernels.modulate_norm import modulate_norm
from longlive_optimized.kernels.registry import ORDER, backend, force


@pytest.fixture
def args():
    return torch.randn(4, 16), torch.randn(2, 16), torch.randn(2, 16), 1e-6


def test_the_cpu_gets_the_reference(args):
    assert modulate_norm.choose(*args) == "reference"


def test_the_first_that_takes_the_call_wins(args, monkeypatch):
    impls = {"reference": (lambda *a: "reference", lambda *a: True)}
    for name, takes in {"triton": True, "cuda": False, "library": True}.items():
        impls[name] = (lambda *a, name=name: name, lambda *a, takes=takes: takes)
    monkeypatch.setattr(modulate_norm, "impls", impls)
    assert ORDER.index("cuda") < ORDER.index("triton") < ORDER.index("reference")
    assert modulate_norm(*args) == "triton"
    with backend("reference"):
        assert modulate_norm(*args) == "reference"
    assert modulate_norm(*args) == "triton"


def test_a_forced_backend_that_cannot_run_is_an_error(args):
    with backend("cuda"), pytest.raises(NotImplementedError, match=r"modulate_norm.*cuda.*LONGLIVE_BACKEND"):
        modulate_norm(*args)


def test_forcing_passes_over_operators_that_lack_the_backend():
    with backend("triton"):
        assert linear_gelu.choose(torch.zeros(2, 8), torch.zeros(8, 8), torch.zeros(8)) == "reference"


def test_the_choice_comes_back_after_an_error(args):
    with pytest.raises(NotImplementedError), backend("cuda"):
        modulate_norm(*args)
    assert modulate_norm.choose(*args) == "reference"


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="must be one of"):
        force("cudnn")


def test_the_choice_is_logged_once(args, monkeypatch, caplog):
    monkeypatch.setattr(modulate_norm, "_logged", set())
    with caplog.at_level(logging.INFO, registry.__name__):
        modulate_norm(*args), modulate_norm(*args)
    assert [r.getMessage() for r in caplog.records] == ["modulate_norm runs on reference"]


@pytest.mark.parametrize(("value", "outcome"), [("reference", "reference"), ("", "None"), ("gpu", "ValueError")])
def test_the_environment_can_force(value, outcome):
    code = "from longlive_optimized.kernels import registry; print(registry.forced())"
    env = {**os.environ, "LONGLIVE_BACKEND": value, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert outcome in (done.stderr if done.returncode else done.stdout)
