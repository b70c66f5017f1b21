"""A stream to its snapshot, and back."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, cast

import torch
from pydantic import JsonValue
from torch import Tensor

from ..config import MAX_WINDOW
from ..model.precision import PLAIN, policy_of
from ..plain import whole
from ..text.blend import lerp, slerp
from .host_copy import to_host
from .noise import VideoNoise
from .prompt_track import PromptTrack
from .recache import Recache
from .snapshot import PromptState, Snapshot, StreamState, is_embedding

if TYPE_CHECKING:
    from .stream import Stream

LATENTS = 24  # what a VAE's decoder remembers of older ones is below 0.01 of 255
_AS_IT_IS = (
    "position",
    "decoded",
    "undecoded",
    "given",
    "fallback_blocks",
    "first_sink",
    "from_video",
    "recache_due",
    "sinks_due",
)


def take(stream: Stream, latents: int | None = None) -> Snapshot:
    """See ``Stream.snapshot``; inside ``Devices.turn``."""
    window = stream.settings.local_attn_size
    kept = max(window, LATENTS) if latents is None else whole("latents", latents, window, MAX_WINDOW)
    last, (prompt, embeddings) = stream.last_recache, _prompt_of(stream)
    found = {"latents": stream.history[-kept:], "sinks": stream.sink_pass.latents if stream.sink_pass else stream.sinks}
    found |= {f"embedding{index}": x for index, x in enumerate(embeddings)}
    if stream.motion.last is not None:
        found["motion"] = stream.devices.at_model.bring(stream.motion.last, stream.devices.at_encoder)
    if isinstance(stream.noise, VideoNoise):
        found["generator"] = stream.noise.state(stream.position)
    state = StreamState(
        model=dataclasses.asdict(stream.networks.model.config),
        settings=_json(dataclasses.asdict(stream.settings)),
        vae_type=cast(Any, stream.networks.vae_type),
        total_frames=stream.total_frames,
        prompt=prompt,
        last_recache=(last.start, last.frames, last.origin),
        control=stream.control_input is not None and stream.control_input.ends == stream.position > 0,
        made_in_8_bits=bool(stream.made_with),
        prompt_due=stream.prompt_due,
        **{name: getattr(stream, name) for name in _AS_IT_IS}
        | {"recache_due": stream.recache_due or (stream.position > 0 and stream.window_lost)},
    )
    tensors = {name: to_host(x) for name, x in found.items()}
    copied = None
    if stream.history.is_cuda:
        copied = torch.cuda.Event()
        copied.record()
    return Snapshot(state, tensors, copied)


def resume(stream: Stream, snapshot: Snapshot) -> None:
    """Let a stream that was made with a snapshot's settings stand where it was taken; inside ``Devices.turn``."""
    state, like = snapshot.state, stream.history
    if isinstance(stream.noise, VideoNoise):
        stream.noise.generator.set_state(snapshot.tensors["generator"])
    tensors = {name: x.to(like) for name, x in snapshot.tensors.items() if name != "generator"}
    rows = stream.networks.model.config.text_len
    tensors |= {name: _filled(x, rows) for name, x in tensors.items() if is_embedding(name)}
    stream.prompt, sinks_embedding = _track_of(state.prompt, tensors)
    if "motion" in tensors:
        encoder = stream.devices.at_encoder
        stream.motion.last = encoder.bring(tensors["motion"], stream.devices.at_model)
    stream.history, sinks = tensors["latents"], tensors["sinks"]
    stream.sinks = sinks[: stream.ring.sink]
    stream.keep_sink_pass(sinks, sinks_embedding)
    stream.last_recache = Recache(*state.last_recache)
    for name in _AS_IT_IS:
        setattr(stream, name, getattr(state, name))
    begun = state.position > 0
    stream.prompt_due = state.prompt_due or (not begun and stream.prompt.embedding is not None)
    stream.made_with = policy_of("int8", len(stream.networks.model.blocks)) if state.made_in_8_bits else PLAIN
    stream.lost_window = stream.ring.window if begun else None
    stream.decoder_lost, stream.encoder_lost = state.decoded > 0, begun and bool(state.from_video)
    if state.control and stream.control_input:
        stream.control_input.resume(state.position)


def _prompt_of(stream: Stream) -> tuple[PromptState, list[Tensor]]:
    """A stream's prompt, and the embeddings that it needs, each once."""
    track, embeddings = stream.prompt, []

    def index_of(embedding: Tensor | None) -> int | None:
        if embedding is None:
            return None
        for index, known in enumerate(embeddings):
            if known is embedding:
                return index
        embeddings.append(embedding)
        return len(embeddings) - 1

    ahead = track.ahead
    source, target = (track.source, track.target) if ahead else (None, None)
    wanted = track.wanted
    if wanted is not None:
        texts, *weights, blend = wanted
        wanted = tuple(texts), tuple(weights), blend
    state = PromptState(
        wanted=wanted,
        ahead=(ahead.start, ahead.stop),
        mix="slerp" if track.mix is slerp else "lerp",
        now=index_of(track.embedding),
        shown=index_of(track.shown),
        source=index_of(source),
        target=index_of(target),
        sinks=index_of(stream.sink_pass and stream.sink_pass.embedding),
    )
    return state, embeddings


def _track_of(state: PromptState, tensors: dict[str, Tensor]) -> tuple[PromptTrack, Tensor | None]:
    def embedding(index: int | None) -> Tensor | None:
        return None if index is None else tensors[f"embedding{index}"]

    track = PromptTrack()
    track.embedding, track.shown = embedding(state.now), embedding(state.shown)
    track.source, track.target = embedding(state.source), embedding(state.target)
    track.ahead, track.mix = range(*state.ahead), slerp if state.mix == "slerp" else lerp
    if state.wanted is not None:
        texts, weights, blend = state.wanted
        track.wanted = texts, *weights, blend
    return track, embedding(state.sinks)


def _filled(embedding: Tensor, rows: int) -> Tensor:
    """As it was before it was trimmed."""
    return torch.cat((embedding, embedding.new_zeros(rows - len(embedding), embedding.shape[1])))


def _json(fields: dict[str, Any]) -> dict[str, JsonValue]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
