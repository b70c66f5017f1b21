"""The engine: a model's weights, the devices that they are on, and whose turn it is there."""

from __future__ import annotations

import dataclasses
import functools
import gc
import logging
import time
import weakref
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import TypeVar, Unpack, cast

import torch
from torch import Tensor

from ..config import CHANGEABLE, OptimizationConfig, StreamSettings
from ..kernels.registry import forced
from ..keywords import ConfigFields, StreamFields
from ..plain import flag, whole
from ..text.prompt_cache import PromptCache
from ..vae.autoencoder import Autoencoder
from ..vae.backends import codec_for, weights_dtype
from ..vae.codec import Codec
from ..video_time import blocks_of
from ..weights.hub import ensure
from ..weights.load import (
    check,
    check_loras,
    keep_unmerged,
    load_control,
    load_generator,
    load_vae,
    refill_generator,
)
from ..weights.locate import ModelFiles, locate, native_size
from ..weights.text import BytesDone, check_text, load_text_encoder
from ..weights.unmerged import Unmerged
from ..weights.user_lora import UserLora
from . import block
from .closing import Closable
from .control_input import Grey
from .devices import Devices, default_dtype
from .graphs import GraphSwitch
from .loading import Loading, Progress
from .memory_plan import check_fits, gpu_of, leaner_plans, plan_for, with_another_vae
from .memory_shares import Asked, MemoryPlan
from .ranks import Ranks, made_on_all_ranks, on_all_ranks
from .request import BlockRequest, check_seed
from .resume import resume
from .snapshot import Snapshot
from .stream import Networks, Stream
from .timing import BlockTimes

T = TypeVar("T")
log = logging.getLogger(__name__)


