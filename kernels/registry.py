"""The one table of operators: what each is called, what it means, and who computes it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable

import torch

from . import native

ORDER = ("cuda", "triton", "library", "reference")  # the first that can take the call wins
OPS: dict[str, Op] = {}

_LIB = torch.library.Library("longlive", "DEF")
_log = logging.getLogger(__name__)
_forced: str | None = os.environ.get("LONGLIVE_BACKEND") or None  # checked when it is asked for


class Op:
    """One operator: its reference, the implementations beside it, and the rule that picks one.

    The reference gives the schema. It is the fake kernel too, and must not look at values, unless ``fake`` is given.
    """

    def __init__(self, reference: Callable, mutates: tuple[str, ...], fake: Callable | None = None):
        self.name, self.reference, self.__doc__ = reference.__name__, reference, reference.__doc__
        self.impls: dict[str, tuple[Callable, Callable[..., bool]]] = {"reference": (reference, lambda *a, **k: True)}
        self._logged: set[str] = set()
        _LIB.define(self.name + torch.library.infer_schema(reference, mutates_args=mutates))
        _LIB.impl(self.name, self._run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"longlive::{self.name}", fake or reference, lib=_LIB)
        self.torch_op = getattr(torch.ops.longlive, self.name).default
        OPS[self.name] = self

    def impl(self, backend: str, when: Callable[..., bool]):
        """Add an implementation; ``when(*args)`` says whether it takes these arguments."""

        def add(fn: Callable) -> Callable:
            self.impls[backend] = (fn, when)
            return fn

        return add

    def choose(self, *args, **kwargs) -> str:
        """Name the backend that will run this call.

        A forced backend is used by every operator that has it; NotImplementedError if it does not take this call.
        Meta tensors are for the reference, whatever is forced: it tells their shapes, and nothing runs.
        """
        wanted = forced()
        for backend_name in (wanted,) if wanted in self.impls else ORDER:
            if backend_name in self.impls and self.impls[backend_name][1](*args, **kwargs):
                return backend_name
        if any(isinstance(x, torch.Tensor) and x.is_meta for x in (*args, *kwargs.values())):
            return "reference"
        raise NotImplementedError(
            f"{self.name}: backend {wanted!r}, as LONGLIVE_BACKEND or force() says, does not take these arguments"
        )

    def explain(self, *args, **kwargs) -> tuple[str, dict[str, str]]:
        """The backend that will run this call, and of each one before it why it does not. Raises as ``choose`` does."""
        chosen = self.choose(*args, **kwargs)
        before = [name for name in ORDER[: ORDER.index(chosen)] if name in self.impls]
        return chosen, {name: self.refusal(name, *args, **kwargs) for name in before}

    def refusal(self, name: str, *args, **kwargs) -> str:
        """Why a backend does not run this call: what the machine lacks, the arguments, or another that is forced."""
        if self.impls[name][1](*args, **kwargs):
            by_environment = os.environ.get("LONGLIVE_BACKEND") == _forced
            return "forced by LONGLIVE_BACKEND" if by_environment else "forced by force()"
        device = next(x.device for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor))
        if name == "cuda":
            lacks = native.missing(device)
        else:
            lacks = None if device.type == "cuda" else "no CUDA GPU"
        return lacks or f"{name} does not take these arguments"

    def _run(self, *args, **kwargs):
        chosen = self.choose(*args, **kwargs)
        if chosen not in self._logged:
            self._logged.add(chosen)
            _log.info("%s runs on %s", self.name, chosen)
        return self.impls[chosen][0](*args, **kwargs)

    def __call__(self, *args, **kwargs):
        # Eager skips the dispatcher (4 us a call); a traced call keeps one graph node.
        return self.torch_op(*args, **kwargs) if torch.compiler.is_compiling() else self._run(*args, **kwargs)


def op(*, mutates: tuple[str, ...] = (), fake: Callable | None = None) -> Callable[[Callable], Op]:
    """Make an operator of its reference."""
    return lambda reference: Op(reference, mutates, fake)


def force(name: str | None) -> None:
    """Run everything on one backend from here on; None gives the choice back."""
    global _forced
    if name is not None and name not in ORDER:
        raise ValueError(f"backend must be one of {', '.join(ORDER)}, got {name!r}")
    _forced = name


def forced() -> str | None:
    """The backend that everything runs on, if one was forced. Raises ValueError for a LONGLIVE_BACKEND that is none."""
    if _forced is not None and _forced not in ORDER:
        raise ValueError(f"LONGLIVE_BACKEND must be one of {', '.join(ORDER)}, got {_forced!r}")
    return _forced


@contextlib.contextmanager
def backend(name: str):
    """Run everything inside on one backend; tests and benchmarks compare backends with it."""
    before = _forced
    force(name)
    try:
        yield
    finally:
        force(before)
