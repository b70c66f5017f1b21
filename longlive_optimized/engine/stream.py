"""One video under way: its settings, and everything that belongs to it and not to the weights."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple, Unpack

import torch
from torch import Tensor

from ..config import LATENT_SCALE, MAX_WINDOW, PIXELS_PER_TOKEN, StreamSettings
from ..keywords import ConfigFields
from ..model.control import ControlBranch, PassControl
from ..model.precision import PLAIN, Policy, attention_in_8_bits, policy_of, runs_in, values_in_8_bits
from ..model.ring_cache import RingCache
from ..model.shard import Shard
from ..model.transformer import Transformer
from ..text.prompt_cache import PromptCache
from ..vae.band import Band
from ..vae.codec import Codec
from ..vae.stream import DecoderStream, EncoderStream
from ..video_time import BLOCK_FRAMES
from .closing import Closable
from .control_input import ControlInput, Grey
from .devices import Devices
from .graphs import GraphCache, GraphSwitch
from .noise import BlockNoise, VideoNoise
from .passes import Passes
from .prompt_track import PromptTrack
from .ranks import on_all_ranks
from .recache import NOTHING, Recache
from .resume import take
from .snapshot import Snapshot
from .timing import BlockTimer
from .video_input import MotionMeter


class Networks(NamedTuple):
    """An engine's networks, shared by its streams, and what they have computed once for all."""

    model: Transformer
    codec: Codec
    prompts: PromptCache
    control: ControlBranch | None = None
    grey: Grey | None = None
    vae_type: str = "wan"


class EncodedVideo(NamedTuple):
    """A block's video as latents [F, C, h, w], and the share of noise that is to be mixed into them."""

    latents: Tensor
    noise_scale: float


class SinkPass(NamedTuple):
    """The pass that wrote the sinks' keys and values: clean latents [F, C, h, w], sinks first, and the prompt."""

    latents: Tensor
    embedding: Tensor


