"""The latency overlay: a small panel of figures, blended into frames on the device they are on."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Mapping
from itertools import islice
from typing import Annotated, Any, NamedTuple, Unpack

import numpy as np
import torch
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs
from torch import Tensor

from ...config import read_keywords
from ...engine.latency import LatencyStats
from ...kernels.overlay_blend import DTYPES, overlay_blend
from ...keywords import OverlayFields, Position
from .panel import ERROR, GOOD, SMALLEST, WARNING, WHITE, Bar, Colour, Figure, Panel

LABELS = ("Latency", "Mean", "P99", "Max", "FPS", "Frame")
OPTIMIZATIONS = {
    "cuda_graphs_active": "CUDA graphs",
    "torch_compile_active": "torch.compile",
    "static_kv_active": "Static KV",
    "async_vae_active": "Async VAE",
}
MEASURED = ("current_ms", "mean_ms", "p99_ms", "max_ms", "fps", "frame_count")
BAR_LEVELS = 64  # heights that a bar may have: an unseen difference makes no new panel
LARGEST = 55  # pixels of text; its large figure is then as large as the glyphs are stored

Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(config=ConfigDict(extra="forbid", strict=True), kw_only=True, frozen=True)
class OverlayConfig:
    """How the panel looks. Raises pydantic's ValidationError, a ValueError, naming the field and what was wanted.

    position: the corner it stands in.
    opacity: of the whole panel, 0 to 1; its ground lets the picture through beside that.
    show_latency_graph: bars of the last ``graph_history`` frames' latencies, the worst of those that share a bar.
    show_optimizations: what is active, and the precision.
    latency_warning_ms, latency_error_ms: from these on, a pixel frame's latency is drawn yellow, red.
    margin: distance from the picture's edges, as a share of its shorter side.
    scale: of the text, which otherwise follows the size of the picture.
    """

    position: Position = "top-right"
    opacity: Annotated[float, Field(ge=0, le=1)] = 0.8
    show_latency_graph: bool = True
    show_optimizations: bool = True
    graph_history: Annotated[int, Field(ge=1, le=10_000)] = 120
    latency_warning_ms: Milliseconds = 35.0
    latency_error_ms: Milliseconds = 40.0
    margin: Annotated[float, Field(ge=0, le=0.5)] = 0.025
    scale: Annotated[float, Field(ge=0.25, le=4)] = 1.0

    @model_validator(mode="before")
    @classmethod
    def _keywords(cls, given: ArgsKwargs) -> ArgsKwargs:
        return read_keywords(cls, given)

    @model_validator(mode="after")
    def _error_is_above_warning(self):
        if self.latency_error_ms < self.latency_warning_ms:
            wanted = f"latency_warning_ms = {self.latency_warning_ms}"
            raise ValueError(f"latency_error_ms must be at least {wanted}, got {self.latency_error_ms}")
        return self


class _Shown(NamedTuple):
    """All that a panel depends on: as long as it is the same, so is the panel."""

    size: tuple[int, int]  # of the frames
    figures: tuple[Figure, ...]
    bars: tuple[Bar, ...]
    optimizations: tuple[str, ...]
    precision: str


class LatencyOverlay:
    """Draws latency, its distribution, the frame rate and what is active into frames, in place, on their device.

    The host rasterises the panel, when it has changed, and sends it by one asynchronous copy; a whole block is blended
    by one launch. The caller's stream is never waited for. One thread may draw at a time; any may reset.
    """

    def __init__(self, config: OverlayConfig | None = None):
        if not isinstance(config, OverlayConfig | None):
            raise TypeError(f"config must be an OverlayConfig or None, got {type(config).__name__}")
        self.config = config or OverlayConfig()
        self._history: deque[float] = deque(maxlen=self.config.graph_history)
        self._layout: tuple[tuple, Panel] | None = None
        self._sent: tuple[tuple, Tensor] | None = None

    def reset(self) -> None:
        """Forget the latencies that the graph shows."""
        self._history.clear()

    @torch.inference_mode()  # so that frames made in it can be written to
    def apply(self, frame: Tensor, stats: LatencyStats | Mapping) -> Tensor:
        """Draw over ``frame`` IN PLACE and return it; pass a clone to keep the original.

        frame: [3, H, W], [H, W, 3] (taken to be that when both ends are 3) or a block [T, H, W, 3]; any strides; uint8
        in 0..255, or float16, bfloat16 or float32 in 0..1. Each of its frames counts as one in the graph.
        stats: LatencyStats or a dict of its fields; others are ignored, missing ones have LatencyStats' defaults. What
        is not a finite number is shown as "-". A panel larger than the frame is cropped.
        Raises ValueError or TypeError naming ``frame`` or ``stats``; nothing has been drawn or counted then.
        """
        frames, stats = frames_of(frame), _as_stats(stats)
        count, height, width, _ = frames.shape
        latency = _finite(stats.current_ms)
        if latency is not None and latency > 0:
            self._history.extend([latency] * count)
        panel = self._panel_on(frames.device, self._shown(height, width, stats))
        y, x = self._corner(panel.shape[0], panel.shape[1], height, width)
        overlay_blend(frames, panel, y, x)
        return frame

    def _shown(self, height: int, width: int, stats: LatencyStats) -> _Shown:
        listed = self.config.show_optimizations
        names = tuple(name for field, name in OPTIMIZATIONS.items() if listed and getattr(stats, field))
        precision = str(stats.precision or "") if listed else ""
        shown = _Shown((height, width), tuple(self._figure(stats, field) for field in MEASURED), (), names, precision)
        return shown._replace(bars=self._bars(self._panel(shown).bars))

    def _figure(self, stats: LatencyStats, field: str) -> Figure:
        value = _finite(getattr(stats, field))
        if not field.endswith("_ms"):
            return Figure(_written(value, decimals=field == "fps"))
        colour = self._colour(value) if value is not None else WHITE
        if colour == GOOD and field != "current_ms":
            colour = WHITE  # one accent is enough
        return Figure(_written(value), "ms", colour)

    def _colour(self, milliseconds: float) -> Colour:
        if milliseconds >= self.config.latency_error_ms:
            return ERROR
        return WARNING if milliseconds >= self.config.latency_warning_ms else GOOD

    def _bars(self, places: int) -> tuple[Bar, ...]:
        """The history as at most ``places`` bars, newest last; each shows the worst of the frames that share it."""
        frames = list(self._history)  # a copy, as another thread may reset
        if not places or not frames:
            return ()
        span = max(1.0, self.config.graph_history / places)  # frames to a bar
        newest_first, worst, start = reversed(frames), [], 0
        while group := list(islice(newest_first, round((len(worst) + 1) * span) - start)):
            start += len(group)
            worst.append(max(group))
        # From zero to the worst, but at least to the warning: a quiet graph is low. A stall must not flatten all else.
        full = min(max(*worst, self.config.latency_warning_ms), 2 * self.config.latency_error_ms)
        steps = (min(math.ceil(BAR_LEVELS * v / full), BAR_LEVELS) for v in worst)
        bars = [Bar(step / BAR_LEVELS, self._colour(v)) for step, v in zip(steps, worst, strict=True)]
        return tuple(reversed(bars))

    def _panel(self, shown: _Shown) -> Panel:
        """The layout for this size and list; smaller than usual where the usual one does not fit."""
        key = shown.size, shown.optimizations, shown.precision
        if self._layout is None or self._layout[0] != key:
            height, width = shown.size
            for size in range(min(text_size(height, width, self.config.scale), LARGEST), SMALLEST - 1, -1):
                panel = Panel(size, LABELS, shown.optimizations, shown.precision, self.config.show_latency_graph)
                if panel.height <= height and panel.width <= width:
                    break
            self._layout = key, panel
        return self._layout[1]

    def _panel_on(self, device: torch.device, shown: _Shown) -> Tensor:
        """The drawn panel on ``device``, ready for use on its current stream."""
        key = shown, device, torch.cuda.current_stream(device) if device.type == "cuda" else None
        if self._sent is None or self._sent[0] != key:
            rgba = self._panel(shown).draw(shown.figures, shown.bars)
            rgba = np.ascontiguousarray(rgba[: shown.size[0], : shown.size[1]])
            rgba[..., 3] = np.rint(np.arange(256) * self.config.opacity).astype(np.uint8)[rgba[..., 3]]
            self._sent = key, to_device(rgba, device)
        return self._sent[1]

    def _corner(self, rows: int, columns: int, height: int, width: int) -> tuple[int, int]:
        margin = round(self.config.margin * min(height, width))
        vertical, horizontal = self.config.position.split("-")
        y, x = (min(margin, spare) for spare in (height - rows, width - columns))
        return y if vertical == "top" else height - rows - y, x if horizontal == "left" else width - columns - x


def create_latency_overlay(position: Position = "top-right", **fields: Unpack[OverlayFields]) -> LatencyOverlay:
    """A LatencyOverlay at ``position``; ``fields`` are OverlayConfig's. Raises ValueError naming a bad one."""
    return LatencyOverlay(OverlayConfig(position=position, **fields))


