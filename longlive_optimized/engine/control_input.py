"""Control pictures to a control context: what the branch reads beside a block's latents (docs/model.md 14.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import LATENT_SCALE
from ..model.control import MASK_CHANNELS
from ..vae.codec import Codec, NewGraphs
from ..vae.stream import EncoderStream
from ..video_time import BLOCK_PIXEL_FRAMES, LATENT_PIXEL_FRAMES
from .request import Control
from .video_input import prepare_video, resampled

_HALF = 128  # of a mask's 255: from here on, 0.5 is exceeded
_MOST_CONSTANT = 16  # calls after which an encoder that sees one colour has long forgotten that there was another
_SHOWN = 2  # calls of grey that an encoder is shown which comes late: what is older fades


class Steered(NamedTuple):
    """Control pictures at a block's size: frames [T, 3, H, W] in [-1, 1]; masks float32 [T, 1, H, W] in [0, 1]; and
    whether these may keep anything of the frames."""

    frames: Tensor
    masks: Tensor
    keeps: bool


class Reference(NamedTuple):
    """A picture that has been encoded, its ``_version`` on a GPU, and its latent [1, 16, h, w]."""

    picture: Tensor
    version: int
    latent: Tensor

    @classmethod
    def of(cls, picture: Tensor, latent: Tensor) -> Reference:
        """Of a picture that its owner may write over: on a CPU a copy is kept."""
        return cls(picture, _version(picture), latent) if picture.is_cuda else cls(picture.clone(), 0, latent)

    def shows(self, picture: Tensor) -> bool:
        """Whether this is it. One on a GPU is not compared, for which the device would be waited for."""
        if picture.is_cuda:
            return picture is self.picture and self.version == _version(picture) >= 0
        return not self.picture.is_cuda and torch.equal(self.picture, picture)


def _version(tensor: Tensor) -> int:
    """How often it has been written to; -1 where torch does not count."""
    return -1 if tensor.is_inference() else tensor._version


class Grey:
    """Latents of frames of mid-grey, by size and number of the first call's frames: one list for all of an engine's
    streams. An encoder that sees nothing else gives the same again and again, once it has forgotten its start."""

    def __init__(self) -> None:
        self._latents: dict[tuple, list[Tensor]] = {}

    def of_call(self, call: int, frames: Tensor, first: int, encoder: Callable[[], EncoderStream]) -> Tensor:
        """Latents of the call with this number since an encoder was fresh, whose first call had ``first`` frames; like
        ``frames`` in size and dtype. ``encoder`` gives one to compute them with, where they are not known."""
        key = *frames.shape[1:], first, frames.dtype, frames.device
        if key not in self._latents:
            self._latents[key] = _constant(frames, first, encoder())
        return self._latents[key][min(call, len(self._latents[key]) - 1)]


def _constant(like: Tensor, first: int, encoder: EncoderStream) -> list[Tensor]:
    """Latents of grey, call by call, until they repeat. Waits for the device."""
    encoder.reset()
    made: list[Tensor] = []
    while len(made) < _MOST_CONSTANT:
        count = BLOCK_PIXEL_FRAMES if made else first
        made.append(encoder.encode(like.new_zeros(count, *like.shape[1:])))
        if len(made) > 2 and torch.equal(made[-1], made[-2]):
            break
    encoder.reset()
    return made


class ControlInput:
    """A stream's control pictures: an encoder each for what is kept of them (``inactive``) and for what is made anew
    (``reactive``), with a state of its own, made when first needed.

    Where masks are white, nothing is kept, and the latents of that are ``grey``'s. ``reset`` at a cut. like: a latent
    frame [16, h, w] of the stream.
    """

    def __init__(self, codec: Codec, new_graphs: NewGraphs, grey: Grey, like: Tensor):
        self._codec, self._new_graphs, self._grey, self._like = codec, new_graphs, grey, like
        self._inactive: EncoderStream | None = None
        self._reactive: EncoderStream | None = None
        self._reference: Reference | None = None
        self.reset()

    def reset(self) -> None:
        """The next frames are the first of a video. Buffers stay."""
        for encoder in (self._inactive, self._reactive):
            if encoder:
                encoder.reset()
        self._ends: int | None = None  # latent frame up to which the encoders have seen the control
        self._calls = self._first = 0  # since then, and frames of the first one
        self._kept = False  # whether ``inactive`` is under way
        self._lost = False  # whether the encoders have not seen the control before

    @property
    def ends(self) -> int | None:
        """Latent frame up to which control was under way."""
        return self._ends

    def resume(self, position: int) -> None:
        """The control of the block at ``position`` continues one that these encoders have not seen."""
        self.reset()
        self._ends, self._lost = position, True

    def context(self, control: Control, position: int, frames: int, shared: EncoderStream | None = None) -> Tensor:
        """The context [F_c, 96, h, w] of the block of so many latent frames that starts at latent frame ``position``.

        Encoders that have not seen the control of the block before begin anew. If this fails, they do with the next.
        ``shared`` puts the encoding of scope in its place, for comparison: that encoder's one state for what is kept,
        what is made anew, and the video before them.
        """
        if self._ends != position:
            self.reset()
        steered, parts = steer(control, position, self._like), []
        if control.references is not None:
            latent = self._reference_latent(cast(Tensor, control.references[0]))
            parts.append(F.pad(latent, (0, 0, 0, 0, 0, latent.shape[1] + MASK_CHANNELS)))
        if steered is not None:
            try:
                parts.append(self._encode(steered, position, frames, shared))
            except BaseException:
                self.reset()
                raise
        return torch.cat(parts)

    def _encode(self, steered: Steered, position: int, frames: int, shared: EncoderStream | None) -> Tensor:
        kept, made = apart(steered)
        if shared:
            latents = self._shared(kept, made, shared, position)
        else:
            if self._lost:  # no frame of this block is to wait for the next one, as the first ones of a video do
                self._reactive_encoder().encode(made[:1])
                self._first, self._calls, self._lost = 1, 1, False
            self._first = self._first or len(made)
            latents = self._inactive_latents(kept, made), self._reactive_encoder().encode(made)
            self._ends, self._calls = position + frames, self._calls + 1
        return torch.cat((*latents, mask_channels(steered.masks, len(latents[0])).to(made.dtype)), 1)

    def _inactive_latents(self, kept: Tensor | None, made: Tensor) -> Tensor:
        if kept is None and not self._kept:
            return self._grey.of_call(self._calls, made, self._first, self._idle_encoder)
        self._inactive = self._inactive or self._new_encoder()
        if not self._kept:
            for call in range(min(self._calls, _SHOWN)):  # what it would have seen
                self._inactive.encode(made.new_zeros(BLOCK_PIXEL_FRAMES if call else self._first, *made.shape[1:]))
            self._kept = True
        return self._inactive.encode(torch.zeros_like(made) if kept is None else kept)

    def _shared(self, kept: Tensor | None, made: Tensor, shared: EncoderStream, position: int) -> tuple[Tensor, Tensor]:
        """As scope: one state, cleared before each call of a session's first block; where something is kept, what is
        made anew is encoded without a past."""
        if position == 0:
            shared.reset()
        inactive = shared.encode(torch.zeros_like(made) if kept is None else kept)
        if kept is not None:
            return inactive, self._alone(made)
        if position == 0:
            shared.reset()
        return inactive, shared.encode(made)

    def _reference_latent(self, picture: Tensor) -> Tensor:
        """The one latent of a picture by itself, [1, 16, h, w]: kept while the picture is the same."""
        if self._reference is not None and self._reference.shows(picture):
            return self._reference.latent
        latent = self._alone(cover(picture, self._like)[None])
        self._reference = Reference.of(picture, latent)
        return latent

    def _alone(self, frames: Tensor) -> Tensor:
        """Latents of frames without a past."""
        encoder = self._idle_encoder()
        encoder.reset()
        latents = encoder.encode(frames)
        encoder.reset()
        return latents

    def _idle_encoder(self) -> EncoderStream:
        """One whose state nobody needs: ``reactive``'s while it has seen nothing, or another for this once."""
        if self._calls == 0:
            return self._reactive_encoder()
        return EncoderStream(self._codec, in_parts=True)

    def _reactive_encoder(self) -> EncoderStream:
        self._reactive = self._reactive or self._new_encoder()
        return self._reactive

    def _new_encoder(self) -> EncoderStream:
        return EncoderStream(self._codec, self._new_graphs, in_parts=True)


