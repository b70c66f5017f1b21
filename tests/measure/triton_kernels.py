"""Triton's kernels in 8 bits beside what else there is, turn by turn: ``python tests/measure/triton_kernels.py``.

    triton_kernels.py attention            times, and errors against float64
    triton_kernels.py products
    triton_kernels.py attention --sweep    times of Triton's kernels by tile, warps and stages
    triton_kernels.py products --sweep

A row for each shape and kernel, as a table and with ``--json FILE`` as lines of JSON. All kernels of a shape are
captured first; then they run in turn, a graph of about a millisecond each, so that the card's clocks are the same for
all. Arguments stay where the last call left them, small ones in L2.

``pip install sageattention==1.0.6`` adds SageAttention's Triton kernels: as they are called, with keys smoothed and
queries, keys and values converted each time, and without that. Ours come quantised from the operators before.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import math
import statistics
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from longlive_optimized.engine.timing import percentile
from longlive_optimized.kernels import int8_linear as products
from longlive_optimized.kernels import ring_attention as attention_kernels
from longlive_optimized.kernels.attention import attention
from longlive_optimized.kernels.bench.case import Case
from longlive_optimized.kernels.bench.runner import bench_of, clocks_and_power
from longlive_optimized.kernels.quantize import quantize_groups
from longlive_optimized.kernels.quantize_keys import as_int8, mix
from longlive_optimized.kernels.registry import OPS
from longlive_optimized.kernels.ring_attention import ring_attention, ring_attention_int8
from longlive_optimized.kernels.triton_import import triton

HEADS, DIM = 12, 128
SHAPES = ((4680, 18720), (2160, 8640))
RECIPES = {
    "even": {},
    "uneven channels, offsets": {"uneven": 0.7, "offset": 3.0},
    "eight large channels": {"large": 10.0},
}
Functions = dict[str, Callable[[], object]]


# ----------------------------------------------------------------------------------------------------------------------
# Times


def captured(function: Callable[[], object]) -> tuple[torch.cuda.CUDAGraph, int]:
    """A graph of about a millisecond of calls, and how many these are. The first call, which compiles, is not in it."""
    function()
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    end.record()
    torch.cuda.synchronize()
    calls = math.ceil(1.0 / start.elapsed_time(end))
    graph = torch.cuda.CUDAGraph()
    held: deque = deque(maxlen=2)
    with torch.cuda.graph(graph):
        for _ in range(calls):
            held.append(function())
    return graph, calls


def chosen(functions: Functions, only: str) -> Functions:
    return {name: function for name, function in functions.items() if only in name}


def in_turn(functions: Functions, rounds: int) -> list[dict]:
    """A row for each function: median and 99th percentile of ``rounds`` samples in µs, or why it did not run."""
    graphs, rows = {}, {}
    for name, function in functions.items():
        try:
            graphs[name] = captured(function)
        except Exception as error:  # whatever a compiler or a launch may raise: the others are measured all the same
            rows[name] = {"kernel": name, "failed": str(error).strip().splitlines()[-1][:200]}
    samples = {name: [] for name in graphs}
    for i in range(rounds + 3):
        events = {name: [torch.cuda.Event(enable_timing=True) for _ in range(2)] for name in graphs}
        for name, (graph, _) in graphs.items():
            events[name][0].record()
            graph.replay()
            events[name][1].record()
        torch.cuda.synchronize()
        for name, (start, end) in events.items():
            if i >= 3:
                samples[name].append(start.elapsed_time(end) / graphs[name][1] * 1e3)
    for name, us in samples.items():
        rows[name] = {"kernel": name, "us": round(statistics.median(us), 1), "p99_us": round(percentile(us, 0.99), 1)}
    return [rows[name] for name in functions]


# ----------------------------------------------------------------------------------------------------------------------
# Attention


def draw(rows: int, keys: int, uneven: float = 0.0, offset: float = 0.0, large: float = 1.0) -> tuple[Tensor, ...]:
    """q, k, v in bfloat16, whose logits have deviation 4.

    Channels are e^uneven times the usual size, one way or the other; eight of the keys' ``large`` times; the mean of
    keys is ``offset`` deviations from zero.
    """
    q_gain, k_gain = (uneven * torch.randn(2, HEADS, DIM, device="cuda")).exp()
    k_gain[:, torch.randperm(DIM)[:8]] *= large
    q, k, v = (torch.randn(n, HEADS, DIM, device="cuda") for n in (rows, keys, keys))
    q *= 4 * q_gain / (q_gain * k_gain).square().mean(-1, keepdim=True).sqrt()
    return q.bfloat16(), ((k + offset * torch.randn(HEADS, DIM, device="cuda")) * k_gain).bfloat16(), v.bfloat16()


def in_int8(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """Arguments of ``ring_attention_int8``; the offset is the mean of the first quarter, as in a stream's ring."""
    values, scale = quantize_groups(mix(q.float()).flatten(1), HEADS)
    keys, k_scale = as_int8(k[None], k[: len(k) // 4].float().mean(0))
    return values.view(q.shape), scale, keys, k_scale.flatten(1).contiguous(), v[None], whole(k)


def whole(k: Tensor) -> Tensor:
    return torch.tensor([len(k)], dtype=torch.int32, device=k.device)


def attentions(q: Tensor, k: Tensor, v: Tensor) -> Functions:
    """Everything that can compute it."""
    plain, narrow = (q, k[None], v[None], whole(k)), in_int8(q, k, v)
    functions: Functions = {}
    for name, op, args in (("int8", ring_attention_int8, narrow), ("bfloat16", ring_attention, plain)):
        for backend in ("triton", "cuda"):
            if backend in op.impls and op.impls[backend][1](*args):
                functions[f"{backend}, {name}"] = functools.partial(op.impls[backend][0], *args)
    functions["library, bfloat16"] = lambda: attention(q, k, v)
    return functions | sage(q, k, v)


@functools.cache
def has_sage() -> bool:
    try:
        import sageattention  # noqa: F401
    except ImportError as error:
        print(f"sageattention is left out: {error}")
        return False
    return True


def sage(q: Tensor, k: Tensor, v: Tensor) -> Functions:
    """SageAttention's, if it is installed. It takes the mean from its own copy of the keys, in place."""
    if not has_sage():
        return {}
    from sageattention import sageattn
    from sageattention.attn_qk_int8_per_block import forward
    from sageattention.quant_per_block import per_block_int8

    version = importlib.metadata.version("sageattention")
    q, k, v, own = q[None], k[None], v[None], k[None].clone()
    smooth = k - k.mean(dim=1, keepdim=True)
    q8, q_scale, k8, k_scale = per_block_int8(q, smooth, tensor_layout="NHD")
    half = v.half()
    return {
        f"sageattention {version}": lambda: sageattn(q, own, v, tensor_layout="NHD")[0],
        f"sageattention {version}, quantised before": lambda: forward(
            q8, k8, half, q_scale, k_scale, tensor_layout="NHD", output_dtype=torch.bfloat16
        )[0],
    }


def truth(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """In float64, one head after the other."""
    heads = []
    for head in range(HEADS):
        a, b, c = (x[:, head].double() for x in (q, k, v))
        heads.append((a @ b.T * DIM**-0.5).softmax(-1) @ c)
    return torch.stack(heads, dim=1)


def error_of_spread(got: Tensor, want: Tensor) -> float:
    """Relative to how much the results of a head differ from query to query."""
    return ((got.double() - want).norm() / (want - want.mean(0)).norm()).item()


def measure_attention(rounds: int, only: str) -> Iterator[dict]:
    for rows, keys in SHAPES:
        errors: dict[str, dict[str, float]] = {}
        for recipe, spoiled in RECIPES.items():
            tensors = draw(rows, keys, **spoiled)
            want = truth(*tensors)
            for name, function in chosen(attentions(*tensors), only).items():
                try:
                    errors.setdefault(name, {})[recipe] = float(f"{error_of_spread(function(), want):.3g}")
                except Exception as error:  # as in in_turn, which says so in its row
                    print(f"{name}: {error}")
        for row in in_turn(chosen(attentions(*draw(rows, keys)), only), rounds):
            yield attention_row(rows, keys, row) | {"error": errors.get(row["kernel"])}


def attention_row(rows: int, keys: int, row: dict) -> dict:
    found = {"op": "attention", "shape": f"{rows}x{keys}, {HEADS} heads"} | row
    if "us" in row:
        found["tflop_s"] = round(4 * rows * keys * HEADS * DIM / row["us"] / 1e6, 1)
    return found


# ROWS, KEYS, warps, stages, and perhaps the most registers of a thread.
ATTENTION_TILES = (
    (128, 32, 8, 3, 128), (128, 32, 8, 4, 128), (128, 32, 8, 5, 128), (128, 32, 8, 4), (128, 64, 8, 2, 128),
    (128, 64, 8, 3, 128), (128, 64, 8, 2), (128, 64, 8, 3), (128, 64, 8, 4), (128, 128, 8, 2), (128, 128, 8, 3),
    (128, 32, 4, 4), (64, 64, 4, 2, 168), (64, 64, 4, 3), (64, 32, 4, 4), (256, 32, 16, 3),
)  # fmt: skip


def sweep_attention(rounds: int, only: str) -> Iterator[dict]:
    """Tiles of all kinds. What does not fit into shared memory says so."""
    rows, keys = SHAPES[0]
    q, k, v = draw(rows, keys)
    plain, narrow = (q, k[None], v[None], whole(k)), in_int8(q, k, v)
    functions: Functions = {}
    for size in ATTENTION_TILES:
        tile = attention_kernels._Tile(*size)
        ways = {"bfloat16": (attention_kernels._launch, tile, plain)}
        ways["int8"] = (attention_kernels._launch_int8, tile, narrow)
        if size in ((128, 64, 8, 3), (128, 32, 8, 4, 128)):
            ways["int8, half"] = (attention_kernels._launch_int8, tile._replace(half=True), narrow)
            ways["int8, bits"] = (attention_kernels._launch_int8, tile._replace(bits=True), narrow)
        for kind, (launch, kind_tile, args) in ways.items():
            functions[f"{kind}: {size}"] = functools.partial(launch, kind_tile, *args)
    for row in in_turn(chosen(dict(sorted(functions.items())), only), rounds):
        yield attention_row(rows, keys, row)


# ----------------------------------------------------------------------------------------------------------------------
# Products


def measure_products(rounds: int, only: str) -> Iterator[dict]:
    """Of the benchmarks' sizes, beside what these compare them with."""
    for name in ("int8_linear", "int8_linear_gelu"):
        bench = bench_of(name)
        for case in bench.real:
            args = case.make("cuda")
            backends = {backend: OPS[name].impls[backend] for backend in ("triton", "cuda")}
            runners = {backend: function for backend, (function, takes) in backends.items() if takes(*args)}
            runners |= bench.peers()
            functions = {runner: functools.partial(function, *args) for runner, function in runners.items()}
            for row in in_turn(chosen(functions, only), rounds):
                yield product_row(name, case, row)


def product_row(name: str, case: Case, row: dict) -> dict:
    found = {"op": name, "shape": case.shape} | row
    if "us" in row:
        found["tflop_s"] = round(case.flops / row["us"] / 1e6, 1)
    return found


# ROWS, BLOCK, STEP, warps, stages, and perhaps the most registers of a thread.
PRODUCT_TILES = (
    (128, 128, 64, 8, 4), (128, 128, 64, 8, 4, 128), (128, 128, 128, 8, 3), (128, 128, 128, 8, 3, 128),
    (128, 128, 128, 8, 4), (128, 128, 256, 8, 2), (128, 256, 128, 8, 3), (128, 256, 128, 8, 4), (128, 256, 64, 8, 4),
    (128, 256, 128, 16, 3), (256, 128, 128, 8, 3), (64, 256, 64, 8, 4), (64, 256, 128, 8, 3), (64, 128, 128, 4, 3),
)  # fmt: skip


# The same for those that copy by TMA, of Hopper's generation and later; a group is a step, or the only one.
COPIED_TILES = (
    (128, 128, 128, 8, 3, 128), (128, 128, 128, 8, 3), (128, 128, 256, 8, 3), (128, 256, 128, 8, 3),
    (128, 256, 128, 8, 4), (64, 128, 256, 4, 2), (64, 256, 64, 4, 4), (256, 128, 128, 8, 4),
)  # fmt: skip


def product_tiles(x: Tensor, x_scale: Tensor) -> Iterator[tuple[str, products._Tile]]:
    for size in PRODUCT_TILES:
        yield str(size), products._Tile(*size)
    for size in COPIED_TILES if torch.cuda.get_device_capability(x.device)[0] >= 9 else ():
        tile = products._Tile(*size, copied=True)
        if len(x_scale) == 1 or tile.STEP * len(x_scale) == x.shape[1]:
            yield f"{size}, copied", tile


def sweep_products(rounds: int, only: str) -> Iterator[dict]:
    for name, launch in (("int8_linear", products._launch), ("int8_linear_gelu", products._launch_gelu)):
        for case in bench_of(name).real:
            args = case.make("cuda")
            tiles = [t for t in product_tiles(*args[:2]) if name == "int8_linear" or t[1].BLOCK == products.GELU_GROUP]
            functions = {size: functools.partial(launch, tile, *args) for size, tile in tiles}
            for row in in_turn(chosen(functions, only), rounds):
                yield product_row(name, case, row)


# ----------------------------------------------------------------------------------------------------------------------


def show(row: dict) -> None:
    times = f"{row['us']:8.1f} ({row['p99_us']:.1f})" if "us" in row else row["failed"]
    rate = f"{row['tflop_s']:7.1f}" if "tflop_s" in row else ""
    errors = ", ".join(f"{name} {value:.2%}" for name, value in (row.get("error") or {}).items())
    print(f"{row['shape']:24} {row['kernel']:44} {times:20} {rate}  {errors}", flush=True)


WHAT = {
    ("attention", False): measure_attention,
    ("attention", True): sweep_attention,
    ("products", False): measure_products,
    ("products", True): sweep_products,
}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=sorted({what for what, _ in WHAT}))
    parser.add_argument("--sweep", action="store_true", help="try tiles, warps and stages")
    parser.add_argument("--only", default="", metavar="TEXT", help="kernels whose name has this in it")
    parser.add_argument("--rounds", type=int, default=100, help="samples of each kernel")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if not torch.cuda.is_available() or triton is None:
        parser.error("this needs Triton and a CUDA GPU")
    torch.manual_seed(0)
    machine = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__}
    print(machine | {"clocks": clocks_and_power()})
    rows = []
    for row in WHAT[given.what, given.sweep](given.rounds, given.only):
        show(row)
        rows.append(row | machine)
    print(clocks_and_power())
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
