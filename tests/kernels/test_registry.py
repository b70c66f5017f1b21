import logging
import os
import subprocess
import sys

import pytest
import torch

from longlive_optimized.kernels import native, registry
from longlive_optimized.kernels.linear_gelu import linear_gelu
from longlive_optimized.kernels.modulate_norm import modulate_norm
from longlive_optimized.kernels.registry import ORDER, backend, force
from longlive_optimized.kernels.rms_norm import rms_norm


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


def test_each_backend_before_the_chosen_one_says_why_not(args, monkeypatch):
    assert modulate_norm.explain(*args)[1]["cuda"] == "no CUDA GPU"
    impls = {"reference": (lambda *a: None, lambda *a: True)}
    for name, takes in {"cuda": False, "triton": True, "library": True}.items():
        impls[name] = (lambda *a: None, lambda *a, takes=takes: takes)
    monkeypatch.setattr(modulate_norm, "impls", impls)
    monkeypatch.setattr(native, "missing", lambda device: None)
    assert modulate_norm.explain(*args) == ("triton", {"cuda": "cuda does not take these arguments"})
    with backend("library"):
        chosen, why = modulate_norm.explain(*args)
    assert chosen == "library" and why == {"cuda": "cuda does not take these arguments", "triton": "forced by force()"}
    with backend("cuda"), pytest.raises(NotImplementedError):
        modulate_norm.explain(*args)


def test_an_operator_without_the_forced_backend_names_the_machine(args):
    with backend("cuda"):
        assert linear_gelu.explain(torch.zeros(2, 8), torch.zeros(8, 8), torch.zeros(8)) == (
            "reference",
            {"library": "no CUDA GPU"},
        )


@pytest.mark.parametrize(
    ("where", "capability", "built", "lacks"),
    [
        ("cpu", None, True, "no CUDA GPU"),
        ("cuda:0", (8, 0), True, "no Hopper GPU"),
        ("cuda:0", (9, 0), False, "the CUDA library was not built"),
        ("cuda:0", (9, 0), True, None),
    ],
)
def test_what_the_library_lacks(monkeypatch, where, capability, built, lacks):
    monkeypatch.setattr(native, "capability", lambda index: capability)
    monkeypatch.setattr(native, "load", lambda: built)
    assert native.missing(torch.device(where)) == lacks


def test_a_forced_backend_that_cannot_run_is_an_error(args):
    with backend("cuda"), pytest.raises(NotImplementedError, match=r"modulate_norm.*cuda.*LONGLIVE_BACKEND"):
        modulate_norm(*args)


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_shapes_are_told_whatever_is_forced(name):
    x = torch.empty(4, 64, device="meta")
    with backend(name):
        assert rms_norm(x, x[0], 1e-6).shape == x.shape


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


@pytest.mark.parametrize(("value", "outcome"), [("reference", "reference"), ("", "None")])
def test_the_environment_can_force(value, outcome):
    """What it must not be, the command line's tests say."""
    code = "from longlive_optimized.kernels import registry; print(registry.forced())"
    env = {**os.environ, "LONGLIVE_BACKEND": value, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == outcome
