"""Loaders side by side: what they give, their progress, and how one that fails ends the other."""

import threading
import time

import pytest
import torch

from longlive_optimized.engine.devices import Devices
from longlive_optimized.engine.loading import Loading

CPU = Devices("cpu")


def steps(count, pause=0.0):
    """A loader of so many pieces, which gives its thread's name."""

    def load(progress):
        for i in range(count):
            time.sleep(pause)
            progress(i + 1, count)
        return threading.current_thread().name

    return load


def test_both_are_loaded_and_told_of_one_at_a_time():
    told, inside = [], []

    def progress(what, done, total):
        inside.append(what)
        time.sleep(0.001)
        assert len(inside) == 1
        told.append((what, done, total))
        inside.pop()

    with Loading(CPU, progress) as loading:
        there = loading.beside("text encoder", steps(20))
        here = loading.here("generator", steps(20))
        assert there.result() != here == threading.current_thread().name
    for what in ("text encoder", "generator"):
        assert [step[1:] for step in told if step[0] == what] == [(i + 1, 20) for i in range(20)]


def test_a_failure_here_stops_the_other():
    started, told = time.perf_counter(), []
    with pytest.raises(ZeroDivisionError), Loading(CPU, lambda what, *_: told.append(what)) as loading:
        there = loading.beside("text encoder", steps(1000, 0.01))
        loading.here("generator", lambda progress: 1 / 0)
    assert time.perf_counter() - started < 5 and len(told) < 500
    assert isinstance(there.exception(), RuntimeError)


def test_a_failure_there_is_raised():
    def broken(progress):
        raise FileNotFoundError("gone")

    with pytest.raises(FileNotFoundError, match="gone"), Loading(CPU, None) as loading:
        there = loading.beside("text encoder", broken)
        assert loading.here("VAE", steps(3)) == threading.current_thread().name
        there.result()


def test_neither_sees_the_callers_modes():
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), Loading(CPU, None) as loading:
        there = loading.beside("text encoder", lambda progress: torch.zeros(2, 2) @ torch.zeros(2, 2))
        here = loading.here("generator", lambda progress: torch.zeros(2, 2) @ torch.zeros(2, 2))
        for made in (there.result(), here):
            assert made.dtype == torch.float32 and not made.is_inference() and not made.requires_grad