def steer(control: Control, position: int, like: Tensor) -> Steered | None:
    """Frames and masks of ``control`` as the block at latent frame ``position`` takes them, 13 for a stream's first and
    12 for others, with the pictures that it is to begin and end with; None if there are references alone."""
    count = BLOCK_PIXEL_FRAMES + (position == 0)
    size = like.shape[1] * LATENT_SCALE, like.shape[2] * LATENT_SCALE
    ends = (control.first_frame, slice(LATENT_PIXEL_FRAMES)), (control.last_frame, slice(-LATENT_PIXEL_FRAMES, None))
    extended = any(picture is not None for picture, _ in ends)
    if control.frames is None and not extended:
        return None
    frames = like.new_zeros(count, 3, *size)  # mid-grey
    masks = torch.ones(count, 1, *size, dtype=torch.float32, device=like.device)  # white
    given = cast("Tensor | Sequence[Tensor] | None", control.masks)  # tensors, since the control was made
    if control.frames is not None:
        frames = prepare_video(cast(Tensor, control.frames), count, *size, like.dtype, like.device)
    if given is not None:
        masks = prepare_masks(given, count, *size, like.device)
    if not extended:
        return Steered(frames, masks, given is not None and not _white(given))
    frames, masks = frames[:BLOCK_PIXEL_FRAMES].clone(), masks[:BLOCK_PIXEL_FRAMES].clone()
    for picture, where in ends:
        if picture is not None:
            shown = cover(cast(Tensor, picture), like)
            frames[where] = torch.where(masks[where] > 0.5, shown, frames[where])
            masks[where] = 0
    return Steered(frames, masks, True)


