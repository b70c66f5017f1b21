"""What the server counts, for Prometheus: of each stream, by the label ``stream``, and of all."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics import MetricWrapperBase

MILLISECONDS = (10, 20, 50, 100, 150, 200, 250, 300, 400, 500, 750, 1000, 1500, 2000, 5000, 10_000)
INTERVALS = (10, 20, 30, 40, 50, 60, 70, 80, 100, 120, 150, 200, 300, 500, 1000, 2000, 5000)


class Metrics:
    """One server's figures, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.generated = Counter("longlive_frames_generated", "Frames made", registry=registry)
        self.sent = Counter("longlive_frames_sent", "Frames sent to viewers", registry=registry)
        self.encoded = Counter(
            "longlive_frames_encoded", "Pictures encoded: each once, however many watch", registry=registry
        )
        self.dropped = Counter(
            "longlive_frames_dropped", "Frames not shown or not used, by reason", ["reason"], registry=registry
        )
        self.came = Counter("longlive_input_frames", "Frames that a viewer sent as input", registry=registry)
        self.block_ms = Histogram(
            "longlive_block_ms", "Milliseconds of a block on the device", buckets=MILLISECONDS, registry=registry
        )
        self.switch_ms = Histogram(
            "longlive_prompt_switch_ms",
            "Milliseconds from a prompt to the end of its first block",
            buckets=MILLISECONDS,
            registry=registry,
        )
        self.interval_ms = Histogram(
            "longlive_frame_interval_ms",
            "Milliseconds from one model frame of a stream to the next, as shown",
            buckets=INTERVALS,
            registry=registry,
        )
        self.viewers = Gauge("longlive_viewers", "Connections", registry=registry)
        self.waiting = Gauge("longlive_queue_frames", "Frames made and not yet shown", registry=registry)
        self.gpu_bytes = Gauge("longlive_gpu_memory_bytes", "Device memory held by tensors", registry=registry)
        self.messages = Counter("longlive_messages", "Messages of viewers, by outcome", ["outcome"], registry=registry)
        self.troubles = Counter("longlive_failed_blocks", "Blocks that failed", registry=registry)
        self.fallbacks = Gauge(
            "longlive_fallback_blocks", "Blocks made again without 8 bits, since the last reset", registry=registry
        )
        self.tasks = Gauge("longlive_event_loop_tasks", "Tasks of the event loop", registry=registry)
        self.open = Gauge("longlive_sessions_open", "Streams that are open", registry=registry)
        self.queued = Gauge("longlive_sessions_queued", "Streams that wait for a place", registry=registry)
        self.load = Gauge(
            "longlive_load", "Share of the device's time that watched streams take at their speed", registry=registry
        )
        self.publishing = Gauge("longlive_publishing", "Streams that are published elsewhere now", registry=registry)
        self.refused = Counter(
            "longlive_sessions_refused", "Streams not opened, by reason", ["code"], registry=registry
        )
        by_stream = {"labelnames": ["stream"], "registry": registry}
        self.stream_frames = Counter("longlive_stream_frames_generated", "Frames made", **by_stream)
        self.stream_troubles = Counter("longlive_stream_failed_blocks", "Blocks that failed", **by_stream)
        self.stream_viewers = Gauge("longlive_stream_viewers", "Connections", **by_stream)
        self.stream_waiting = Gauge("longlive_stream_queue_frames", "Frames made and not yet shown", **by_stream)
        self.stream_fps = Gauge("longlive_stream_fps", "Model frames shown per second, of late", **by_stream)
        self.stream_p99_ms = Gauge(
            "longlive_stream_frame_interval_p99_ms", "99th percentile of the last intervals between frames", **by_stream
        )
        self.stream_interval_ms = Histogram(
            "longlive_stream_frame_interval_ms",
            "Milliseconds from one model frame to the next, as shown",
            buckets=INTERVALS,
            **by_stream,
        )
        self.stream_block_ms = Histogram(
            "longlive_stream_block_ms", "Milliseconds of a block on the device", buckets=MILLISECONDS, **by_stream
        )
        ProcessCollector(registry=registry)

    def text(self) -> bytes:
        """All figures in Prometheus' format."""
        return generate_latest(self.registry)


class StreamMetrics:
    """A stream's part of a server's figures. What a stream has, all have: it is counted among them too.

    all: those of the server. label: the stream's.
    """

    def __init__(self, all: Metrics, label: str):
        self.all, self._label = all, label

    def follow(
        self,
        viewers: Callable[[], float],
        waiting: Callable[[], float],
        fps: Callable[[], float],
        p99_ms: Callable[[], float],
    ) -> None:
        """Ask these whenever figures are wanted."""
        for gauge, ask in (
            (self.all.stream_viewers, viewers),
            (self.all.stream_waiting, waiting),
            (self.all.stream_fps, fps),
            (self.all.stream_p99_ms, p99_ms),
        ):
            gauge.labels(self._label).set_function(ask)

    def block_made(self, frames: int, block_ms: float) -> None:
        """Count a block."""
        self.all.generated.inc(frames)
        self.all.block_ms.observe(block_ms)
        self.all.stream_frames.labels(self._label).inc(frames)
        self.all.stream_block_ms.labels(self._label).observe(block_ms)

    def frame_shown(self, interval: float) -> None:
        """Count a frame that was shown so many seconds after the one before."""
        self.all.interval_ms.observe(interval * 1e3)
        self.all.stream_interval_ms.labels(self._label).observe(interval * 1e3)

    def tween_skipped(self) -> None:
        """Count a picture between two frames that was not made."""
        self.all.dropped.labels("interpolation lags").inc()

    def block_failed(self) -> None:
        """Count a block that failed."""
        self.all.troubles.inc()
        self.all.stream_troubles.labels(self._label).inc()

    def forget(self) -> None:
        """The stream is closed: its label goes."""
        for metric in self._labelled():
            metric.remove(self._label)

    def _labelled(self) -> Iterable[MetricWrapperBase]:
        return (metric for name, metric in vars(self.all).items() if name.startswith("stream_"))
