"""Write docs/triton.md: what each Triton kernel takes on each generation of GPUs, compiled without one.

python tests/measure/triton_table.py

Calls are those of the benchmarks at 480x832 and 320x576. Some minutes. Ends with status 1 where a kernel does not fit.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import partial
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
os.environ["TRITON_INTERPRET"] = "0"

import triton  # noqa: E402

from longlive_optimized.kernels.bench.runner import bench_of, known  # noqa: E402
from longlive_optimized.kernels.registry import OPS  # noqa: E402
from support.triton_builds import SHARED, Build, builds  # noqa: E402

CHIPS = {80: "A100", 86: "RTX 30, A10", 89: "RTX 40, L4", 90: "H100, H200", 100: "B200", 120: "RTX 50"}
WORDS = """# What Triton's kernels take

Written by `python tests/measure/triton_table.py` with Triton {version}: every Triton kernel of `kernels/`, compiled for
each generation of GPUs as the operators launch it in the benchmarks at 480×832 and 320×576. It needs no GPU, and times
nothing.

A cell is shared memory in KiB, registers of a thread and, where there is any, local memory of a thread in bytes (what
was spilled, or is indexed). A program may have {limits} KiB of shared memory. A
multiprocessor has 65536 registers: a program takes 32 times its warps times the registers of a thread. A row stands for
all calls that compile to the same; *call* is the first of them.

{table}

{verdict}
"""


class Row:
    """A kernel of a call: its builds by chip."""

    def __init__(self, operator: str, call: str, found: dict[int, Build]):
        self.operator, self.call, self.found = operator, call, found

    @property
    def key(self) -> tuple:
        """What rows that say the same have in common."""
        return self.operator, *(build[:-1] for build in self.found.values())

    def misfits(self) -> list[str]:
        over = [chip for chip, build in self.found.items() if build.shared > SHARED[chip]]
        return [f"{self.operator} ({self.call}) takes {_kib(self.found[c].shared)} KiB on sm_{c}" for c in over]

    def __str__(self) -> str:
        first = next(iter(self.found.values()))
        warps = "/".join(dict.fromkeys(str(build.warps) for build in self.found.values()))
        kernel = first.kernel.rpartition(".")[2]
        cells = [self.operator, self.call, kernel, warps, *(_cell(self.found.get(chip)) for chip in CHIPS)]
        return f"| {' | '.join(cells)} |"


def _kib(size: int) -> str:
    return f"{size / 1024:.1f}".removesuffix(".0")


def _cell(build: Build | None) -> str:
    if build is None:
        return ""
    local = f" · {build.local}" if build.local else ""
    return f"{_kib(build.shared)} · {build.registers}{local}"


def rows() -> Iterator[Row]:
    """Of all operators that have a Triton kernel; each that says something new, once."""
    seen = set()
    for name in known():
        bench = bench_of(name)
        if "triton" not in OPS[name].impls:
            continue
        implementation = OPS[name].impls["triton"][0]
        for case in bench.real:
            args = case.make("meta")
            launched = {chip: builds(partial(implementation, *args), chip) for chip in CHIPS}
            for together in zip_longest(*launched.values()):  # some chips' last kernels are not launched on others
                row = Row(name, case.shape, {chip: build for chip, build in zip(CHIPS, together, strict=True) if build})
                if row.key not in seen:
                    seen.add(row.key)
                    yield row
        print(name, flush=True)


def main() -> int:
    found = list(rows())
    misfits = [text for row in found for text in row.misfits()]
    heads = ["operator", "call", "kernel", "warps", *(f"sm_{chip}: {names}" for chip, names in CHIPS.items())]
    table = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *map(str, found)]
    limits = ", ".join(f"{SHARED[chip] // 1024} (sm_{chip})" for chip in CHIPS)
    verdict = "  \n".join(misfits) if misfits else "All of them fit."
    text = WORDS.format(version=triton.__version__, limits=limits, table="\n".join(table), verdict=verdict)
    (ROOT / "docs/triton.md").write_text(text)
    return len(misfits) > 0


if __name__ == "__main__":
    sys.exit(main())
