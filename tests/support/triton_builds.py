"""What a GPU of each generation would compile for a call of Triton's kernels, found without one.

A call with tensors of the device ``meta`` goes as far as the launch. From there Triton's own code says what it would
compile: signature, constants and alignments; the compiler then runs for another chip. Only for a process whose kernels
are not interpreted ones.
"""

from __future__ import annotations

import contextlib
import functools
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest.mock import patch

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.compiler import compile as compile_for
from triton.runtime.jit import JITFunction, create_function_from_signature

# Bytes of shared memory that a program may have, by compute capability.
SHARED = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}


class Build(NamedTuple):
    """A kernel as a chip would run it: bytes of shared memory, registers of a thread, bytes of its local memory."""

    kernel: str
    warps: int
    shared: int
    registers: int
    local: int
    ptx: str


def builds(call: Callable[[], object], capability: int) -> list[Build]:
    """Of each kernel that ``call`` launches, in their order."""
    found: list[Build] = []

    def run(self: JITFunction, *args: Any, grid: object, warmup: bool, **options: Any) -> None:
        found.append(_build(*_what_to_compile(self, args, options, capability), capability))

    with patch.object(JITFunction, "run", run), _chip(capability):
        call()
    return found


@contextlib.contextmanager
def _chip(capability: int) -> Iterator[None]:
    """Tiles are those of this chip."""
    said = {
        "causal_conv_triton.shared_memory": SHARED[capability],
        "conv_pixels.shared_memory": SHARED[capability],
        "int8_linear.generation": divmod(capability, 10),
        "ring_attention.generation": divmod(capability, 10),
    }
    with contextlib.ExitStack() as stack:
        for name, answer in said.items():
            stack.enter_context(patch(f"longlive_optimized.kernels.{name}", lambda device, answer=answer: answer))
        yield


def _what_to_compile(kernel: JITFunction, args: tuple, options: dict, capability: int) -> tuple[ASTSource, dict]:
    backend = make_backend(GPUTarget("cuda", capability, 32))
    options |= {"debug": False}
    bound, specialization, rest = create_function_from_signature(kernel.signature, kernel.params, backend)(
        *args, **options
    )
    chosen, signature, constants, attributes = kernel._pack_args(backend, options, bound, specialization, rest)
    return ASTSource(kernel, signature, constants, attributes), chosen.__dict__


def _build(source: ASTSource, options: dict, capability: int) -> Build:
    compiled = compile_for(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, local = _usage(compiled.asm["cubin"])
    name = source.fn.__module__.rpartition(".")[2] + "." + source.fn.__name__.strip("_")
    return Build(name, compiled.metadata.num_warps, compiled.metadata.shared, registers, local, compiled.asm["ptx"])


@functools.cache
def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes of its local memory."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"\b{word}:(\d+)", said)[1]) for word in ("REG", "STACK", "LOCAL"))
    return registers, stack + local
