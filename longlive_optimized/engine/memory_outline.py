"""What an engine will take in memory, told before a weight is read.

Nothing is allocated: the code that allocates runs on torch's meta device, and the storages that it makes are counted.
What no storage tells (CUDA's context, the pools of graphs, temporaries of a pass) is measured: ``MEASURED``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import LATENT_SCALE, MAX_WINDOW, PIXELS_PER_TOKEN, StreamSettings
from ..model.control import ControlBranch
from ..model.transformer import Transformer
from ..text.footprint import Footprint
from ..text.prompt_cache import PromptCache
from ..vae.autoencoder import Autoencoder
from ..vae.backends import codec_for, weights_dtype
from ..vae.codec import CausalEncoder, Codec
from ..vae.packed.decode import PackedDecoder
from ..vae.packed.encode import PackedEncoder
from ..video_time import BLOCK_FRAMES, BLOCK_PIXEL_FRAMES
from ..weights.load import outline
from ..weights.text import text_footprint
from .devices import Devices, default_dtype
from .graphs import GraphSwitch
from .live_bytes import AsKernels, passing_bytes, storage_bytes
from .memory_shares import MEASURED, Asked, Choices, DeviceMemory, MemoryPlan
from .stream import Networks, Stream

META = torch.device("meta")


class Outline:
    """An engine's networks and stream as shapes, for any choices. devices: those that it takes memory of, the
    transformer's first."""

    def __init__(self, asked: Asked):
        self.asked, self._config, self._device = asked, asked.config, asked.device
        self._vae_device = asked.vae_device or asked.device
        self.text_device = asked.text_device or asked.device
        beside = (each for each in (self._vae_device, self.text_device) if each.type == asked.device.type)
        self.devices = tuple(dict.fromkeys((asked.device, *beside)))
        self._dtype = default_dtype(asked.config.model_dtype, asked.device)
        self.dimensions, vae = outline(asked.files)
        of_vae = weights_dtype(self._dtype, self._vae_device, asked.config.vae_precision)
        self._vae = vae.to(of_vae)
        self._more_vaes = {each.vae_type: outline(each)[1].to(of_vae) for each in asked.more_vaes}
        self._of_transformer = functools.cache(self._transformer)
        self._of_videos, self._of_text = functools.cache(self._videos), functools.cache(self._text)

    def plan(
        self, chosen: Choices, available: Mapping[torch.device, int | None], costs: tuple[str, ...] = ()
    ) -> MemoryPlan:
        """What an engine with these choices takes."""
        videos = self._of_videos(chosen.low_memory, chosen.vae_in_parts)
        text = self._of_text(chosen.text_precision, chosen.text_residence)
        host = {name: video.on_host for name, video in videos.items()} | {"text encoder": text.host}
        on_gpu = self._device.type == "cuda"
        first, *others = (self._share(device, chosen, available.get(device)) for device in self.devices)
        own: dict[str, Any] = {field.name: getattr(first, field.name) for field in dataclasses.fields(first)}
        return MemoryPlan(
            **own,
            host={name: nbytes for name, nbytes in host.items() if nbytes and on_gpu},
            choices=chosen,
            costs=costs,
            asked=self.asked,
            others=tuple(others),
        )

    def _share(self, device: torch.device, chosen: Choices, available: int | None) -> DeviceMemory:
        """What lies on one of the devices, and what comes and goes there."""
        on_gpu = device.type == "cuda"
        parts, working, longest, video_input = {}, [0], 0, 0
        if device == self._device:
            longest = self._pass_bytes()
            parts |= self._of_transformer(chosen.low_memory)
            working.append(longest)
        if device == self._vae_device:
            videos = self._of_videos(chosen.low_memory, chosen.vae_in_parts)
            parts |= {name: each.weights + (0 if on_gpu else each.on_host) for name, each in videos.items()}
            video = _Video(*map(max, zip(*videos.values(), strict=True)))  # of each, that of the VAE which takes most
            parts["VAE's stream"] = video.stream
            parts |= {"control's encoder": video.control} if self._config.control else {}
            working.append(video.passing)
            video_input = video.encoder
        text = self._of_text(chosen.text_precision, chosen.text_residence)
        if device == self.text_device:
            parts["text encoder"] = text.gpu if on_gpu else text.host
            working.append(text.gpu_encoding)
        parts |= self._small(device)
        # What has an order of its own has memory of its own to work in.
        at_a_time = max(working) if device == self._device else sum(working)
        if not on_gpu:
            return DeviceMemory(device, parts, at_a_time, 0, 0, video_input, None)
        parts["workspaces"] = self._workspaces(chosen.low_memory)
        graphs = self._config.use_cuda_graphs and not self._config.use_torch_compile
        pool = int(MEASURED.pool_by_pass * longest) if graphs else 0
        kept = min(MEASURED.kept_most, int(MEASURED.kept_share * (sum(parts.values()) + at_a_time)))
        return DeviceMemory(device, parts, at_a_time, pool + kept, MEASURED.context, video_input, available)

    def _workspaces(self, low_memory: bool) -> int:
        if low_memory:
            return MEASURED.workspaces_low_memory
        return MEASURED.workspaces if self._config.precision == "bf16" else MEASURED.workspaces_int8

    def _small(self, device: torch.device) -> dict[str, int]:
        """What a stream and the engine keep beside networks and their state."""
        config, sizes = self._config, self.dimensions
        (height, width), item = config.size, self._dtype.itemsize
        latent = sizes.in_dim * (height // LATENT_SCALE) * (width // LATENT_SCALE) * item
        prompts = config.prompt_cache_size if config.use_prompt_cache else 1
        small = {}
        if device == self._device:
            small["prompts"] = prompts * sizes.text_len * sizes.text_dim * item
            small["history"] = (MAX_WINDOW + config.sink_size) * latent
        if device == self._vae_device:
            small["pictures"] = BLOCK_PIXEL_FRAMES * height * width * 3
        return small

    def _pass_bytes(self) -> int:
        """What comes and goes in the longest pass, a recache of a whole window.

        In the midst of a layer's FFN: the residual stream, two norms, queries, attention's and the product's results,
        and the FFN's inside; of several ranks a share. Or as the ring is written: all ranks' queries, keys and values,
        and queries, beside a share of that.
        """
        config, sizes = self._config, self.dimensions
        height, width = config.size
        tokens = config.local_attn_size * (height // PIXELS_PER_TOKEN) * (width // PIXELS_PER_TOKEN)
        in_ffn, shares = 6 * sizes.dim + sizes.ffn_dim, self.asked.ranks.count if self.asked.ranks else 1
        widest = in_ffn if shares == 1 else max(in_ffn // shares, 4 * sizes.dim + 5 * sizes.dim // shares)
        return tokens * widest * self._dtype.itemsize

    def _codec(self, vae: Autoencoder, low_memory: bool, in_parts: bool) -> Codec:
        in_8_bits = self._config.precision != "bf16"
        return codec_for(
            vae, low_memory, self._config.vae_precision, in_8_bits, in_parts, self._vae_device, self._dtype
        )

    def _transformer(self, low_memory: bool) -> dict[str, int]:
        """Its weights, and what a stream has for it."""
        config, sizes = self._config, self.dimensions
        devices = Devices("cpu")  # whatever is on the meta device,
        devices.model = self._device  # the stream may ask where it will run
        with _on_meta():
            model = Transformer(sizes, META, self._dtype, low_memory)
            control = ControlBranch(sizes, META, self._dtype, low_memory) if config.control else None
            networks = Networks(model, self._codec(self._vae, low_memory, False), PromptCache(_no_text, 0), control)
            stream = Stream(networks, StreamSettings.of(config), devices, GraphSwitch(META))
            stream.passes.set_prompt(torch.empty(sizes.text_len, sizes.text_dim, dtype=self._dtype, device=META))
            stream.passes.inputs(BLOCK_FRAMES, len(config.denoising_steps))
            for frames in range(BLOCK_FRAMES, config.local_attn_size + 1, BLOCK_FRAMES):
                stream.passes.buffer(frames)
        seen: set[int] = set()
        owners = {
            "transformer": [*model.parameters()],
            "transformer in int8": [*model.buffers()],
            "control": [*control.parameters()] if control else [],
            "control in int8": [*control.buffers()] if control else [],
            "ring": [stream.ring],
            "passes": [stream.passes],
        }
        counted = {name: storage_bytes(each, META, seen) for name, each in owners.items()}
        return {name: nbytes for name, nbytes in counted.items() if nbytes}

    def _videos(self, low_memory: bool, in_parts: bool) -> dict[str, _Video]:
        """By the name of its weights, the config's VAE first."""
        named = {"VAE": self._vae} | {f"VAE {name}": vae for name, vae in self._more_vaes.items()}
        return {name: self._video(vae, low_memory, in_parts) for name, vae in named.items()}

    def _video(self, vae: Autoencoder, low_memory: bool, in_parts: bool) -> _Video:
        """A VAE's weights, and what its two sides have and take for a block."""
        height, width = self._config.size
        rows, columns = height // LATENT_SCALE, width // LATENT_SCALE
        seen: set[int] = set()
        with _on_meta():
            codec, passing = self._codec(vae, low_memory, in_parts), 0
            decoder, encoder = codec.new_decoder((rows, columns), None), codec.new_encoder((height, width), None)
            if isinstance(decoder, PackedDecoder):
                decoder.out(torch.uint8)
                weights = [decoder.weights]
            else:  # their state is made as it is needed
                z = torch.empty(BLOCK_FRAMES, rows, columns, self.dimensions.in_dim, dtype=self._dtype, device=META)
                decoder.decode(z[:1], torch.uint8)
                passing = passing_bytes(lambda: decoder.decode(z, torch.uint8))
                encoder.encode(torch.empty(BLOCK_FRAMES + 2, height, width, 3, dtype=self._dtype, device=META))
                weights = []
            steered = [codec, self._control_encoder(codec)] if self._config.control else []
            unpacked = storage_bytes([vae], META, seen)
            each = (storage_bytes([owner], META, seen) for owner in (weights, decoder, steered, [codec, encoder]))
            packed, stream, control, both = each
        stream += 2 * self.dimensions.in_dim * self._dtype.itemsize  # the latents' means and deviations
        on_host = unpacked if codec.copies else 0
        return _Video(unpacked + packed - on_host, on_host, stream, passing, both, control)

    def _control_encoder(self, codec: Codec) -> CausalEncoder:
        """As for control video of which nothing is kept."""
        height, width = self._config.size
        encoder = codec.new_encoder((height, width), None, in_parts=True)
        if not isinstance(encoder, PackedEncoder):
            encoder.encode(torch.empty(BLOCK_FRAMES + 2, height, width, 3, dtype=self._dtype, device=META))
        return encoder

    def _text(self, precision: str, residence: str) -> Footprint:
        return text_footprint(self.asked.files, self.text_device, self._dtype, precision, residence)

    def text_can_be_int8(self, residence: str) -> bool:
        """Whether the text encoder's file can be brought to 8 bits."""
        try:
            return self._of_text("int8", residence) is not None
        except ValueError:  # the file is in 8 bits already, or of odd widths
            return False


class _Video(NamedTuple):
    """Bytes of a VAE: weights on the device and in host memory; a stream's decoder; what comes and goes while a block
    is decoded; a stream's encoder with its weights; and that of its control, likewise."""

    weights: int
    on_host: int
    stream: int
    passing: int
    encoder: int
    control: int


@contextlib.contextmanager
def _on_meta() -> Iterator[None]:
    """Without gradients and modes of the caller's."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False), AsKernels():
        yield


def _no_text(prompts: list[str]) -> Tensor:
    raise NotImplementedError