class Stream(Closable):
    """One video: its settings, prompt, ring, VAE state, noise, position and times. Made by ``LongLiveEngine``; its
    blocks are made in ``engine.block``.

    settings: in force from the next block on. Changed by ``configure``; its seed by ``reset``, ``reseed``, ``restart``.
    position: latent frame at which the next block starts.
    history: the last clean latents [F, C, h, w], for a context pass or a recache.
    sinks: those of the sinks, however long ago; first_sink: the first one's latent frame.
    prompt_due: the prompt in force has not reached the network yet.
    context_due: the last block's clean keys and values are not in the ring yet.
    recache_due: the ring's keys and values are of another prompt or weights, or a recache has failed.
    sinks_due: those of the sinks are of other weights.
    sink_pass: what wrote those of the sinks; None before that. last_recache: the last one, since the first block.
    lost_window: the window of keys and values that are lost, and are made again from latents; None if they are there.
    encoder_lost: the encoder has not seen the video before the next block.
    undecoded: latent frames at the end of ``history`` that are generated but not yet decoded.
    decoded: latent frames that the decoder has seen; decoder_lost: it has lost them, for want of memory.
    given: pixel frames of the last block that were returned so far, while some of its latents are undecoded.
    encoded: the next block's video; kept until the block is made, for a second try.
    context: the next block's control context, likewise.
    from_video: whether the last block was made from video; None before the first.
    shard: the ranks that its tokens are divided among.
    new_graphs: makes what the calls of a side of the VAE are captured with.
    policy: which products its precision runs in 8 bits; made_with: which those of the last block's denoising did.
    int8_keys: whether its precision runs attention over the ring in 8 bits.
    made_again: whether what was denoised last was not finite in 8 bits, and was made again without.
    fallback_blocks: how many blocks since the last ``reset`` were. One that is tried twice counts once.
    """

    def __init__(
        self,
        networks: Networks,
        settings: StreamSettings,
        devices: Devices,
        graphs: GraphSwitch,
        total_frames: int | None = None,
        named: bool = False,
    ):
        self.networks, self.settings, self.total_frames = networks, settings, total_frames
        self.devices, self._graphs, self.shard = devices, graphs, devices.ranks.shard
        grid = _grid(settings)
        self.shard.check(math.prod(grid), settings.size)
        self._bands = _bands(self.shard, settings)
        graphs.turn(settings.use_cuda_graphs)
        model = networks.model
        self.policy, self.int8_keys = self._policy_of(settings), self._int8_keys_of(settings)
        self._new_ring = functools.partial(
            RingCache,
            model.config,
            grid,
            sink=settings.sink_size,
            relative=settings.positions == "relative",
            dtype=model.kv_dtype,
            device=model.device,
            values8=values_in_8_bits(model.kv_dtype, devices.model, model.config.head_dim, len(model.blocks)),
            shard=self.shard,
        )
        self.new_graphs = functools.partial(GraphCache, graphs, devices.vae)
        self.timer = BlockTimer(devices.at_model, named=named)
        latent = (model.config.in_dim, *(side // LATENT_SCALE for side in settings.size))
        self._like = torch.empty(latent, dtype=model.latent_dtype, device=model.device)
        self._pass_control = None
        self._new_coders()
        if networks.control:
            self._pass_control = PassControl(networks.control, grid, BLOCK_FRAMES + 1, self.shard)
        self.passes = self._new_passes(settings.local_attn_size, self.int8_keys)
        self.undecoded = self.given = 0
        self.reset()

    @on_all_ranks
    def configure(self, **changes: Unpack[ConfigFields]) -> None:
        """Change settings (those in ``config.CHANGEABLE``) from the next block on; weights and picture stay.

        A new local_attn_size recomputes the window before that block, without a cut: the sinks are kept (with
        ``global_sink`` false replaced, as at a prompt switch). One that is changed back before that block leaves no
        trace. Buffers and graphs stay, unless the window grows beyond any before: that window is recomputed whatever
        comes after. The first 8-bit precision of an engine's streams makes the weights' int8 copies, which stay. Raises
        ValueError for other fields and bad values; nothing has changed then, nor where memory is short.
        """
        with self.devices.turn():
            before, after = self.settings, self.settings.changed(**changes)
            policy, int8_keys = self._policy_of(after), self._int8_keys_of(after)
            if after.local_attn_size != before.local_attn_size:
                self._resize(after.local_attn_size, int8_keys)
            else:
                self.ring.reserve(int8_keys)
            self.settings, self.policy, self.int8_keys = after, policy, int8_keys
            self._graphs.turn(after.use_cuda_graphs)

    def reset(self, seed: int | None = None) -> None:
        """Back to an empty stream; buffers stay. The seed stays too unless one is given."""
        self.prompt = PromptTrack()
        self.prompt_due = False
        self.motion = MotionMeter()
        self.fallback_blocks = 0
        self.restart(seed)

    def snapshot(self, latents: int | None = None) -> Snapshot:
        """What ``open_stream(snapshot=...)`` of another engine with the same model needs to go on from here.

        It may be taken between any two calls, changes nothing, and does not wait for the device (``Snapshot.ready``).

        latents: how many latent frames at most it holds beside the sinks', from ``local_attn_size`` to 64; None is 24,
            or ``local_attn_size`` if that is more. With more it stays exact for longer (``Snapshot``), with fewer
            the first block after it is there sooner.

        Raises ValueError naming ``latents`` if it is out of range.
        """
        with self.devices.turn():
            return take(self, latents)

    def close(self) -> None:
        """Give its memory back to the engine's other streams; waits for a block under way. Any other use of it is then
        a RuntimeError."""
        with self.devices.turn():
            if not self.closed:
                self.devices.synchronize()
                self._let_go("devices")

    def restart(self, seed: int | None = None) -> None:
        """Back to frame 0 with the prompt in force, and the transition under way."""
        self._reseed(self.settings.seed if seed is None else seed)
        self.position = 0
        self.history = self._like.new_empty(0, *self._like.shape)
        self.sinks, self.first_sink = self.history, 0
        self.context_due = self.recache_due = self.sinks_due = False
        self.sink_pass: SinkPass | None = None
        self.last_recache: Recache = NOTHING
        self.lost_window: int | None = None
        self.from_video: bool | None = None
        self.made_with, self.made_again = PLAIN, False
        self.ring.reset()
        self.restart_vae()

    def restart_vae(self) -> None:
        """The next frames are the first of a video for the VAE alone."""
        self.encoded: EncodedVideo | None = None
        self.context: Tensor | None = None
        if self.given:
            self.timer.block_done(self.given)  # the rest of that block will not come
        self.undecoded = self.given = self.decoded = 0
        self.decoder_lost = self.encoder_lost = False
        with self.devices.at_decoder.here():
            self.decoder.reset()
        with self.devices.at_encoder.here():
            self.encoder.reset()
            if self.control_input:
                self.control_input.reset()

    def use_codec(self, codec: Codec, grey: Grey, vae_type: str) -> None:
        """Decode and encode by another VAE from the next block on."""
        if codec is not self.networks.codec:
            self.networks = self.networks._replace(codec=codec, grey=grey, vae_type=vae_type)
            self._new_coders()
            self.restart_vae()

    def reseed(self, seed: int) -> None:
        """Draw later blocks from another seed. Raises ValueError for a video whose noise was drawn at its start."""
        if seed == self.settings.seed:
            return
        if self.total_frames is not None and self.position:
            raise ValueError("seed of a stream with total_frames changes with reset=True only")
        self._reseed(seed)

    def restore_decoder(self) -> None:
        """Let the decoder see again what it has lost: more of it than any of its layers remembers is in ``history``."""
        if not self.decoder_lost:
            return
        at, seen = self.devices.at_decoder, self.history[: len(self.history) - self.undecoded]
        for latents in seen[max(0, len(seen) - self.decoded) :].split(BLOCK_FRAMES):
            if len(latents):
                there = at.bring(latents, self.devices.at_model)
                with at.here():
                    self.decoder.decode_uint8(there)
        self.decoder_lost = False

    def keep_sink_pass(self, latents: Tensor, embedding: Tensor | None) -> None:
        """A pass over these latents, told this, has written the sinks."""
        self.sink_pass = SinkPass(latents, embedding) if embedding is not None else None

    def decode(self, latents: Tensor) -> Tensor:
        """Pixel frames, uint8 [T, H, W, 3]; of several ranks each decodes a band of rows."""
        frames, rows = self.decoder.decode_uint8(latents), latents.shape[2]
        sizes = [LATENT_SCALE * len(band.rows(rows)) for band in self._bands]
        return self.shard.join(frames, sizes, 1)

    def weights_moved(self) -> None:
        """The network's weights lie elsewhere: what was captured reads where they were."""
        self._graphs.drop()

    @property
    def latent_shape(self) -> torch.Size:
        """One latent frame: channels, rows, columns."""
        return self._like.shape

    @property
    def ring(self) -> RingCache:
        """Keys and values of the frames in the window."""
        return self.passes.ring

    @property
    def window_lost(self) -> bool:
        """Whether the next block wants the window's keys and values anew."""
        return self.ring.stale if self.lost_window is None else self.lost_window != self.ring.window

    @property
    def cuda_graphs_active(self) -> bool:
        """Whether its passes are replayed from CUDA graphs."""
        return self.passes.graphs.captured > 0

    @property
    def precision(self) -> str:
        """What the layers run in: ``int8``, ``int8 products`` where attention over the ring is not in 8 bits, or the
        model's dtype, ``bf16`` or ``float32``."""
        return self.precision_with(self.settings)

    def precision_with(self, settings: StreamSettings) -> str:
        """``precision``, were these the settings."""
        model, (rows, columns) = self.networks.model, _grid(settings)
        head_dim = model.config.head_dim
        return runs_in(settings.precision, model.compute_dtype, len(model.blocks), head_dim, rows * columns)

    def weights_changed(self) -> None:
        """The network has other weights: the prompt's keys and values, and the window's with its sinks, are computed
        anew, from the latents that there are."""
        self.passes.weights_changed()
        self.sinks_due = self.ring.sink > 0
        self.prompt_due = self.prompt.embedding is not None

    def block_frames(self, from_video: bool) -> int:
        """Latent frames of the next block: 3, and 4 for the first block of video mode."""
        return BLOCK_FRAMES + (from_video and self.position == 0)

    def history_with(self, latents: Tensor) -> Tensor:
        """``history`` once ``latents`` belong to it."""
        return torch.cat((self.history, latents))[-MAX_WINDOW:]

    def keep(self, history: Tensor, frames: int) -> None:
        """A block of so many latent frames is generated, at the end of ``history``: move on."""
        self.prompt.block_made()
        self.fallback_blocks += self.made_again
        self.history = history
        if self.position < self.ring.sink:
            self.sinks = history[: self.ring.sink]
        self.position += frames
        self.context_due = True
        self.encoded = self.context = None

    def _new_coders(self) -> None:
        networks = self.networks
        band = self._bands[self.shard.rank] if self.shard.count > 1 else None
        self.decoder = DecoderStream(networks.codec, self.new_graphs, band)
        self.encoder = EncoderStream(networks.codec, self.new_graphs)
        self.control_input = None
        if networks.control:
            there = torch.empty_like(self._like, device=networks.codec.device)
            self.control_input = ControlInput(networks.codec, self.new_graphs, networks.grey or Grey(), there)

    def _policy_of(self, settings: StreamSettings) -> Policy:
        model = self.networks.model
        if settings.precision != "bf16":
            model.hold_int8()
            if self.networks.control:
                self.networks.control.hold_int8()
        return policy_of(settings.precision, len(model.blocks))

    def _int8_keys_of(self, settings: StreamSettings) -> bool:
        rows, columns = _grid(settings)
        return attention_in_8_bits(settings.precision, self.networks.model.config.head_dim, rows * columns)

    def _resize(self, window: int, int8_keys: bool) -> None:
        if window <= self.ring.capacity:
            self.ring.reserve(int8_keys)
            self.ring.resize(window)
        else:
            passes = self._new_passes(window, self.ring.holds_int8)
            passes.ring.take_sinks(self.ring)
            passes.ring.reserve(int8_keys)
            passes.cross = self.passes.cross
            self.passes = passes

    def _new_passes(self, window: int, int8_keys: bool) -> Passes:
        ring = self._new_ring(window=window, int8=int8_keys)
        return Passes(self.networks.model, ring, self._like, GraphCache(self._graphs), self._pass_control)

    def _reseed(self, seed: int) -> None:
        if self.total_frames is None:
            self.noise = BlockNoise(seed, self._like)
        else:
            self.noise = VideoNoise(seed, self._like, self.total_frames)
        self.settings = dataclasses.replace(self.settings, seed=seed)


def _bands(shard: Shard, settings: StreamSettings) -> list[Band]:
    """Each rank's rows of the pictures. Raises ValueError where there are more ranks than rows of latents."""
    if settings.size[0] < shard.count * LATENT_SCALE:
        least = shard.count * LATENT_SCALE
        raise ValueError(f"height must be at least {least} on {shard.count} ranks, got {settings.size[0]}")
    return [Band(rank, shard.count) for rank in range(shard.count)]


def _grid(settings: StreamSettings) -> tuple[int, int]:
    """Rows and columns of tokens."""
    rows, columns = settings.size
    return rows // PIXELS_PER_TOKEN, columns // PIXELS_PER_TOKEN
