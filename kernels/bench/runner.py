"""The protocol of every microbenchmark.

Random inputs. The arguments rotate among enough copies to exceed twice the L2 cache, so that each call finds its inputs
in memory. About a millisecond of calls is captured as one CUDA graph, so that launches cost nothing; a sample is one
replay over its number of calls, timed by events. The ceilings (a large copy, a large matrix product) are measured in
the same run, and a row's share is the time that they allow over the time it took. Clocks are read before and after,
never set.
"""

from __future__ import annotations

import itertools
import json
import math
import pkgutil
import statistics
import subprocess
import time
from collections import deque
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from ..registry import OPS, ORDER
from .case import Bench, Case

SAMPLES = 200
_NO_OPERATORS = ("__main__", "case", "paths", "runner")
Ceilings = tuple[float, float]  # bytes a second, FLOP a second


def run(names: list[str] | None = None, json_path: str | None = None) -> list[dict]:
    """Measure the named operators, or all: one dict per case and backend; a table, and JSON lines at ``json_path``.

    Raises ValueError for an operator that has no benchmark. Without a CUDA device the reference is timed on the CPU.
    """
    operators = known()
    for name in names or ():
        if name not in operators:
            raise ValueError(f"names must be among {', '.join(operators)}, got {name!r}")
    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 140  # a log file has no width of its own
    if torch.cuda.is_available():
        clocks, ceilings = clocks_and_power(), measure_ceilings()
        rows = [row for name in names or operators for row in _on_gpu(name, ceilings)]
        machine = {
            "device": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "copy_gb_s": ceilings[0] / 1e9,
            "matmul_tflop_s": ceilings[1] / 1e12,
            "clocks_before": clocks,
            "clocks_after": clocks_and_power(),
        }
    else:
        console.print("no CUDA device: times are of the CPU reference", style="yellow")
        rows = [row for name in names or operators for row in _on_cpu(name)]
        machine = {"device": "cpu", "torch": torch.__version__}
    rows = [row | machine for row in rows]
    for key, value in machine.items():
        console.print(f"{key}: {value:.4g}" if isinstance(value, float) else f"{key}: {value}", highlight=False)
    console.print(_table(rows))
    if json_path:
        Path(json_path).parent.mkdir(parents=True, exist_ok=True)
        Path(json_path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def known() -> list[str]:
    """The operators that have a benchmark: all."""
    package = import_module(__name__.rpartition(".")[0])
    return [m.name for m in pkgutil.iter_modules(package.__path__) if m.name not in _NO_OPERATORS]


def bench_of(name: str) -> Bench:
    """An operator's cases; the operator is loaded: by its cases, where it is in the file of another."""
    bench = import_module(f"..{name}", __name__).BENCH
    if name not in OPS:
        import_module(f"...{name}", __name__)
    return bench


def _load(name: str) -> tuple[Bench, dict[str, Callable]]:
    """The operator's cases, and whatever can run them: its backends, other libraries, the published baseline."""
    bench, impls = bench_of(name), OPS[name].impls
    runners = {b: impls[b][0] for b in ORDER if b in impls}
    return bench, runners | bench.peers() | ({"published": bench.published} if bench.published else {})


def _on_gpu(name: str, ceilings: Ceilings) -> list[dict]:
    bench, runners = _load(name)
    rows = []
    for case in bench.real:
        sets = sets_of(case)
        for backend, function in runners.items():
            if backend == "reference" and not bench.time_reference:
                continue
            if backend not in OPS[name].impls or OPS[name].impls[backend][1](*sets[0]):
                rows.append(_row(name, case, backend, time_on_gpu(function, sets), ceilings))
    return rows


def sets_of(case: Case) -> list[tuple]:
    """Arguments on the GPU, in so many copies that a call finds none of its own in L2."""
    l2 = torch.cuda.get_device_properties().L2_cache_size
    copies = min(2 + 2 * l2 // case.bytes, 128)  # what moves a few kilobytes is bound by its launch
    return [case.make("cuda") for _ in range(copies)]


def _on_cpu(name: str) -> list[dict]:
    bench, runners = _load(name)
    chosen = {b: f for b, f in runners.items() if b in ("reference", "published")}
    return [_row(name, c, b, time_on_cpu(f, c.make("cpu")), None) for c in bench.small for b, f in chosen.items()]


def _row(name: str, case: Case, backend: str, seconds: list[float], ceilings: Ceilings | None) -> dict:
    median = statistics.median(seconds)
    quantiles = statistics.quantiles(seconds, n=100, method="inclusive")
    row = {"op": name, "shape": case.shape, "dtype": str(case.dtype).removeprefix("torch."), "backend": backend}
    row |= {"us": median * 1e6} | {f"p{p}_us": quantiles[p - 1] * 1e6 for p in (10, 90, 99)}
    row |= {"bytes": case.bytes, "gb_s": case.bytes / median / 1e9}
    row |= {"flops": case.flops, "tflop_s": case.flops / median / 1e12}
    if ceilings:
        floor = max(case.bytes / ceilings[0], case.flops / ceilings[1])
        row["share_of_ceiling"] = floor / median
    return row


@torch.no_grad()
def time_on_gpu(
    function: Callable, sets: list[tuple], samples: int = SAMPLES, at_most: float = math.inf
) -> list[float]:
    """Seconds per call, ``samples`` times: fewer, but 3, if they would take more than ``at_most`` seconds in all."""
    for arguments in sets[:3]:  # also compiles, and fills the allocator
        function(*arguments)
    torch.cuda.synchronize()
    once = _timed(lambda: [function(*a) for a in sets]) / len(sets)
    calls = len(sets) * math.ceil(1e-3 / once / len(sets))
    samples = max(3, int(min(samples, at_most / (once * calls))))
    graph = torch.cuda.CUDAGraph()
    results = deque(maxlen=len(sets))  # held for a while, so that results rotate through memory as well
    with torch.cuda.graph(graph):
        for i in range(calls):
            results.append(function(*sets[i % len(sets)]))
    for _ in range(5):
        graph.replay()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(samples + 1)]
    events[0].record()
    for event in events[1:]:
        graph.replay()
        event.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1e3 / calls for a, b in itertools.pairwise(events)]


