"""What a card will do: the table of README, written by ``python tests/measure/requirements.py``.

*Measured* is what docs/measurements holds. *Expected* is the estimate of ``doctor --speed``, whose rates are not
measured there but taken from a data sheet (cards.json): from the share of them that the same kernels reach on an H200,
to ``BEST`` of them, where a card keeps up with its data sheet better than an H200 does. Memory is the memory plan's, by
the shapes of LongLive-1.3B and umT5-XXL: what it chooses on a card of which the system has taken its part.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from longlive_optimized.bench.estimate import Rates, frames_per_second
from longlive_optimized.config import OptimizationConfig
from longlive_optimized.engine import memory_outline as outlining
from longlive_optimized.engine import memory_plan as planning
from longlive_optimized.engine.memory_shares import GIB, Asked, MemoryPlan
from longlive_optimized.kernels import native
from longlive_optimized.model.config import ModelConfig
from longlive_optimized.text.encoder import Dimensions, checkpoint_shapes
from longlive_optimized.text.footprint import footprint
from longlive_optimized.vae.wan.model import WanVae
from longlive_optimized.weights.locate import locate
from measure.report import newest, runs, table

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- written by tests/measure/requirements.py -->\n", "<!-- end -->\n"
PRESETS = ("balanced", "speed", "ultra")
SIZE = (480, 832)
BEST = 0.8  # of a data sheet's rate
UMT5_XXL = Dimensions(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_heads=64, num_layers=24)
SHORTER = {  # what a plan costs, in a cell
    "the text encoder's weights in int8": "text encoder in int8",
    "the text encoder parked": "parked in host memory",
    "int8 weights alone": "int8 weights alone",
    "the VAE takes one latent frame": "VAE in parts",
    "prompts encoded by the CPU": "text encoder on the CPU",
}


def requirements() -> str:
    """README's table."""
    columns = {"card": "card", "memory": "memory", "runs on": "kernels", "as `speed` it fits with": "fits"}
    columns |= {f"`{preset}`": preset for preset in PRESETS}
    return table(columns | {"frames/s are": "how"}, [*measured(), *expected(), built_in()])


def cards() -> dict:
    return json.loads((Path(__file__).parent / "cards.json").read_text())


def measured() -> list[dict]:
    """What was run: an H200 on both kinds of kernels."""
    card = {"card": "H200", "memory": "141 GB", "fits": "everything on the GPU", "how": "measured"}
    found = newest(["presets"], lambda row: (row["preset"], row["size"]), "presets")
    size = "×".join(map(str, SIZE))
    ours = {name: f"{found[name, size][0]['fps']:.0f}" for name in PRESETS}
    blocks = {"balanced": runs("triton-block")[-1]["rows"][0]["block_ms"]}
    blocks["speed"] = runs("triton-speed")[-1]["rows"][-1]["block_ms"]["median"]
    triton = {name: f"{12e3 / ms:.0f}" for name, ms in blocks.items()}
    return [card | {"kernels": "CUDA"} | ours, card | {"kernels": "Triton"} | triton]


def expected() -> Iterator[dict]:
    known = cards()
    for card in known["cards"]:
        row = {"card": card["name"], "memory": f"{card['memory_gib']} GB", "how": "expected"}
        row["kernels"] = {"cuda": "CUDA", "triton": "Triton"}[card["kernels"]]
        row |= {"fits": fits(card["memory_gib"])}
        for preset in PRESETS:
            low, high = frames(card, preset, known)
            row[preset] = f"{low:.0f} to {high:.0f}" if f"{low:.0f}" != f"{high:.0f}" else f"{low:.0f}"
        yield row


def built_in() -> dict:
    """The built-in model on a CPU."""
    rates = [row["fps"] for run in runs("demo") for row in run["rows"]]
    speed = f"{min(rates):.0f} to {max(rates):.0f}, the built-in model alone"
    row = {"card": "none: two CPU cores", "memory": "", "kernels": "torch", "fits": "", "how": "measured"}
    return row | {"balanced": speed}


def frames(card: dict, preset: str, known: dict) -> tuple[float, float]:
    """Frames a second, from and to. On Hopper the kernels' shares are known, so both are the same."""
    shares = known["h200_kernels"][card["kernels"]]
    reached = {name: peak(card, name) * rate / peak(known["h200"], name) for name, rate in shares.items()}
    best = {name: max(rate, BEST * peak(card, name)) for name, rate in reached.items()}
    both = (reached, reached if card["kernels"] == "cuda" else best)
    return tuple(frames_per_second(Rates(**{k: v * unit(k) for k, v in rates.items()}), preset, True) for rates in both)


def unit(name: str) -> float:
    return 1e9 if name == "copy" else 1e12


def peak(card: dict, name: str) -> float:
    """A data sheet's rate for what runs: attention's first product is in int8, its second in half precision."""
    if name == "attention_int8":
        return 2 / (1 / card["int8"] + 1 / card["fp16"])
    return card["gb_s" if name == "copy" else "int8" if name.endswith("int8") else "bf16"]


@functools.cache
def fits(memory_gib: float) -> str:
    """What the memory plan chooses for ``speed`` on a card of which the system has taken a half or a 25th."""
    plan = plan_on(memory_gib - max(0.5, memory_gib / 25))
    said = [text for cost in plan.costs for beginning, text in SHORTER.items() if cost.startswith(beginning)]
    assert len(said) == len(plan.costs), plan.costs
    room = f"{plan.peak / GIB:.1f} GiB"
    return f"{', '.join(said) or 'everything on the GPU'}: {room}" if plan.fits else f"not: it takes {room}"


@functools.cache
def plan_on(gib: float) -> MemoryPlan:
    """The memory plan of LongLive-1.3B beside umT5-XXL, as ``speed``, on a GPU that is not here, of so many GiB."""
    shapes, vae = checkpoint_shapes(UMT5_XXL), WanVae(device="meta")

    def text(files, device, dtype, precision, residence):
        return footprint(shapes, "bf16" if precision == "auto" else precision, residence, dtype)

    there = (
        (outlining, "outline", lambda files: (ModelConfig(), vae)),
        (outlining, "text_footprint", text),
        (planning, "available_on", lambda device, limit: int(gib * GIB)),
        (native, "missing", lambda device: None),
    )
    with ExitStack() as stack:
        for owner, name, value in there:
            stack.enter_context(mock.patch.object(owner, name, value))
        config = OptimizationConfig.preset("speed").sized(SIZE)
        return planning.plan_for(Asked(locate("tiny"), config, torch.device("cuda", 0)))


def placed(text: str) -> str:
    """``text`` of README with the table as it is now."""
    before, _, rest = text.partition(BEGIN)
    assert END in rest, "README has lost the marks between which the table stands"
    return before + BEGIN + requirements() + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    README.write_text(placed(README.read_text()))
