"""The engine: prompts in, blocks of pixel frames out. It owns the weights, the order of work and the device's time."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from os import PathLike

import torch
from torch import Tensor

from ..config import BLOCK_FRAMES, PIXELS_PER_TOKEN, OptimizationConfig
from ..kernels.registry import forced
from ..text import blend as blending
from ..text.prompt_cache import PromptCache
from ..vae.backends import codec_for
from ..weights.load import check, check_loras, load_generator, load_text_encoder, load_vae, refill_generator
from ..weights.locate import locate
from ..weights.user_lora import UserLora
from .graphs import Eager, GraphCache
from .recache import plan_recache
from .request import BlockRequest, check_seed
from .sampler import make_schedule
from .stream import Stream
from .timing import BlockTimes
from .video_input import prepare_video

log = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]
HOT_FIELDS = ("denoising_steps", "step_schedule", "global_sink", "precision", "local_attn_size", "use_cuda_graphs")


class LongLiveEngine:
    """LongLive-1.3B as a stream: ``generate_block(BlockRequest("a fox")) -> uint8 [T, H, W, 3]``, T = 9, then 12.

    model_path: a folder of LongLive's or scope's layout, or ``"tiny"`` for the built-in model.
    config: an OptimizationConfig; its fields are read at construction, and by each new stream.
    device: None takes CUDA where there is one.
    progress: called as (what, done, total) while weights load.
    loras: UserLoras to merge into the weights, beside LongLive's own.

    Raises FileNotFoundError or CheckpointError naming the file before anything reaches the device. One engine may hold
    several streams; calls from several threads take turns on the device.
    """

    def __init__(
        self,
        model_path: str | PathLike,
        config: OptimizationConfig | None = None,
        device: str | torch.device | None = None,
        progress: Progress | None = None,
        loras: Sequence[UserLora] = (),
    ):
        forced()  # raises for a LONGLIVE_BACKEND that is none
        self.config = config or OptimizationConfig()
        self.device = _device(device)
        self.dtype = _dtype(self.config.model_dtype, self.device)
        self._note_what_is_missing()
        started = time.perf_counter()
        self._files = locate(model_path, self.config.vae_type)
        check(self._files)
        check_loras(self._files, loras)
        stages = (
            (functools.partial(load_generator, loras=loras), "generator"),
            (load_vae, "VAE"),
            (load_text_encoder, "text encoder"),
        )
        self.model, self.vae, self.text = (
            load(self._files, self.device, self.dtype, progress=functools.partial(progress, what) if progress else None)
            for load, what in stages
        )
        self.codec = codec_for(self.vae)  # one for all streams: packed weights are made once
        self.load_seconds = time.perf_counter() - started
        self.prompts = PromptCache(
            self.text.encode, self.config.prompt_cache_size if self.config.use_prompt_cache else 0
        )
        self._lock = threading.RLock()
        self._stream: Stream | None = None
        self._enqueued = torch.cuda.Event() if self.device.type == "cuda" else None
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        self._loaded: set[Hashable] = set()  # what has run on the device, for streams' graphs
        if self.config.use_torch_compile:
            for block in self.model.blocks:
                block.compile(mode=self.config.compile_mode)

    @property
    def stream(self) -> Stream:
        """The stream of requests that name none, of the config's size and seed."""
        with self._lock:
            if self._stream is None:
                self._stream = self.open_stream()
            return self._stream

    def open_stream(
        self,
        height: int | None = None,
        width: int | None = None,
        seed: int | None = None,
        total_frames: int | None = None,
    ) -> Stream:
        """A new video of its own; what is not given is the config's.

        ``total_frames`` (latent) draws the noise in the published scripts' order, for a video of that length; without
        it each block has a generator of its own and the stream may go on for ever. Raises ValueError for a size that
        is not a multiple of 16.
        """
        size = {"height": height, "width": width}
        size = {name: getattr(self.config, name) if pixels is None else pixels for name, pixels in size.items()}
        for name, pixels in size.items():
            if not isinstance(pixels, int) or pixels < PIXELS_PER_TOKEN or pixels % PIXELS_PER_TOKEN:
                raise ValueError(f"{name} must be a multiple of {PIXELS_PER_TOKEN}, got {pixels!r}")
        seed = self.config.seed if seed is None else seed
        check_seed(seed)
        if total_frames is not None and (not isinstance(total_frames, int) or total_frames < 1):
            raise ValueError(f"total_frames must be a whole number of at least 1, got {total_frames!r}")
        with self._turn():
            stream = Stream(
                self.model,
                self.codec,
                self.config,
                **size,
                seed=seed,
                total_frames=total_frames,
                new_graphs=self._new_graphs,
            )
            self._streams.add(stream)
            return stream

    def configure(self, **changes) -> None:
        """Change fields of the config while streams are under way; weights stay.

        The fields of HOT_FIELDS may change, from the next block on; a new local_attn_size recomputes each open stream's
        window before that, without a cut, in the memory that it has unless the window grows beyond that. Raises
        ValueError for the other fields, which are fixed at construction, and for bad values; nothing has changed then.
        """
        with self._turn():
            before, config = self.config, dataclasses.replace(self.config, **changes)
            changed = changed_fields(before, config)
            self.config = config
            if "local_attn_size" in changed:
                self._resize_all(before)
            if "use_cuda_graphs" in changed:
                for stream in self._streams:
                    stream.passes.graphs = self._new_graphs()
                    stream.decoder.use_graphs(self._new_graphs)
                    stream.encoder.use_graphs(self._new_graphs)
            self._note_what_is_missing()

    def _resize_all(self, before: OptimizationConfig) -> None:
        """Give every stream the config's window. If one fails, all get their own back, and the config is ``before``."""
        had = [(stream, stream.window, stream.ring.capacity, stream.recache_due) for stream in self._streams]
        try:
            for stream, *_ in had:
                stream.resize(self.config.local_attn_size)
        except BaseException:
            self.config = before
            for stream, window, capacity, recache_due in had:
                stream.resize(window)
                if stream.ring.capacity == capacity:  # nothing was written: what the window held is still there
                    stream.recache_due = recache_due
            raise

    def warmup(self, blocks: int | None = None, stream: Stream | None = None) -> float:
        """Fill a stream's window, switch its prompt at every length of its history, then reset it; returns seconds.

        What is left to be compiled and captured when it first occurs is video input, and other numbers of steps.
        ``blocks`` is how many to make, at least enough to fill the window; ``stream`` is the default one unless given.
        Raises ValueError for one with ``total_frames``, which may end before that.
        """
        started = time.perf_counter()
        with self._turn():
            stream = stream or self.stream
            if stream.total_frames is not None:
                raise ValueError("stream must have no total_frames to be warmed up")
            blocks = max(blocks or 0, -(-stream.window // BLOCK_FRAMES) + 2)  # one past a full window, a recache
            try:
                self._warm(stream, blocks)
                self.synchronize()
            finally:
                stream.reset()
                stream.timer.clear()
                self.prompts.hits = self.prompts.misses = 0
        return time.perf_counter() - started

    def _warm(self, stream: Stream, blocks: int) -> None:
        prompt = "warm-up"
        for i in range(blocks):
            last = i == blocks - 1
            request = BlockRequest(f"{prompt}!" if last else prompt)  # the last one recaches
            self.generate_block(request, stream, first_latent_only=last)
        self.rest_of_block(stream)
        # Recaches within the first window, or of a smaller one.
        for frames in range(2 * BLOCK_FRAMES, stream.window + 1, BLOCK_FRAMES):
            stream.ring.seek(0, frames)
            stream.passes.clean(torch.zeros(frames, *stream.latent_shape, dtype=self.dtype, device=self.device))

    def generate_block(
        self, request: BlockRequest, stream: Stream | None = None, first_latent_only: bool = False
    ) -> Tensor:
        """The next pixel frames, uint8 [T, H, W, 3] on the device: 9 at first (13 from video), then 12.

        ``first_latent_only`` gives the first of them, 1 or 4, as soon as they can be had; ``rest_of_block`` the others,
        which are given up when the next block is asked for instead.

        Does not wait for the device, unless the noise depends on the video's motion. After an error the same request
        may be made again: nothing is lost, unless the VAE failed, whose state is then gone; the stream begins anew.
        """
        with self._turn():
            stream = stream or self.stream
            self._begin(stream, request)
            if stream.undecoded:
                self.rest_of_block(stream)
            with _untimed_if_it_fails(stream):
                latents = self._generate(stream, request)
                history = stream.history_with(latents)  # whatever may fail comes before the decoder moves on
                frames = self._decode(stream, latents[:1] if first_latent_only else latents)
                stream.keep(history, len(latents))
                return self._hand_out(stream, frames, len(latents) - 1 if first_latent_only else 0)

    def rest_of_block(self, stream: Stream | None = None) -> Tensor:
        """The frames that ``generate_block`` left out, uint8 [T, H, W, 3]. Raises RuntimeError if there are none."""
        with self._turn():
            stream = stream or self.stream
            if not stream.undecoded:
                raise RuntimeError("no frames of the last block are left")
            with _untimed_if_it_fails(stream):
                frames = self._decode(stream, stream.history[-stream.undecoded :], "decode_rest")
                return self._hand_out(stream, frames, 0)

    def reset(self, stream: Stream | None = None, seed: int | None = None) -> None:
        """Forget a stream's frames; weights, prompt cache and config stay."""
        if seed is not None:
            check_seed(seed)
        with self._turn():
            (stream or self.stream).reset(seed)

    def set_loras(self, loras: Sequence[UserLora]) -> None:
        """Give LoRAs other scales, in every stream from its next block on, which recomputes its window first.

        Their weights are written anew from the files, so that nothing drifts. ``loras`` must name all that are merged,
        at scale 0 if they are to go. Raises as ``weights.load.refill_generator``.
        """
        with self._turn():
            self.synchronize()
            refill_generator(self.model, self._files, loras)
            for stream in self._streams:
                stream.weights_changed()

    def resize(self, stream: Stream, window: int) -> None:
        """Go on with another attention window (latent frames) in one stream, from its next block on, without a cut.

        Raises ValueError for a window that the config could not have.
        """
        dataclasses.replace(self.config, local_attn_size=window)
        with self._turn():
            stream.resize(window)

    def block_times(self, stream: Stream | None = None) -> list[BlockTimes]:
        """Times of the blocks that the device has finished, oldest first; may be called while a block is made."""
        stream = stream or self._stream
        return stream.timer.collect() if stream else []

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @property
    def cuda_graphs_active(self) -> bool:
        """Whether the default stream's passes are replayed from CUDA graphs."""
        return self._stream is not None and self._stream.cuda_graphs_active

    def _new_graphs(self) -> GraphCache | Eager:
        if not self.config.use_cuda_graphs:
            return Eager()
        if self.device.type != "cuda" or self.config.use_torch_compile:
            log.info("no CUDA graphs: %s", "torch.compile is used" if self.config.use_torch_compile else "no GPU")
            return Eager()
        return GraphCache(self.device, self._loaded)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """One caller at a time, on this engine's device, after what the callers before have enqueued there."""
        with self._lock, torch.no_grad():
            if self.device.type != "cuda":
                yield
                return
            with torch.cuda.device(self.device):
                self._enqueued.wait()
                try:
                    yield
                finally:
                    self._enqueued.record()

    def _note_what_is_missing(self) -> None:
        if self.config.precision == "fp8":
            _warn_once(f"precision fp8 is not available yet: linears run in {self.dtype}")
        if self.config.use_async_vae:
            # Measured: both are limited by the card's power, and together take as long as one after the other.
            _warn_once("use_async_vae gains nothing and is not done: a block is decoded after its denoising")

    def _begin(self, stream: Stream, request: BlockRequest) -> None:
        """Take over what a request says about where the stream stands."""
        if request.reset:
            stream.reset(request.seed)
        elif request.restart or (self.config.restart_at is not None and stream.position >= self.config.restart_at):
            stream.restart(request.seed)
        elif request.seed is not None:
            stream.reseed(request.seed)
        from_video = request.video is not None
        if stream.position and from_video != stream.from_video:
            stream.restart_vae()
        stream.from_video = from_video

    def _generate(self, stream: Stream, request: BlockRequest) -> Tensor:
        self._follow_prompt(stream, request)
        self._settle(stream)
        return self._denoise(stream, request)

    def _decode(self, stream: Stream, latents: Tensor, stage: str = "decode") -> Tensor:
        with stream.timer.stage(stage), _reset_if_it_fails(stream):
            return stream.decoder.decode_uint8(latents)

    def _hand_out(self, stream: Stream, frames: Tensor, undecoded: int) -> Tensor:
        stream.given += len(frames)
        stream.undecoded = undecoded
        if not undecoded:
            stream.timer.block_done(stream.given)
            stream.given = 0
        return frames

    def _follow_prompt(self, stream: Stream, request: BlockRequest) -> None:
        target = None
        if stream.prompt.wants(request):
            with stream.timer.stage("text"):
                target = self._embed(request)
        stream.prompt_due |= stream.prompt.follow(request, target)
        if stream.prompt_due:
            with stream.timer.stage("text"):
                stream.passes.set_prompt(self.model.cross_cache(stream.prompt.embedding))
            stream.prompt_due, stream.recache_due = False, stream.position > 0

    def _embed(self, request: BlockRequest) -> Tensor:
        texts, weights = zip(*request.pairs, strict=True)
        embeddings = [self.prompts.get(text) for text in texts]
        if request.blend == "slerp" and len(embeddings) == 2:
            return blending.slerp(*embeddings, blending.normalise(weights)[1])
        return blending.blend(embeddings, weights)

    def _settle(self, stream: Stream) -> None:
        """Bring the ring up to date: the last block's clean pass, or a recache, which makes that pass superfluous."""
        if stream.recache_due:
            self._recache(stream)
        elif stream.context_due:
            with stream.timer.stage("context"):
                stream.passes.clean(stream.history[-stream.ring.frames :])
        stream.recache_due = stream.context_due = False

    def _recache(self, stream: Stream) -> None:
        plan = plan_recache(stream.position, stream.window, stream.ring.sink, self.config.global_sink)
        with stream.timer.stage("recache"):
            stream.ring.seek(*plan)
            stream.passes.clean(stream.history[-plan.frames :])

    def _denoise(self, stream: Stream, request: BlockRequest) -> Tensor:
        nominal, from_video = request.denoising_steps or self.config.denoising_steps, request.video is not None
        frames = stream.block_frames(from_video)
        inputs = stream.passes.inputs(frames, len(nominal))
        inputs.draw(stream.noise.block(stream.position, frames))
        first = None
        if from_video:
            with stream.timer.stage("encode"):
                first = self._start_from_video(stream, request, inputs.noise[0])
        inputs.set_schedule(tuple(make_schedule(nominal, self.config.step_schedule, first)))
        with stream.timer.stage("denoise"):
            return stream.passes.denoise(stream.position, inputs)

    def _start_from_video(self, stream: Stream, request: BlockRequest, start: Tensor) -> float:
        """Mix the encoded video into the start noise, in place; the first timestep."""
        if stream.encoded is None:
            stream.encoded = self._encode(stream, request)
        latents, scale = stream.encoded
        start.copy_(torch.lerp(latents, start, scale))
        return float(int(1000 * scale) - 100)

    def _encode(self, stream: Stream, request: BlockRequest) -> tuple[Tensor, float]:
        # 13 pixel frames become 4 latents on a fresh stream, 12 become 3 later.
        count = 12 + (stream.position == 0)
        video = prepare_video(request.video, count, stream.height, stream.width, self.dtype, self.device)
        scale = request.noise_scale
        if request.noise_from_motion:
            scale = stream.motion.noise_scale(video, scale)
        with _reset_if_it_fails(stream):
            return stream.encoder.encode(video), scale


def changed_fields(before: OptimizationConfig, after: OptimizationConfig, running: str = "engine") -> list[str]:
    """The engine's fields in which two configs differ. Raises ValueError for one that is fixed while it runs."""
    names = (field.name for field in dataclasses.fields(OptimizationConfig))
    changed = [name for name in names if getattr(before, name) != getattr(after, name)]
    if fixed := [name for name in changed if name not in HOT_FIELDS]:
        raise ValueError(f"{', '.join(fixed)} cannot change while the {running} runs; {', '.join(HOT_FIELDS)} can")
    return changed


@contextlib.contextmanager
def _untimed_if_it_fails(stream: Stream) -> Iterator[None]:
    try:
        yield
    except BaseException:
        stream.timer.discard()
        raise


@contextlib.contextmanager
def _reset_if_it_fails(stream: Stream) -> Iterator[None]:
    """A VAE that fails half-way has lost its place in the video, and with it the stream."""
    try:
        yield
    except BaseException:
        stream.reset()
        raise


@functools.cache
def _warn_once(text: str) -> None:
    log.warning(text)


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        log.info("device: %s", device)
    try:
        device = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device must be cuda, cuda:N or cpu, got {device!r}") from None
    if device.type not in ("cuda", "cpu"):
        raise ValueError(f"device must be cuda, cuda:N or cpu, got {str(device)!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device must be one that is here, got {str(device)!r}: torch finds no CUDA")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
        log.info("model_dtype: %s", name)
    return getattr(torch, name)
