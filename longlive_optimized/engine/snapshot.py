"""A stream as data: what it needs to go on in another engine, of another process or GPU (docs/api.md, Snapshots)."""

from __future__ import annotations

import dataclasses
import struct
import zlib
from collections.abc import Callable
from typing import Annotated, Literal

import safetensors.torch
import torch
from pydantic import ConfigDict, Field, JsonValue, TypeAdapter
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError
from torch import Tensor

from ..config import LATENT_SCALE, MAX_WINDOW, StreamSettings
from ..model.config import ModelConfig
from ..video_time import BLOCK_FRAMES, BLOCK_PIXEL_FRAMES
from .recache import NOTHING, Recache

_MAGIC, _VERSION, _HEADER = b"LLSTREAM", 1, struct.Struct("<8sII")  # magic, version, CRC-32 of what follows
_STATE = "state"  # the tensor that holds the JSON
_DTYPES = (torch.bfloat16, torch.float32)

_Count = Annotated[int, Field(ge=0, lt=2**62)]
_Index = Annotated[int, Field(ge=0, lt=8)]
_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(config=_STRICT, kw_only=True, frozen=True)
class PromptState:
    """A ``PromptTrack``; embeddings by their index among the snapshot's.

    wanted: the last request's texts, weights and blend. ahead: a transition's first step that is left, and its end.
    sinks: the embedding that the sinks' keys were computed with.
    """

    wanted: tuple[tuple[str, ...], tuple[float, ...], Literal["linear", "slerp"] | None] | None = None
    ahead: tuple[_Count, _Count] = (0, 0)
    mix: Literal["lerp", "slerp"] = "lerp"
    now: _Index | None = None
    shown: _Index | None = None
    source: _Index | None = None
    target: _Index | None = None
    sinks: _Index | None = None

    @property
    def used(self) -> set[int]:
        """Indices of the embeddings."""
        named = self.now, self.shown, self.source, self.target, self.sinks
        return {index for index in named if index is not None}


@dataclass(config=_STRICT, kw_only=True, frozen=True)
class StreamState:
    """What is no tensor; fields without a word are a ``Stream``'s.

    model: the network's dimensions. settings: fields of StreamSettings.
    made_in_8_bits: what ``made_with`` says. control: whether the last block was controlled.
    """

    model: dict[str, JsonValue]
    settings: dict[str, JsonValue]
    vae_type: Literal["wan", "lightvae", "tae", "lighttae"]
    total_frames: Annotated[int, Field(ge=1)] | None
    position: _Count
    prompt: PromptState
    decoded: _Count
    undecoded: Annotated[int, Field(ge=0, le=BLOCK_FRAMES)]
    given: Annotated[int, Field(ge=0, le=BLOCK_PIXEL_FRAMES + 1)]
    fallback_blocks: _Count
    first_sink: _Count
    last_recache: tuple[_Count, Annotated[int, Field(ge=0, le=MAX_WINDOW)], _Count]
    from_video: bool | None
    control: bool
    made_in_8_bits: bool
    prompt_due: bool
    recache_due: bool
    sinks_due: bool


_STATES = TypeAdapter(StreamState)