def _timed(function: Callable) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


@torch.no_grad()
def time_on_cpu(function: Callable, arguments: tuple, samples: int = 20) -> list[float]:
    """Seconds per call, ``samples`` times, after three calls."""
    seconds = []
    for _ in range(samples + 3):
        started = time.perf_counter()
        function(*arguments)
        seconds.append(time.perf_counter() - started)
    return seconds[3:]


def measure_ceilings() -> Ceilings:
    """What this card does at best, now: 2 GiB read and as much written; a bfloat16 product of 8192 cubed."""
    source = torch.randn(2**29, device="cuda")
    # Negation, not copy_: a copy captured in a graph goes to the copy engines, which are slower than the processors.
    copy = statistics.median(time_on_gpu(lambda a, b: torch.neg(a, out=b), [(source, torch.empty_like(source))], 20))
    n = 8192
    a, b = (torch.randn(n, n, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    product = statistics.median(time_on_gpu(torch.mm, [(a, b)], 20))
    return 2 * source.nbytes / copy, 2 * n**3 / product


def clocks_and_power() -> str:
    """The current GPU's clocks, temperature and power, as nvidia-smi says them now, or why they were not read."""
    query = "clocks.sm,clocks.mem,temperature.gpu,power.draw"
    command = ["nvidia-smi", f"--id={torch.cuda.current_device()}", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"not read: {error}"


def _table(rows: list[dict]) -> Table:
    table = Table(title="operators; baseline: the published order of operations", title_justify="left")
    for column in ("operator", "shape", "dtype", "backend"):
        table.add_column(column)
    for column in ("µs", "p10", "p90", "p99", "GB/s", "TFLOP/s", "of ceiling", "× baseline"):
        table.add_column(column, justify="right")
    for row in rows:
        base = next((r["us"] for r in rows if _same_case(r, row) and r["backend"] == "published"), None)
        table.add_row(
            *(row[key] for key in ("op", "shape", "dtype", "backend")),
            *(f"{row[key]:.1f}" for key in ("us", "p10_us", "p90_us", "p99_us")),
            f"{row['gb_s']:.0f}",
            f"{row['tflop_s']:.0f}" if row["flops"] else "",
            f"{row['share_of_ceiling']:.0%}" if "share_of_ceiling" in row else "",
            f"{base / row['us']:.2f}" if base else "",
        )
    return table


def _same_case(a: dict, b: dict) -> bool:
    return all(a[key] == b[key] for key in ("op", "shape", "dtype"))
