"""scope's two starter workflows with LongLive: what its page loads and sends for them, with another pipeline's id."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Starter:
    """A workflow whose notes have been followed: there is a source where they say.

    before: the pipeline between the source and LongLive, if any. loras: the scales of its two. scale: VACE's.
    """

    name: str
    before: str | None
    loras: tuple[float, float]
    scale: float

    def pipelines(self, pipeline_id: str, after: str) -> dict[str, str]:
        """By node. LongLive's keeps its name, as that of the one after it does, which a note says to change."""
        before = {self.before: self.before} if self.before else {}
        return before | {"longlive": pipeline_id, "rife": after}

    def graph(self, pipeline_id: str, after: str) -> dict:
        pipelines = self.pipelines(pipeline_id, after).items()
        nodes = [{"id": node, "type": "pipeline", "pipeline_id": pipeline} for node, pipeline in pipelines]
        nodes += [{"id": node, "type": kind} for node, kind in ENDS.items()]
        edges = [("longlive", "rife", "video"), ("rife", "output", "video"), ("rife", "record", "video")]
        edges += [("source", self.before, "video")] if self.before else []
        edges.append((self.before or "source", "longlive", "vace_input_frames"))
        keys = "from", "to_node", "to_port"
        streams = [dict(zip(keys, edge, strict=True), from_port="video", kind="stream") for edge in edges]
        return {"nodes": nodes, "edges": streams}

    def sent(self) -> dict:
        """With the offer, beside the graph and the prompt: the node's parameters but for its size."""
        return NODE | {"vace_context_scale": self.scale}


ENDS = {"source": "source", "output": "sink", "record": "record"}
NODE = {
    "input_mode": "video",
    "noise_scale": 0.7,
    "noise_controller": True,
    "manage_cache": False,
    "denoising_step_list": [1000, 750],
    "kv_cache_attention_bias": 0.3,
    "quantization": None,
    "vace_enabled": True,
    "vace_use_input_video": True,
}
STARTERS = (
    Starter("creature", None, (1.5, 1.5), 0.4),
    Starter("sunflower", "video-depth-anything", (0.7, 1.5), 0.5),
)