@dataclasses.dataclass(frozen=True, eq=False)
class Snapshot:
    """A stream between two blocks: settings with the seed, position, prompt and the transition under way, the last
    latents and the sinks'. Made by ``Stream.snapshot``, used by ``engine.open_stream(snapshot=...)``.

    It is data, which can be pickled, or kept as bytes that may come back from anywhere: ``to_bytes``, ``from_bytes``.
    At 480x832 in bfloat16 it takes 5.4 MB, and 8 kB for each token of the prompts in use. LoRAs and their scales are
    the engine's, not the stream's; prompts, pictures and videos to come are the requests'. A stream takes the memory
    that ``settings`` and ``state.total_frames`` ask for: look at these of bytes from strangers.

    The first block of the new stream makes keys and values again from latents, and shows these to the decoder: it takes
    longer, and pictures go on without a cut. What is equal to the stream that went on, on the same kind of device and
    in the same dtype:

    - Noise: always.
    - Latents: bit for bit, where those that are kept reach back to what the last recache began with (that of a prompt
      switch, a transition's step, another window or LoRA scale) or to the video's beginning, or where the next block
      recaches. Elsewhere they differ, of the next block by 1e-6 of their norm in the built-in model, and ever less.
      They also differ where the precision has changed since, 8 bits have failed, or there are more than three sinks.
    - Pictures: bit for bit where latents are, and the decoder has seen no more than are kept. Elsewhere two values
      of a thousand differ by 1 of 255, with a VAE of random weights; that of the built-in model forgets sooner.
    - Not the latents of video and control input: their encoders have seen nothing before the next block's frames.

    state: what is no tensor. tensors: all others, on the host, not to be written to.
    """

    state: StreamState
    tensors: dict[str, Tensor]
    _copied: torch.cuda.Event | None = None

    @property
    def settings(self) -> StreamSettings:
        """The stream's. Raises ValueError for what no settings have."""
        return StreamSettings(**self.state.settings)  # pyright: ignore[reportArgumentType]

    def ready(self) -> bool:
        """Whether all is on the host: what a GPU had to do before is done. All else here waits for it."""
        return self._copied is None or self._copied.query()

    def to_bytes(self) -> bytes:
        """The snapshot as bytes, for ``from_bytes``. Waits until it is ``ready``."""
        self._wait()
        tensors = {name: _trimmed(x) if is_embedding(name) else x for name, x in self.tensors.items()}
        tensors[_STATE] = torch.frombuffer(bytearray(_STATES.dump_json(self.state)), dtype=torch.uint8)
        body = safetensors.torch.save({name: x.contiguous() for name, x in tensors.items()})
        return _HEADER.pack(_MAGIC, _VERSION, zlib.crc32(body)) + body

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> Snapshot:
        """What ``to_bytes`` gave. Raises TypeError for no bytes, ValueError saying what is wrong for any others: of
        another version, damaged (a checksum tells), or put together by somebody else so that they do not fit together.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"data must be bytes, got {type(data).__name__}")
        data = bytes(data)
        if data[:8] != _MAGIC or len(data) < _HEADER.size:
            raise ValueError("data is no snapshot of a stream: it does not begin as one")
        _, version, checksum = _HEADER.unpack_from(data)
        if version != _VERSION:
            raise ValueError(f"data is a snapshot of version {version}, only {_VERSION} can be read")
        body = data[_HEADER.size :]
        if zlib.crc32(body) != checksum:
            raise ValueError("data is a damaged snapshot: its checksum is another")
        try:
            tensors = safetensors.torch.load(body)
        except (SafetensorError, KeyError, RuntimeError, TypeError) as error:
            raise ValueError(f"data is a damaged snapshot: {error}") from error
        found = tensors.pop(_STATE, None)
        if found is None or found.dtype != torch.uint8:
            raise ValueError("data is a damaged snapshot: it has no state")
        snapshot = cls(_STATES.validate_json(bytes(found.numpy())), tensors)
        snapshot._check()
        return snapshot

    def __reduce__(self) -> tuple[Callable, tuple[bytes]]:
        return Snapshot.from_bytes, (self.to_bytes(),)

    def check_fits(self, config: ModelConfig, device: torch.device) -> None:
        """Raises ValueError naming what does not fit a network of these dimensions on this device, or does not fit
        together. Waits until it is ``ready``."""
        own = dataclasses.asdict(config)
        if wrong := [name for name in own if self.state.model.get(name) != own[name]]:
            got = ", ".join(f"{name} {self.state.model.get(name)!r:.40}, here {own[name]}" for name in wrong)
            raise ValueError(f"snapshot must be of the same model, got one of {got}")
        self._wait()
        self._check()
        if self.state.total_frames is not None:
            try:
                torch.Generator(device).set_state(self.tensors["generator"])
            except RuntimeError as error:
                raise ValueError(f"snapshot must have noise that was drawn on {device.type}: {error}") from None

    def _wait(self) -> None:
        if self._copied is not None:
            self._copied.synchronize()

    def _check(self) -> None:
        """Raises ValueError naming what does not fit together."""
        settings = self.settings
        try:
            model = ModelConfig(**self.state.model)  # pyright: ignore[reportArgumentType]
        except TypeError as error:
            raise ValueError(f"snapshot must have the dimensions of a model: {error}") from None
        _check_state(self.state, settings)
        rows, columns = settings.size
        latent = model.in_dim, rows // LATENT_SCALE, columns // LATENT_SCALE
        wanted = {"latents": latent, "sinks": latent}
        wanted |= {f"embedding{index}": (model.text_dim,) for index in self.state.prompt.used}
        others = {"motion": (1, 3, rows, columns), "generator": ()}
        for name in [*wanted, *self.tensors]:
            if name not in self.tensors or name not in wanted | others:
                raise ValueError(f"snapshot must have {', '.join(sorted(wanted))}, got {', '.join(self.tensors)}")
            x, shape = self.tensors[name], {**wanted, **others}[name]
            fits = x.shape == shape if name == "motion" else x.ndim == len(shape) + 1 and x.shape[1:] == shape
            if not fits or x.dtype not in ((torch.uint8,) if name == "generator" else _DTYPES):
                like = "x".join(map(str, shape if name == "motion" else ("N", *shape)))
                raise ValueError(f"snapshot must have {name} of {like}, got {x.dtype} {list(x.shape)}")
            if x.is_floating_point() and not x.isfinite().all():
                raise ValueError(f"snapshot must have finite {name}")
            if is_embedding(name) and len(x) > model.text_len:
                raise ValueError(f"snapshot must have {name} of at most {model.text_len} rows, got {len(x)}")
        self._check_lengths(settings)

    def _check_lengths(self, settings: StreamSettings) -> None:
        state, frames, sinks = self.state, len(self.tensors["latents"]), len(self.tensors["sinks"])
        least = min(state.position, settings.local_attn_size)
        if not least <= frames <= min(state.position, MAX_WINDOW):
            raise ValueError(f"snapshot must have at least {least} latents at position {state.position}, got {frames}")
        if state.undecoded > frames:
            raise ValueError(f"snapshot must have its {state.undecoded} undecoded latents, got {frames}")
        if not min(settings.sink_size, state.position) <= sinks <= MAX_WINDOW:
            raise ValueError(f"snapshot must have latents of {settings.sink_size} sinks, got {sinks}")
        if (state.total_frames is None) != ("generator" not in self.tensors):
            raise ValueError("snapshot must have a generator's state with total_frames, and none without")


def _check_state(state: StreamState, settings: StreamSettings) -> None:
    """Raises ValueError naming what does not fit together, tensors apart."""
    position, last, prompt = state.position, Recache(*state.last_recache), state.prompt
    if settings.height is None or settings.width is None:
        raise ValueError("snapshot must have settings with height and width")
    if last != NOTHING and not (0 < last.frames and last.end <= position and last.origin in (0, last.start)):
        raise ValueError(f"snapshot must have a last_recache before its position {position}, got {tuple(last)}")
    if last.keeps_sinks and last.start < settings.sink_size:
        raise ValueError(f"snapshot must have a last_recache behind the sinks, got {tuple(last)}")
    if (left := (position - last.end) % BLOCK_FRAMES) > (last == NOTHING):
        raise ValueError(f"snapshot must be at the end of a block, got position {position}, {left} latent frames on")
    if last.frames > settings.local_attn_size and not state.recache_due:
        raise ValueError(f"snapshot must have a last_recache of at most its window, got {tuple(last)}")
    if state.first_sink and state.first_sink + settings.sink_size > position:
        raise ValueError(f"snapshot must have its sinks before position {position}, got first_sink {state.first_sink}")
    if state.total_frames is not None and position > state.total_frames:
        raise ValueError(f"snapshot must have a position up to total_frames {state.total_frames}, got {position}")
    if state.decoded > position - state.undecoded:
        raise ValueError(f"snapshot must have decoded at most its {position} latents, got {state.decoded}")
    if position and (prompt.now is None or prompt.shown is None):
        raise ValueError("snapshot must have the embedding of its prompt")
    in_transition = prompt.ahead[0] < prompt.ahead[1]
    if in_transition and (prompt.target is None or (prompt.ahead[1] - prompt.ahead[0] > 1 and prompt.source is None)):
        raise ValueError("snapshot must have the embeddings that its transition leads between")
    if prompt.wanted is not None and (not prompt.wanted[0] or len(prompt.wanted[0]) != len(prompt.wanted[1])):
        raise ValueError("snapshot must have a weight for each text of its prompt")


def is_embedding(name: str) -> bool:
    return name.startswith("embedding")


def _trimmed(embedding: Tensor) -> Tensor:
    """Without the rows of zeros at its end."""
    rows = embedding.any(1).nonzero()
    return embedding[: int(rows[-1]) + 1 if len(rows) else 0]