def text_size(height: int, width: int, scale: float = 1.0) -> int:
    """Pixels of text for a picture of that size."""
    return max(SMALLEST, round(scale * (3.6 + 0.0205 * min(height, 0.75 * width))))


def to_device(rgba: np.ndarray, device: torch.device) -> Tensor:
    """A drawn picture on ``device``, ready for use on its current stream; nobody waits."""
    panel = torch.from_numpy(rgba)
    if device.type == "cuda":
        # torch hands pinned memory out again only when the copies that read it are done, and device memory in the order
        # of the stream: no buffer is overwritten while it is in use.
        panel = panel.pin_memory()
    return panel.to(device, non_blocking=True)


def frames_of(frame: Tensor) -> Tensor:
    """``frame`` as [T, H, W, 3], a view of it. Raises TypeError or ValueError naming it."""
    if not isinstance(frame, Tensor):
        raise TypeError(f"frame must be a torch.Tensor, got {type(frame).__name__}")
    if frame.dtype not in DTYPES:
        raise ValueError(f"frame must be uint8, float16, bfloat16 or float32, got {frame.dtype}")
    if any(size > 1 and stride == 0 for size, stride in zip(frame.shape, frame.stride(), strict=True)):
        raise ValueError("frame must not be expanded: it is written in place, so clone it first")
    if frame.dim() in (3, 4) and frame.shape[-1] == 3:
        return frame if frame.dim() == 4 else frame[None]
    if frame.dim() == 3 and frame.shape[0] == 3:
        return frame.permute(1, 2, 0)[None]
    raise ValueError(f"frame must be [3, H, W], [H, W, 3] or [T, H, W, 3], got {list(frame.shape)}")


def _as_stats(stats: LatencyStats | Mapping) -> LatencyStats:
    if isinstance(stats, LatencyStats):
        return stats
    if not isinstance(stats, Mapping):
        raise TypeError(f"stats must be LatencyStats or a dict of its fields, got {type(stats).__name__}")
    known = {field.name for field in dataclasses.fields(LatencyStats)}
    return LatencyStats(**{name: value for name, value in stats.items() if name in known})


def _finite(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _written(value: float | None, decimals: bool = True) -> str:
    if value is None:
        return "-"
    if abs(value) >= 1e8:
        return f"{value:.2e}"
    return f"{value:.1f}" if decimals and abs(value) < 999.95 else f"{value:.0f}"