class LongLiveEngine(Closable):
    """LongLive-1.3B as a stream: ``generate_block(BlockRequest("a fox")) -> uint8 [T, H, W, 3]``, T = 9, then 12.

    model_path: a folder of LongLive's or scope's layout, ``"tiny"`` for the built-in model, or ``"ORG/NAME"`` or
        ``"ORG/NAME@REVISION"`` of the hub, of which what this machine lacks is downloaded; what exists is a path.
    config: an OptimizationConfig; its StreamSettings are those of streams that are opened without others.
    device: None takes CUDA where there is one.
    progress: called as (what, done, total) while weights are downloaded and load, by one thread at a time.
    loras: UserLoras to merge into the weights, beside LongLive's own.
    vae_device, text_device: other GPUs for the VAE and the text encoder; None is ``device``. A block is then decoded
        while the next one is made. ``text_device="cpu"`` is ``text_residence="cpu"``.
    ranks: the processes among which each stream's tokens are divided, and this one's place; every one makes such an
        engine. None is this process alone. Raises ValueError beside use_torch_compile.

    Raises FileNotFoundError or CheckpointError naming the file, and MemoryShort where no choice that the config leaves
    fits a GPU, before anything reaches the device. ``memory_plan`` says what was chosen; memory_fallback, what was
    given up because memory ran out all the same: empty if nothing was; ``loras``, which are merged now, and ``merges``,
    how often ``set_loras`` has merged some. One engine may hold several streams; calls from several threads take turns
    on the device. ``close`` it, or use it as a context, where the memory is wanted for something else.
    """

    @made_on_all_ranks
    def __init__(
        self,
        model_path: str | PathLike,
        config: OptimizationConfig | None = None,
        device: str | torch.device | None = None,
        progress: Progress | None = None,
        loras: Sequence[UserLora] = (),
        vae_device: str | torch.device | None = None,
        text_device: str | torch.device | None = None,
        *,
        ranks: Ranks | None = None,
    ):
        forced()  # raises for a LONGLIVE_BACKEND that is none
        _expect("config", config, OptimizationConfig)
        _expect("ranks", ranks, Ranks)
        ranks = ranks or Ranks()
        if progress is not None and not callable(progress):
            raise TypeError(f"progress must be a function of (what, done, total), got {type(progress).__name__}")
        _check_loras(loras)
        self._asked = OptimizationConfig.of(config or OptimizationConfig()).sized(native_size(model_path))
        ranks.agree(
            {
                **dataclasses.asdict(OptimizationConfig.of(self._asked)),
                "loras": [(str(lora.path), lora.scale) for lora in loras],
            }
        )
        self.config = dataclasses.replace(self._asked, low_memory=bool(self._asked.low_memory))
        self._plan: MemoryPlan | None = None
        self.memory_fallback = ""
        if ranks.count > 1 and self.config.use_torch_compile:
            raise ValueError(f"use_torch_compile must be false on {ranks.count} ranks, got true")
        device, residence = ranks.device_for(device), self.config.text_residence
        self.devices = Devices(device, residence, vae_device, text_device, ranks)
        self.dtype = default_dtype(self.config.model_dtype, self.device)
        ensure(model_path, self.config.vae_type, self.config.text_precision, self.config.control, progress)
        started = time.perf_counter()
        self.files = locate(model_path, self.config.vae_type, self.config.control)
        check(self.files, self.config.control)
        check_loras(self.files, loras, self.config.control)
        check_text(self.files, self.devices.embeddings, **self._text_keywords())
        if self.device.type == "cuda":
            self._follow_plan()

        def loader(load: Callable, device: torch.device, **keywords):
            return functools.partial(load, self.files, device, self.dtype, **keywords)

        with self.devices.own_modes(), Loading(self.devices, progress) as loading:
            text_loader = loader(load_text_encoder, self.devices.embeddings, **self._text_keywords())
            text = loading.beside("text encoder", text_loader)
            merged = {"loras": loras, "int8_only": bool(self.config.low_memory)}
            generator = loader(load_generator, self.devices.model, control=self.config.control, **merged)
            self.model, self.control = loading.here("generator", generator), None
            if self.config.control:
                self.control = loading.here("control", loader(load_control, self.devices.model, **merged))
            self.vae = loading.here("VAE", functools.partial(self._read_vae, self.files))
            self.text = text.result()
            in_8_bits = self.config.precision != "bf16"
            # One for all streams: it packs weights once.
            in_parts = self._plan is not None and self._plan.choices.vae_in_parts
            self._codec_how = bool(self.config.low_memory), self.config.vae_precision, in_8_bits, in_parts
            self.codec = self._codec_for(self.vae)
        self.synchronize()  # places with an order of their own read what is loaded
        self.devices.release()  # what weights passed through on their way
        self.load_seconds = time.perf_counter() - started
        self.prompts = PromptCache(self._encode, self.config.prompt_cache_size if self.config.use_prompt_cache else 0)
        self._grey = Grey()
        self.loras, self.merges = tuple(loras), 0
        self._model_path, self._vaes = model_path, {self.config.vae_type: (self.codec, self._grey)}
        self._mixed = False  # weights of other LoRA scales beside each other
        self._unmerged: Unmerged | None = None
        self._stream: Stream | None = None
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        # torch.compile makes graphs of its own, or none.
        possible = ranks.capturable and not self.config.use_torch_compile
        self._new_switch = functools.partial(GraphSwitch, self.device, set(), possible)
        if self.config.use_torch_compile:
            for layer in self.model.blocks:
                layer.compile(mode=self.config.compile_mode)

    @property
    def memory_plan(self) -> MemoryPlan:
        """What the engine and one stream take in memory, and what was chosen so that they fit."""
        if self._plan is None:
            self._plan = self._planned()
        return self._plan

    @property
    def model_name(self) -> str:
        """The model's, without the folders above it."""
        path = Path(self._model_path)
        return path.name if path.name not in ("", "..") else path.resolve().name

    @property
    def device(self) -> torch.device:
        """The transformer's device, on which latents live; frames live on ``devices.vae``."""
        return self.devices.model

    @property
    def stream(self) -> Stream:
        """The stream of requests that name none, with the config's settings."""
        with self.devices.turn():
            if self._stream is None or self._stream.closed:
                self._open_default()
            assert self._stream
            return self._stream

    @on_all_ranks
    def _open_default(self) -> None:
        self._stream = self.open_stream()

    @on_all_ranks
    def open_stream(
        self,
        height: int | None = None,
        width: int | None = None,
        seed: int | None = None,
        total_frames: int | None = None,
        snapshot: Snapshot | None = None,
        **settings: Unpack[StreamFields],
    ) -> Stream:
        """A new video of its own. ``settings`` are fields of StreamSettings; what is not given is the config's.

        ``total_frames`` (latent) draws the noise in the published scripts' order, for a video of that length; without
        it each block has a generator of its own and the stream may go on for ever. ``snapshot`` goes on where another
        stream was, with its settings (see ``Snapshot``), and allows no other argument. Raises ValueError naming what
        does not fit, and for a snapshot's VAE what ``use_vae`` raises, before anything changes.
        """
        own = {"height": height, "width": width, "seed": seed}
        changes = {**settings, **{name: value for name, value in own.items() if value is not None}}
        if snapshot is not None:
            others = [*changes, *(["total_frames"] if total_frames is not None else [])]
            return self._resumed(snapshot, sorted(others))
        if total_frames is not None:
            total_frames = whole("total_frames", total_frames, 1)
        chosen = dataclasses.replace(StreamSettings.of(self.config), **changes)
        with self.devices.turn():
            return self._new_stream(chosen, total_frames, self.config.vae_type)

    def _resumed(self, snapshot: Snapshot, others: list[str]) -> Stream:
        _expect("snapshot", snapshot, Snapshot)
        if others:
            raise ValueError(f"snapshot brings its own settings: {', '.join(others)} must not be given beside it")
        snapshot.check_fits(self.model.config, self.device)
        with self.devices.turn():
            state = snapshot.state
            self._load_vae(state.vae_type)
            stream = self._new_stream(snapshot.settings, state.total_frames, state.vae_type)
            resume(stream, snapshot)
            return stream

    def _new_stream(self, settings: StreamSettings, total_frames: int | None, vae_type: str) -> Stream:
        codec, grey = self._vaes[vae_type]
        networks = Networks(self.model, codec, self.prompts, self.control, grey, vae_type)
        named = self.config.enable_profiling
        stream = self._or_leaner(
            lambda: Stream(networks, settings, self.devices, self._new_switch(), total_frames, named)
        )
        self._streams.add(stream)
        self.devices.ranks.enroll(stream)
        return stream

    @on_all_ranks
    def configure(self, **changes: Unpack[ConfigFields]) -> None:
        """``Stream.configure`` of the default stream; streams that are opened later begin with these settings too."""
        with self.devices.turn():
            config = self.config.changed(**changes)
            own = {name: value for name, value in changes.items() if name in CHANGEABLE}
            self.stream.configure(**cast(ConfigFields, own))
            self.config = config

    @on_all_ranks
    def warmup(self, blocks: int | None = None, stream: Stream | None = None) -> float:
        """Fill a stream's window, switch its prompt at every length of its history, then reset it; returns seconds.

        What is left to be compiled and captured when it first occurs is video input, and other numbers of steps.
        Memory that is needed once is given back to the device.
        ``blocks`` is how many to make, at least enough to fill the window; ``stream`` is the default one unless given.
        Raises ValueError for one with ``total_frames``, which may end before that.
        """
        started = time.perf_counter()
        if blocks is not None:
            blocks = whole("blocks", blocks, 0)
        with self.devices.turn():
            stream = self._one(stream)
            if stream.total_frames is not None:
                raise ValueError("stream must have no total_frames to be warmed up")
            blocks = max(blocks or 0, blocks_of(stream.ring.window) + 2)  # one past a full window, a recache
            networks = stream.networks
            try:
                stream.networks = networks._replace(prompts=PromptCache(self._encode, 2))
                self._or_leaner(lambda: block.warm_up(stream, blocks))
                self.synchronize()
                self.devices.release()
            finally:
                stream.networks = networks
                stream.reset()
                stream.timer.clear()
        return time.perf_counter() - started

    @on_all_ranks
    def generate_block(
        self, request: BlockRequest, stream: Stream | None = None, first_latent_only: bool = False
    ) -> Tensor:
        """The next pixel frames, uint8 [T, H, W, 3] on the VAE's device: 9 at first (13 from video), then 12.

        ``first_latent_only`` gives the first of them, 1 or 4, as soon as they can be had; ``rest_of_block`` the others.
        If the next block is asked for instead, the others are then decoded (the VAE needs them) but not returned.

        Does not wait for a device, unless the noise depends on the video's motion, or the block is made in 8 bits: that
        it is finite is seen before it is decoded. A VAE on a GPU of its own is not waited for then either. After an
        error the same request may be made again: nothing is lost, unless the VAE failed, whose state is then gone; the
        stream begins anew. Where memory ran out it does not: what the VAE has seen is shown to it again; and the first
        time in an engine's life the block is tried once more, with the next leaner of its memory plans
        (``memory_fallback``).
        Raises RuntimeError after a ``set_loras`` that failed half-way.
        """
        if not isinstance(request, BlockRequest):
            raise TypeError(f"request must be a BlockRequest, got {type(request).__name__}")
        first_latent_only = flag("first_latent_only", first_latent_only)
        with self.devices.turn():
            if self._mixed:
                raise RuntimeError("the weights are mixed, set_loras failed half-way: call it again")
            stream = self._one(stream)
            return self._or_leaner(lambda: block.make_block(stream, request, first_latent_only))

    @on_all_ranks
    def rest_of_block(self, stream: Stream | None = None) -> Tensor:
        """The frames that ``generate_block`` left out, uint8 [T, H, W, 3]. Raises RuntimeError if there are none."""
        with self.devices.turn():
            stream = self._one(stream)
            return self._or_leaner(lambda: block.rest_of_block(stream))

    @on_all_ranks
    def reset(self, stream: Stream | None = None, seed: int | None = None) -> None:
        """Forget a stream's frames; weights, prompt cache and settings stay."""
        if seed is not None:
            seed = check_seed(seed)
        with self.devices.turn():
            self._one(stream).reset(seed)

    @on_all_ranks
    def use_vae(self, vae_type: str, stream: Stream | None = None) -> None:
        """Let a stream's blocks be decoded, and its video encoded, by another VAE (``vae_type`` as in the config), from
        its next block on: without a cut, but that block has nine frames again.

        It is loaded when it is first asked for, and stays; the memory plan then counts it. Raises ValueError,
        FileNotFoundError and CheckpointError as an engine's construction, and MemoryShort where it does not fit beside
        what is there, before anything is loaded.
        """
        with self.devices.turn():
            stream = self._one(stream)
            self._load_vae(vae_type)
            stream.use_codec(*self._vaes[vae_type], vae_type)

    def _load_vae(self, vae_type: str) -> None:
        if vae_type not in self._vaes:
            files = locate(self._model_path, vae_type)
            self.devices.release()  # or what torch keeps of it would not count as free
            plan = with_another_vae(self.memory_plan, files)
            codec = self._codec_for(self._read_vae(files))
            codec.in_parts = self.codec.in_parts
            self._vaes[vae_type] = codec, Grey()
            self._plan = plan
            self.synchronize()
            self.devices.release()

    @on_all_ranks
    def set_loras(self, loras: Sequence[UserLora]) -> None:
        """Give LoRAs other scales, in every stream from its next block on, which recomputes its window and sinks first.

        Their weights are written anew from the files, or from what ``keep_loras`` has kept, so that nothing drifts.
        ``loras`` must name all that are merged, at scale 0 if they are to go. Raises as
        ``weights.load.refill_generator``; after a RuntimeError no block is made until this has worked.
        """
        _check_loras(loras)
        with self.devices.turn():
            self.synchronize()
            if self._unmerged is not None and not self._unmerged.covers(loras):
                self.keep_loras(loras)
            try:
                refill_generator(self.model, self.files, loras, branch=self.control, unmerged=self._unmerged)
                for stream in self._open:
                    stream.weights_changed()
            except (ValueError, OSError):  # before anything was written
                raise
            except BaseException:
                self._mixed = True
                raise
            self._mixed, self.loras, self.merges = False, tuple(loras), self.merges + 1

    @on_all_ranks
    def keep_loras(self, loras: Sequence[UserLora]) -> int:
        """Copy into memory what any scales of ``loras`` are merged from: from here on ``set_loras`` reads no file, as
        long as these stay as they are, and takes less than a block's time at full size.

        Returns the copies' bytes: up to 3.5 GiB for LoRAs of all layers of the published model, and the LoRAs
        themselves. They lie on a GPU that has 16 GiB to spare besides, until memory runs out there, otherwise in host
        memory. No ``loras`` give the memory back. Raises as ``set_loras``, before anything changes.
        """
        _check_loras(loras)
        with self.devices.turn():
            control = self.control is not None
            unmerged = keep_unmerged(self.model, self.files, loras, control) if loras else None
            self._unmerged = unmerged
            return unmerged.nbytes if unmerged else 0

    def follow(self) -> None:
        """On ranks that rank 0 leads: make its calls, until it closes its ranks.

        Raises RankError where the ranks are no longer alike; RuntimeError on rank 0, and where that does not lead.
        """
        self.devices.ranks.follow(self)

    def block_times(self, stream: Stream | None = None) -> list[BlockTimes]:
        """Times of the blocks that the device has finished, oldest first; may be called while a block is made."""
        stream = self._stream if stream is None else self._one(stream)
        return stream.timer.collect() if stream else []

    def _follow_plan(self) -> None:
        """Choose what fits a GPU. Raises MemoryShort."""
        self.devices.release()
        self._plan = plan = self._planned()
        check_fits(plan)
        log.info("memory: %s", plan)
        self.devices.move_text(plan.choices.text_residence)
        self.config = dataclasses.replace(self.config, low_memory=plan.choices.low_memory)

    def _planned(self) -> MemoryPlan:
        """The plan for what is free now."""
        devices = self.devices
        where = self.device, devices.vae, devices.text_asked
        return plan_for(Asked(self.files, self._asked, *where, devices.ranks))

    def _text_keywords(self) -> dict:
        chosen = self._plan.choices.text_precision if self._plan else self.config.text_precision
        kept = self.config.keep_text_int8
        return {"precision": chosen, "residence": self.devices.text_residence, "keep": kept}

    def _read_vae(self, files: ModelFiles, progress: BytesDone | None = None) -> Autoencoder:
        dtype = weights_dtype(self.dtype, self.devices.vae, self.config.vae_precision)
        return load_vae(files, self.devices.vae, dtype, progress=progress)

    def _codec_for(self, vae: Autoencoder) -> Codec:
        codec = codec_for(vae, *self._codec_how, dtype=self.dtype)
        if codec.copies:
            vae.cpu()
        return codec

    def _encode(self, prompts: list[str]) -> Tensor:
        """Embeddings on the transformer's device."""
        with self.devices.at_text.here():
            made = self.text.encode(prompts)
        return self.devices.at_model.bring(made, self.devices.at_text)

    def _or_leaner(self, work: Callable[[], T]) -> T:
        """``work``; where memory runs out, once in an engine's life, again with a leaner plan. Not on several ranks, of
        which it may run out on one alone."""
        if self.devices.ranks.count > 1:
            return work()
        try:
            return work()
        except torch.OutOfMemoryError as error:
            short = gpu_of(error)
            if not self._drop_unmerged(short) and (self.memory_fallback or not self._take_leaner(short)):
                raise
        # Here the error is gone, and with it what its frames held.
        self.devices.release()
        return work()

    def _drop_unmerged(self, short: int | None) -> bool:
        """Give back what is kept on the GPU, ``short`` where it is known, for other scales of LoRAs; False if nothing
        is."""
        if self._unmerged is None or self._unmerged.device.type != "cuda":
            return False
        if short not in (None, self.device.index):
            return False
        self._unmerged = None
        log.warning("memory has run out; from here on other scales of LoRAs are merged from the files")
        return True

    def _take_leaner(self, short: int | None) -> bool:
        """Go over to the next leaner plan that can still be reached, and is leaner on the GPU ``short`` if that is
        known; False if there is none."""
        self.devices.release()
        for plan in leaner_plans(self.memory_plan, short):
            try:
                self._go_over_to(plan)
            except (RuntimeError, OSError) as error:
                log.warning("memory has run out, and %s is not possible: %s", plan.costs[-1], error)
                continue
            self._plan, self.memory_fallback = plan, plan.costs[-1]
            log.warning("memory has run out; from here on: %s", self.memory_fallback)
            return True
        return False

    def _go_over_to(self, plan: MemoryPlan) -> None:
        """Make what a leaner plan chooses true of what is loaded."""
        before, after = self.memory_plan.choices, plan.choices
        if after.text_residence != before.text_residence:
            keywords = self._text_keywords() | {"residence": after.text_residence, "keep": False}
            self.text = load_text_encoder(self.files, self.devices.embeddings, self.dtype, **keywords)
            self.synchronize()
            self.devices.move_text(after.text_residence)
        if after.low_memory != before.low_memory:
            for network in filter(None, (self.model, self.control)):
                network.hold_int8()
                network.hold_int8_only()
            for stream in self._open:
                stream.weights_moved()
            self.config = dataclasses.replace(self.config, low_memory=True)
        for codec, _ in self._vaes.values():
            codec.in_parts = after.vae_in_parts

    def close(self) -> None:
        """Give all memory back, that of its streams too; waits for a block under way. A RuntimeError is then what all
        methods of the engine and its streams raise, but this one. Of several ranks, each closes its own."""
        with self.devices.turn():
            if self.closed:
                return
            self.synchronize()
            for stream in self._open:
                stream.close()
            self._let_go("devices")
        gc.collect()  # what refers to itself
        self.devices.release()

    @property
    def _open(self) -> list[Stream]:
        """Its streams that are not closed."""
        return [stream for stream in self._streams if not stream.closed]

    def _one(self, stream: Stream | None) -> Stream:
        """``stream``, or the default one. Raises TypeError and ValueError for what is no stream of this engine."""
        _expect("stream", stream, Stream)
        if stream is None:
            return self.stream
        if stream not in self._streams and not (stream.closed and stream.devices is self.devices):
            raise ValueError("stream must be one that this engine has opened")
        return stream

    def synchronize(self) -> None:
        """Wait for the device."""
        self.devices.synchronize()


def _expect(name: str, value: object, kind: type) -> None:
    """Raises TypeError naming the argument unless ``value`` is None or of that kind."""
    if not isinstance(value, kind | None):
        raise TypeError(f"{name} must be of the class {kind.__name__}, got {type(value).__name__}")


def _check_loras(loras: Sequence[UserLora]) -> None:
    if not isinstance(loras, list | tuple) or not all(isinstance(lora, UserLora) for lora in loras):
        raise TypeError(f"loras must be a list of UserLoras, got {loras!r}")
