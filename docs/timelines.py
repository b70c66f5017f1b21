"""Draw attention-timeline.svg and convolution-timeline.svg: ``python docs/timelines.py``.

The kernels' roles run as coroutines that wait and signal as csrc/attention/ring_attention.cuh and
csrc/conv/causal_conv.cuh do. Products take the tensor cores' cycles (2048 multiply-adds each on a multiprocessor);
softmax, copies and epilogues take what is given below.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Generator, Hashable, Iterable
from pathlib import Path
from typing import NamedTuple

Actor = Generator[float | Hashable, None, None]  # yields cycles to spend, or an event to wait for

COLOURS = {
    "query": "#c8ccd4",
    "key": "#9ec5e8",
    "value": "#a5d6a7",
    "softmax": "#f6c177",
    "rescale": "#e58a7b",
    "epilogue": "#c3a6e0",
}


class Bar(NamedTuple):
    """Work in a lane from ``start`` to ``end``, in cycles."""

    lane: str
    start: float
    end: float
    label: str
    colour: str


class Simulation:
    """Coroutines in time. Resources (tensor cores, TMA) serve in the order of asking."""

    def __init__(self):
        self.now, self.bars = 0.0, []
        self._queue, self._order = [], itertools.count()
        self._happened, self._waiting, self._free = set(), {}, {}

    def start(self, actor: Actor) -> None:
        self._at(self.now, lambda: self._resume(actor))

    def run(self) -> None:
        while self._queue:
            self.now, _, action = heapq.heappop(self._queue)
            action()

    def signal(self, event: Hashable) -> None:
        self._happened.add(event)
        for actor in self._waiting.pop(event, ()):
            self.start(actor)

    def use(self, resource: str, cycles: float, event: Hashable, bar: tuple[str, str, str]) -> None:
        """Ask a resource for cycles: ``event`` is signalled at their end. Does not wait."""
        begin = max(self.now, self._free.get(resource, 0.0))
        self._free[resource] = begin + cycles
        lane, label, colour = bar
        self.bars.append(Bar(lane, begin, begin + cycles, label, colour))
        self._at(begin + cycles, lambda: self.signal(event))

    def spend(self, cycles: float, lane: str, label: str, colour: str) -> float:
        """To be yielded: the actor is busy for so long."""
        self.bars.append(Bar(lane, self.now, self.now + cycles, label, colour))
        return cycles

    def _at(self, time: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (time, next(self._order), action))

    def _resume(self, actor: Actor) -> None:
        wanted = next(actor, None)
        if wanted is None:
            return
        if isinstance(wanted, int | float):
            self._at(self.now + wanted, lambda: self._resume(actor))
        elif wanted in self._happened:
            self.start(actor)
        else:
            self._waiting.setdefault(wanted, []).append(actor)


# ----------------------------------------------------------------------------------------------------------------------
# Attention: two work tiles of five key tiles each

STAGES, TILES, WORK = 4, 5, 2
PRODUCT = 64 * 192 * 128 / 2048  # q k^T, or p v, of one warpgroup
SOFTMAX, RESCALE, STORE, COPY, COPY_QUERY = 1100, 150, 500, 550, 250


def key_use(tile: int) -> int:
    """Which use of the stages a key tile is: K0, K1, V0, K2, V1, ..., as the producer loads them."""
    return max(0, 2 * tile - 1)


def value_use(tile: int) -> int:
    return min(2 * tile + 2, 2 * TILES - 1)


def attention() -> list[Bar]:
    sim, held = Simulation(), {}

    def producer() -> Actor:
        def load(use: int, label: str, colour: str) -> Actor:
            for consumer in (0, 1):
                if use >= STAGES:
                    yield "empty", use - STAGES, consumer
            sim.use("tma", COPY, ("full", use), ("producer: TMA", label, colour))
            held[use] = [label, colour, sim.bars[-1].start]

        for work in range(WORK):
            base = work * 2 * TILES
            yield from load(base + key_use(0), "K0", "key")
            for consumer in (0, 1):
                if work:
                    yield "query empty", work - 1, consumer
                bar = "producer: TMA", "Q", "query"
                sim.use("tma", COPY_QUERY, ("query full", work, consumer), bar)
            for tile in range(TILES):
                if tile + 1 < TILES:
                    yield from load(base + key_use(tile + 1), f"K{tile + 1}", "key")
                yield from load(base + value_use(tile), f"V{tile}", "value")

    def consumer(index: int) -> Actor:
        lane, tensor = f"consumer {index}", f"tensor cores: {index}"

        def release(use: int) -> None:
            sim.signal(("empty", use, index))
            held[use].append(sim.now)

        def issue(what: str, use: int, label: str, colour: str) -> Hashable:
            sim.use("tensor", PRODUCT, (what, use, index), (tensor, label, colour))
            return what, use, index

        for work in range(WORK):
            base, pv = work * 2 * TILES, None
            yield "query full", work, index
            for tile in range(TILES):
                if tile:
                    if pv:
                        yield pv
                        release(base + value_use(tile - 2))
                    yield sim.spend(RESCALE, lane, "", "rescale")
                key = base + key_use(tile)
                yield "full", key
                qk = issue("qk", key, f"q k{tile}", "key")
                if tile:
                    value = base + value_use(tile - 1)
                    yield "full", value
                    pv = issue("pv", value, f"p v{tile - 1}", "value")
                yield qk
                release(key)
                yield sim.spend(SOFTMAX, lane, f"softmax {tile}", "softmax")
            sim.signal(("query empty", work, index))
            yield pv
            release(base + value_use(TILES - 2))
            yield sim.spend(RESCALE, lane, "", "rescale")
            value = base + value_use(TILES - 1)
            yield "full", value
            yield issue("pv", value, f"p v{TILES - 1}", "value")
            release(value)
            yield sim.spend(STORE, lane, "store", "epilogue")

    for actor in (producer(), consumer(0), consumer(1)):
        sim.start(actor)
    sim.run()
    stages = [
        Bar(f"stage {use % STAGES}", start, max(ends), label, colour)
        for use, (label, colour, start, *ends) in held.items()
    ]
    return sim.bars + stages


# ----------------------------------------------------------------------------------------------------------------------
# Convolution: the first of a block of 96 channels, 3x3x3, with norm and SiLU (Config<kCausal, 96, 4>). Each consumer
# has work tiles and a producer of its own

PATCHES, WEIGHTS, TAPS = 3, 8, 9
SLICES, CHUNKS = 3, 3  # frames; 32 channels at a time
STAGE = 8 * 64 * 96 * 16 / 2048  # 4 subtiles, 2 products each
EPILOGUE, COPY_PATCH, COPY_WEIGHT = 23_000, 600, 175


def convolution() -> list[Bar]:
    sim, patches = Simulation(), SLICES * CHUNKS

    def producer(index: int) -> Actor:
        lane = f"producer {index}: TMA"
        for patch in range(WORK * patches):
            if patch >= PATCHES:
                yield "patch empty", patch - PATCHES, index
            sim.use("tma", COPY_PATCH, ("patch full", patch, index), (lane, str(patch % patches), "value"))
            for weight in range(patch * TAPS, (patch + 1) * TAPS):
                if weight >= WEIGHTS:
                    yield "weight empty", weight - WEIGHTS, index
                sim.use("tma", COPY_WEIGHT, ("weight full", weight, index), (lane, "", "query"))

    def consumer(index: int) -> Actor:
        def finished(weight: int) -> Actor:
            yield "done", weight, index
            sim.signal(("weight empty", weight, index))

        if index == 1:
            yield "first multiplied"
        for work in range(WORK):
            first = work * patches
            for patch in range(first, first + patches):
                yield "patch full", patch, index
                for weight in range(patch * TAPS, (patch + 1) * TAPS):
                    yield "weight full", weight, index
                    bar = f"tensor cores: {index}", str(weight % (patches * TAPS)), "key"
                    sim.use("tensor", STAGE, ("done", weight, index), bar)
                    if weight > first * TAPS:  # mma_wait<1>: the products before these have ended
                        yield from finished(weight - 1)
                        if weight == patch * TAPS:
                            sim.signal(("patch empty", patch - 1, index))
            yield from finished(weight)
            sim.signal(("patch empty", patch, index))
            if index == work == 0:
                sim.signal("first multiplied")
            yield sim.spend(EPILOGUE, f"consumer {index}", "epilogue: bias, norm, SiLU, stores", "epilogue")

    for actor in (producer(0), producer(1), consumer(0), consumer(1)):
        sim.start(actor)
    sim.run()
    return sim.bars


# ----------------------------------------------------------------------------------------------------------------------
# Pictures

LEFT, WIDTH, HEIGHT, GAP = 120, 1180, 22, 6


def panel(bars: list[Bar], lanes: Iterable[str], begin: float, end: float, title: str, top: float) -> tuple[str, float]:
    """SVG of the bars within [begin, end), and where it ends."""
    scale, parts = (WIDTH - LEFT - 10) / (end - begin), [_text(10, top + 12, title, weight="bold")]
    y = top + 24
    for lane in lanes:
        parts.append(_text(LEFT - 8, y + 15, lane, anchor="end"))
        parts.append(f'<rect x="{LEFT}" y="{y}" width="{WIDTH - LEFT - 10}" height="{HEIGHT}" fill="#f3f3f3"/>')
        for bar in _joined(
            [bar for bar in bars if bar.lane == lane and bar.end > begin and bar.start < end], 3 / scale
        ):
            x = LEFT + (max(bar.start, begin) - begin) * scale
            width = LEFT + (min(bar.end, end) - begin) * scale - x
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{HEIGHT}" fill="{COLOURS[bar.colour]}" '
                'stroke="#fff" stroke-width="0.7"/>'
            )
            size = 11 if 6.4 * len(bar.label) < width else 9
            if bar.label and max(8, 5.2 * len(bar.label)) < width:
                parts.append(_text(x + width / 2, y + 15, bar.label, anchor="middle", size=size))
        y += HEIGHT + GAP
    axis = f"{(end - begin) / 1000:.1f} thousand cycles"
    parts.append(_text(WIDTH - 10, y + 10, axis, anchor="end", size=11))
    return "\n".join(parts), y + 20


def _joined(bars: list[Bar], gap: float) -> list[Bar]:
    """Bars of a lane; those of one colour that are too thin to be told apart, as one."""
    joined: list[Bar] = []
    for bar in sorted(bars, key=lambda bar: bar.start):
        last = joined[-1] if joined else None
        thin = last and bar.end - bar.start < gap and bar.start - last.end < gap
        if last and thin and last.colour == bar.colour:
            joined[-1] = last._replace(end=bar.end, label="products")
        else:
            joined.append(bar)
    return joined


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 12, weight: str = "normal") -> str:
    style = f'text-anchor="{anchor}" font-size="{size}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{text}</text>'


def picture(*panels: tuple[list[Bar], Iterable[str], float, float, str]) -> str:
    """A whole SVG of panels, one below the other."""
    parts, top = [], 6.0
    for bars, lanes, begin, end, title in panels:
        svg, top = panel(bars, lanes, begin, end, title, top)
        parts.append(svg)
        top += 8
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top:.0f}" font-family="sans-serif">'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{top:.0f}" fill="#fff"/>', *parts, "</svg>", ""])


def pictures() -> dict[str, str]:
    """The pictures by file name."""
    roles = "producer: TMA", "tensor cores: 0", "tensor cores: 1", "consumer 0", "consumer 1"
    stages = tuple(f"stage {i}" for i in range(STAGES))
    bars, conv = attention(), convolution()
    first = min(bar.end for bar in conv if bar.colour == "epilogue")
    title = "One multiprocessor: a work tile of five key tiles, and the next one's beginning"
    whole = "One multiprocessor, 96 channels: two work tiles of each consumer"
    seam = "Where consumer 0 takes its second work tile: stages of weights by number, patches above"
    apart = "producer 0: TMA", "producer 1: TMA", *roles[1:]
    return {
        "attention-timeline.svg": picture((bars, (roles[0], *stages, *roles[1:]), 0, 21_500, title)),
        "convolution-timeline.svg": picture(
            (conv, apart, 0, max(bar.end for bar in conv), whole),
            (conv, apart, first - 6000, first + 6000, seam),
        ),
    }


if __name__ == "__main__":
    for name, svg in pictures().items():
        (Path(__file__).parent / name).write_text(svg)