def prepare_masks(
    masks: Tensor | Sequence[Tensor], count: int, height: int, width: int, device: torch.device
) -> Tensor:
    """uint8 masks [H, W], [H, W, 1] or [H, W, 3] of any sizes to float32 [count, 1, height, width] in [0, 1]: the mean
    of the channels, then as ``prepare_video``."""
    single = [(mask if mask.ndim == 3 else mask[..., None]).to(device).float().mean(2, keepdim=True) for mask in masks]
    return resampled(single, count, height, width, torch.float32, device) / 255


def _white(masks: Tensor | Sequence[Tensor]) -> bool:
    """Whether all is to be made anew, as far as the host can see; on a GPU it does not look."""
    return all(not mask.is_cuda and int(mask.min()) >= _HALF for mask in masks)


def apart(steered: Steered) -> tuple[Tensor | None, Tensor]:
    """What is kept of the frames, and what is made anew: elsewhere they are mid-grey. None if nothing is kept."""
    if not steered.keeps:
        return None, steered.frames
    anew = (steered.masks > 0.5).to(steered.frames.dtype)
    return steered.frames * (1 - anew), steered.frames * anew


def mask_channels(masks: Tensor, frames: int) -> Tensor:
    """Masks [T, 1, H, W] of so many latent frames, [frames, 64, H / 8, W / 8]: a channel for each of 8x8 pixels, of
    the pixel frame in the middle of each latent frame's share of them."""
    middle = [(2 * t + 1) * len(masks) // (2 * frames) for t in range(frames)]
    return F.pixel_unshuffle(torch.stack([masks[i] for i in middle]), LATENT_SCALE)  # no index waits for the device


def cover(picture: Tensor, like: Tensor) -> Tensor:
    """A uint8 picture [H, W, 3] to [3, height, width] in [-1, 1]: scaled to cover a latent frame's pixels, what
    protrudes cut off on both sides alike."""
    height, width = like.shape[1] * LATENT_SCALE, like.shape[2] * LATENT_SCALE
    x = picture.to(like.device).permute(2, 0, 1).float() / 255 * 2 - 1
    if x.shape[1:] != (height, width):
        scale = max(height / x.shape[1], width / x.shape[2])
        size = max(height, int(x.shape[1] * scale)), max(width, int(x.shape[2] * scale))  # whole pixels, cut off
        x = F.interpolate(x[None], size, mode="bilinear", align_corners=False)[0]
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        x = x[:, top : top + height, left : left + width]
    return x.to(like.dtype)
