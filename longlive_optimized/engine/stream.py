"""One video under way: everything that belongs to a stream and not to the weights."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ..config import BLOCK_FRAMES, MAX_WINDOW, PIXELS_PER_TOKEN, OptimizationConfig
from ..model.ring_cache import RingCache
from ..model.transformer import Transformer
from ..vae.codec import Codec
from ..vae.stream import DecoderStream, EncoderStream
from .graphs import Eager, GraphCache
from .noise import BlockNoise, VideoNoise
from .passes import Passes
from .prompt_track import PromptTrack
from .timing import BlockTimer
from .video_input import MotionMeter

LATENT_SCALE = 8  # pixels per latent row and column


class Stream:
    """Ring, VAE state, prompt, seed, position and times of one video of height x width pixels; made by the engine."""

    def __init__(
        self,
        model: Transformer,
        codec: Codec,
        config: OptimizationConfig,
        height: int,
        width: int,
        seed: int,
        total_frames: int | None,
        new_graphs: Callable[[], GraphCache | Eager],
    ):
        self._model, self._new_graphs = model, new_graphs
        self.height, self.width, self.seed, self.total_frames = height, width, seed, total_frames
        self._new_ring = functools.partial(
            RingCache,
            model.config,
            (height // PIXELS_PER_TOKEN, width // PIXELS_PER_TOKEN),
            sink=config.sink_size,
            relative=config.positions == "relative",
            dtype=model.dtype,
            device=model.device,
        )
        self.decoder, self.encoder = (side(codec, new_graphs=new_graphs) for side in (DecoderStream, EncoderStream))
        self.timer = BlockTimer(model.device, named=config.enable_profiling)
        latent = (model.config.in_dim, height // LATENT_SCALE, width // LATENT_SCALE)
        self._like = torch.empty(latent, dtype=model.dtype, device=model.device)
        self.passes = self._new_passes(config.local_attn_size)
        # Of the last block: latents, at the end of ``history``, whose frames were not asked for yet, and frames given.
        self.undecoded, self.given = 0, 0
        self.reset()

    def reset(self, seed: int | None = None) -> None:
        """Back to an empty stream; buffers stay. The seed stays too unless one is given."""
        self.prompt = PromptTrack()
        self.prompt_due = False  # the prompt in force has not reached the network yet
        self.motion = MotionMeter()
        self.restart(seed)

    def restart(self, seed: int | None = None) -> None:
        """Back to frame 0 with the prompt in force, and the transition under way."""
        self.seed = self.seed if seed is None else seed
        self.noise = self._new_noise()
        self.position = 0  # latent frame at which the next block starts
        self.history = self._like.new_empty(0, *self._like.shape)  # clean latents, for a recache
        self.context_due = False  # the last block's clean keys and values are not in the ring yet
        self.recache_due = False  # those in the ring are of another prompt or window
        self.from_video: bool | None = None
        self.ring.reset()
        self.restart_vae()

    def restart_vae(self) -> None:
        """The next frames are the first of a video for the VAE alone."""
        # The next block's video, encoded, and its share of noise: kept until the block is, for a second try.
        self.encoded: tuple[Tensor, float] | None = None
        if self.given:
            self.timer.block_done(self.given)  # the rest of that block will not come
        self.undecoded, self.given = 0, 0
        self.decoder.reset()
        self.encoder.reset()

    def reseed(self, seed: int) -> None:
        """Draw later blocks from another seed. Raises ValueError for a video whose noise was drawn at its start."""
        if seed == self.seed:
            return
        if self.total_frames is not None and self.position:
            raise ValueError("seed of a stream with total_frames changes with reset=True only")
        self.seed = seed
        self.noise = self._new_noise()

    @property
    def latent_shape(self) -> torch.Size:
        """One latent frame: channels, rows, columns."""
        return self._like.shape

    @property
    def ring(self) -> RingCache:
        """Keys and values of the frames in the window."""
        return self.passes.ring

    @property
    def cuda_graphs_active(self) -> bool:
        """Whether its passes are replayed from CUDA graphs."""
        return self.passes.graphs.captured > 0 and not self.passes.graphs.failed

    @property
    def window(self) -> int:
        """Latent frames that a block attends to, its own included."""
        return self.ring.window

    def resize(self, window: int) -> None:
        """Go on with another window: the sinks are kept, the frames beside them recomputed before the next block.

        With ``global_sink`` false that recomputation replaces the sinks, as at a prompt switch. Buffers and graphs
        stay, unless the window is larger than any before.
        """
        if window == self.window:
            return
        if window <= self.ring.capacity:
            self.ring.resize(window)
        else:
            self._grow(window)
        self.recache_due = self.position > 0

    def weights_changed(self) -> None:
        """The network has other weights: the prompt's keys and values, and the window's, are computed anew."""
        self.passes.weights_changed()
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
        self.history = history
        self.position += frames
        self.context_due = True
        self.encoded = None

    def _grow(self, window: int) -> None:
        passes = self._new_passes(window)
        passes.ring.take_sinks(self.ring)
        if self.passes.cross is not None:
            passes.set_prompt(self.passes.cross)
        self.passes = passes

    def _new_passes(self, window: int) -> Passes:
        return Passes(self._model, self._new_ring(window=window), self._like, self._new_graphs())

    def _new_noise(self) -> BlockNoise | VideoNoise:
        if self.total_frames is None:
            return BlockNoise(self.seed, self._like)
        return VideoNoise(self.seed, self._like, self.total_frames)
