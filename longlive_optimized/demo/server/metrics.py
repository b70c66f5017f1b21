"""What the server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

MILLISECONDS = (10, 20, 50, 100, 150, 200, 250, 300, 400, 500, 750, 1000, 1500, 2000, 5000, 10_000)


class Metrics:
    """One server's figures, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.generated = Counter("longlive_frames_generated", "Frames made", registry=registry)
        self.sent = Counter("longlive_frames_sent", "Frames handed to viewers' encoders", registry=registry)
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
        self.viewers = Gauge("longlive_viewers", "Connections", registry=registry)
        self.waiting = Gauge("longlive_queue_frames", "Frames made and not yet shown", registry=registry)
        self.gpu_bytes = Gauge("longlive_gpu_memory_bytes", "Device memory held by tensors", registry=registry)
        self.messages = Counter("longlive_messages", "Messages of viewers, by outcome", ["outcome"], registry=registry)
        self.troubles = Counter("longlive_failed_blocks", "Blocks that failed", registry=registry)
        self.fallbacks = Gauge(
            "longlive_fallback_blocks", "Blocks made again without 8 bits, since the last reset", registry=registry
        )
        self.tasks = Gauge("longlive_event_loop_tasks", "Tasks of the event loop", registry=registry)
        ProcessCollector(registry=registry)

    def text(self) -> bytes:
        """All figures in Prometheus' format."""
        return generate_latest(self.registry)
