"""How a stream's next block is made, step by step.

    begin -> (bring_back) -> follow_prompt -> settle (context pass or recache) -> denoise -> decode

All functions work on one stream, inside ``Devices.turn``. A step that fails may be repeated: its work stays due.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor

from ..config import PIXELS_PER_TOKEN
from ..model.precision import PLAIN, Policy
from ..text import blend as blending
from ..video_time import BLOCK_FRAMES, BLOCK_PIXEL_FRAMES, blocks_of
from .recache import Recache, plan_rebuild, plan_recache
from .request import CONTROL_PICTURES, BlockRequest, Control
from .sampler import from_noise_scale, make_schedule, step_at
from .stream import EncodedVideo, Stream
from .video_input import prepare_video


def make_block(stream: Stream, request: BlockRequest, first_latent_only: bool = False) -> Tensor:
    """The next pixel frames, uint8 [T, H, W, 3]; with ``first_latent_only`` those of the block's first latent frame."""
    begin(stream, request)
    if stream.undecoded:
        rest_of_block(stream)
    with _if_it_fails(stream.timer.discard):
        latents = next_latents(stream, request)
        history = stream.history_with(latents)  # whatever may fail comes before the decoder moves on
        frames = _decode(stream, latents[:1] if first_latent_only else latents, "decode")
        stream.keep(history, len(latents))
        return _hand_out(stream, frames, len(latents) - 1 if first_latent_only else 0)


def rest_of_block(stream: Stream) -> Tensor:
    """The pixel frames that ``make_block`` left out. Raises RuntimeError if there are none."""
    if not stream.undecoded:
        raise RuntimeError("no frames of the last block are left")
    with _if_it_fails(stream.timer.discard):
        frames = _decode(stream, stream.history[-stream.undecoded :], "decode_rest")
        return _hand_out(stream, frames, 0)


def begin(stream: Stream, request: BlockRequest) -> None:
    """Take over what a request says about where the stream stands. Raises ValueError for control without its branch."""
    if request.control is not None and stream.networks.control is None:
        raise ValueError("control wants VACE's module: make the engine with OptimizationConfig(control=True)")
    restart_at = stream.settings.restart_at
    if request.reset:
        stream.reset(request.seed)
    elif request.restart or (restart_at is not None and stream.position >= restart_at):
        stream.restart(request.seed)
    elif request.seed is not None:
        stream.reseed(request.seed)
    from_video = request.video is not None
    if stream.position and from_video != stream.from_video:
        stream.restart_vae()
    stream.from_video = from_video


def next_latents(stream: Stream, request: BlockRequest) -> Tensor:
    """Clean latents [F, C, h, w] of the next block, not yet the stream's (``Stream.keep``)."""
    bring_back(stream, request)
    follow_prompt(stream, request)
    settle(stream)
    policy = policy_at(stream, stream.position)
    latents = denoise(stream, request, policy)
    # The only wait for the device, of 8 bits alone: what cannot be shown is found before the decoder moves on.
    in_8_bits = bool(policy) or stream.ring.keys_read == "int8"
    stream.made_again = in_8_bits and not latents.isfinite().all().item()
    if stream.made_again:
        policy, latents = PLAIN, again_in_bf16(stream, request)
    stream.made_with = policy
    return latents


def policy_at(stream: Stream, start: int, origin: int = 0) -> Policy:
    """What a pass from latent frame ``start`` on runs in 8 bits: nothing where it writes the sinks, which stay for
    ever, or without sinks a video's beginning."""
    return PLAIN if start - origin < max(stream.ring.sink, 1) else stream.policy


def again_in_bf16(stream: Stream, request: BlockRequest) -> Tensor:
    """The block from the same noise over the same ring, and if that is not finite either over a window made anew, with
    keys in the model's dtype."""
    latents = denoise(stream, request, PLAIN)
    if not latents.isfinite().all():
        stream.ring.hold(False)
        plan = plan_recache(stream.position, stream.ring.window, stream.ring.sink, global_sink=True)
        recache(stream, plan, stream.history[-plan.frames :], PLAIN)
        latents = denoise(stream, request, PLAIN)
    return latents


def bring_back(stream: Stream, request: BlockRequest) -> None:
    """Make lost keys and values again from latents; of a window that the request has recached anyway, the sinks'."""
    if stream.lost_window is None:
        return
    ring, prompt = stream.ring, stream.prompt
    ring.reset()
    stream.recache_due |= stream.prompt_due or prompt.wants(request) or prompt.in_transition
    stream.recache_due |= stream.window_lost
    position, of_ring = stream.position, (stream.position, ring.window, ring.sink)
    if stream.recache_due:
        first, blocks = plan_recache(*of_ring, stream.settings.global_sink), []
    else:
        past = {"last": stream.last_recache, "first_sink": stream.first_sink}
        first, blocks = plan_rebuild(*of_ring, kept=len(stream.history), **past)
    if stream.sink_pass and first.keeps_sinks and not stream.sinks_due:
        origin, latents = stream.first_sink, stream.sink_pass.latents[: ring.window]
        if origin and len(latents) < ring.window:  # of another window: these would leave gaps
            latents = latents[: ring.sink]
        stream.passes.set_prompt(stream.sink_pass.embedding)
        recache(stream, Recache(origin, len(latents), origin), latents, PLAIN)
    assert prompt.embedding is not None
    stream.passes.set_prompt(prompt.embedding)
    if not stream.recache_due:
        policy = policy_at(stream, first.start, first.origin)
        for plan in (first, *blocks) if first.frames else blocks:
            if plan is not first:
                policy = stream.made_with if plan.end == position else policy_at(stream, plan.start)
            latents = stream.history[len(stream.history) - position + plan.start :][: plan.frames]
            recache(stream, plan, latents, policy)
        stream.context_due = False
    stream.lost_window = None


def follow_prompt(stream: Stream, request: BlockRequest) -> None:
    """Take one step towards the request's prompt, and compute its cross-attention keys and values if that is news."""
    target = None
    if stream.prompt.wants(request):
        with stream.timer.stage("text"):
            target = _embed(stream, request)
    stream.prompt_due |= stream.prompt.follow(request, target) or stream.passes.cross is None
    if stream.prompt_due:
        with stream.timer.stage("text"):
            assert stream.prompt.embedding is not None
            stream.passes.set_prompt(stream.prompt.embedding)
        stream.prompt_due, stream.recache_due = False, stream.position > 0


def settle(stream: Stream) -> None:
    """Bring the ring up to date: the last block's context pass, or a recache, which makes that pass superfluous.

    Then, or before the recache, its keys become of the kind that the stream's precision wants.
    """
    stream.recache_due |= stream.position > 0 and stream.ring.stale  # due until it has worked
    if stream.context_due and not stream.recache_due:
        with stream.timer.stage("context"):
            # With what the block was made: the first one's is what the sinks keep.
            stream.passes.context(stream.history[-stream.ring.frames :], stream.made_with)
        stream.context_due = False
        if stream.position - stream.ring.frames < stream.ring.sink:
            _wrote_sinks(stream, stream.history[-stream.position :])
    if stream.ring.holds_int8 != stream.int8_keys:
        with stream.timer.stage("context"):
            stream.ring.hold(stream.int8_keys)
    if stream.recache_due:
        plan = plan_recache(stream.position, stream.ring.window, stream.ring.sink, stream.settings.global_sink)
        latents = stream.history[-plan.frames :]
        if plan.keeps_sinks and stream.sinks_due:
            first = stream.first_sink
            recache(stream, Recache(first, len(stream.sinks), first), stream.sinks, PLAIN)
            _wrote_sinks(stream, stream.sinks)
        recache(stream, plan, latents, policy_at(stream, plan.start, plan.origin))
        if not plan.keeps_sinks:
            stream.sinks, stream.first_sink = latents[: stream.ring.sink].clone(), plan.origin
            _wrote_sinks(stream, latents)
        stream.last_recache = plan
    stream.recache_due = stream.context_due = stream.sinks_due = False


def _wrote_sinks(stream: Stream, latents: Tensor) -> None:
    """The last pass, of these latents, has written the sinks, if there are any."""
    if stream.ring.sink:
        stream.keep_sink_pass(latents.clone(), stream.prompt.embedding)


def recache(stream: Stream, plan: Recache, latents: Tensor, policy: Policy) -> None:
    """Recompute the keys and values of the plan's frames from their clean latents [F, C, h, w], in one forward."""
    with stream.timer.stage("recache"):
        stream.ring.seek(*plan)
        stream.passes.context(latents, policy)


def denoise(stream: Stream, request: BlockRequest, policy: Policy) -> Tensor:
    """From noise, or from a mix of noise and the request's video, to clean latents."""
    settings, from_video = stream.settings, request.video is not None
    frames, video = stream.block_frames(from_video), _encoded(stream, request) if from_video else None
    steps = make_schedule(request.denoising_steps or settings.denoising_steps, settings.step_schedule)
    if video:
        steps = from_noise_scale(steps, video.noise_scale, request.noise_steps)
    elif request.first_step is not None:
        steps = [step_at(request.first_step), *steps[1:]]
    inputs = stream.passes.inputs(frames, len(steps))
    inputs.draw(stream.noise.block(stream.position, frames))
    if video:
        inputs.noise[0].copy_(torch.lerp(video.latents, inputs.noise[0], video.noise_scale))
    inputs.set_schedule(tuple(steps))
    controlled = _steer(stream, request, frames)
    with stream.timer.stage("denoise"):
        return stream.passes.denoise(stream.position, inputs, policy, controlled=controlled)


def warm_up(stream: Stream, blocks: int) -> None:
    """A recache of each length, then ``blocks`` blocks from a video's first on, the last one with a recache.

    The longest pass comes first: later graphs find room in what the pool holds for it, and eager passes in the
    allocator's blocks.
    """
    stream.restart()
    follow_prompt(stream, BlockRequest("warm-up"))
    settle(stream)
    longest = stream.ring.window // BLOCK_FRAMES * BLOCK_FRAMES
    for frames in range(longest, BLOCK_FRAMES, -BLOCK_FRAMES):
        recache(stream, Recache(0, frames, 0), stream.history.new_zeros(frames, *stream.latent_shape), PLAIN)
    stream.restart()
    for i in range(blocks):
        last = i == blocks - 1
        make_block(stream, BlockRequest("warm-up!" if last else "warm-up"), first_latent_only=last)
    rest_of_block(stream)
    if stream.control_input:
        _warm_up_control(stream)


def _warm_up_control(stream: Stream) -> None:
    """Control from a video's first block on, as far as the sinks are written and behind that, then in its midst."""
    picture = torch.full((1, PIXELS_PER_TOKEN, PIXELS_PER_TOKEN, 3), 128, dtype=torch.uint8, device="cpu")
    controlled = BlockRequest("warm-up", control=Control(picture))
    stream.restart()
    begun = blocks_of(stream.ring.sink) + 1
    for request in (*(controlled,) * (begun + 1), BlockRequest("warm-up"), controlled):
        make_block(stream, request)


def _embed(stream: Stream, request: BlockRequest) -> Tensor:
    texts, weights = zip(*request.pairs, strict=True)
    embeddings = [stream.networks.prompts.get(text) for text in texts]
    if request.blend == "slerp" and len(embeddings) == 2:
        one, other = embeddings
        return blending.slerp(one, other, blending.normalise(weights)[1])
    return blending.blend(embeddings, weights)


def _steer(stream: Stream, request: BlockRequest, frames: int) -> bool:
    """Let the request's control steer the next passes, of so many latent frames; False if there is none."""
    control = request.control
    if control is None or control.scale == 0:
        return False
    assert stream.control_input and stream.passes.control
    with stream.timer.stage("control"):
        if stream.context is None:
            at = stream.devices.at_encoder
            at.receive(_pictures(*(getattr(control, name) for name in CONTROL_PICTURES)))
            with at.here():
                context = stream.control_input.context(control, stream.position, frames)
            stream.context = stream.shard.of_first(stream.devices.at_model.bring(context, at))
        stream.passes.control.set_context(stream.context, control.scale, frames)
    return True


def _encoded(stream: Stream, request: BlockRequest) -> EncodedVideo:
    if stream.encoded is None:
        with stream.timer.stage("encode"):
            stream.encoded = _encode(stream, request)
    return stream.encoded


def _encode(stream: Stream, request: BlockRequest) -> EncodedVideo:
    count = BLOCK_PIXEL_FRAMES + (stream.position == 0)  # a fresh stream's become one latent frame more
    frames, at = cast(Tensor, request.video), stream.devices.at_encoder  # tensors, since the request was made
    at.receive(_pictures(frames))
    with at.here():
        video = prepare_video(frames, count, *stream.settings.size, stream.history.dtype, at.device)
        scale = request.noise_scale
        if request.noise_from_motion:
            scale = stream.shard.number_of_first(stream.motion.noise_scale(video, scale), video.device)
    with _if_it_fails(stream.reset, unless=(torch.OutOfMemoryError,)), at.here():  # then its state alone is gone
        if stream.encoder_lost:  # no frame of this block is to wait for the next one, as the first ones of a video do
            stream.encoder.encode(video[:1])
        latents = stream.encoder.encode(video)
        stream.encoder_lost = False
    return EncodedVideo(stream.shard.of_first(stream.devices.at_model.bring(latents, at)), scale)


def _pictures(*given: object) -> list[Tensor]:
    """Each tensor, by itself or in a list."""
    listed = (each if isinstance(each, list | tuple) else (each,) for each in given)
    return [picture for each in listed for picture in each if isinstance(picture, Tensor)]


def _decode(stream: Stream, latents: Tensor, stage: str) -> Tensor:
    """Frames for the caller's order on the VAE's device. A decoder with an order of its own waits for the latents, and
    the transformer goes on meanwhile."""
    at = stream.devices.at_decoder
    there = at.bring(latents, stream.devices.at_model)
    with stream.timer.stage(stage, at), _if_it_fails(stream.reset, unless=(torch.OutOfMemoryError,)):
        stream.restore_decoder()
        stream.decoder_lost = True  # until this has worked
        with at.here():
            frames = stream.decode(there)
        stream.decoder_lost = False
        stream.decoded += len(latents)
    return at.hand_out(frames)


def _hand_out(stream: Stream, frames: Tensor, undecoded: int) -> Tensor:
    stream.given += len(frames)
    stream.undecoded = undecoded
    if not undecoded:
        stream.timer.block_done(stream.given)
        stream.given = 0
    return frames


@contextlib.contextmanager
def _if_it_fails(undo: Callable[[], None], unless: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """A block that fails is not timed. A VAE that fails has lost its place in the video, and with it the stream, unless
    memory was short: what it has seen can be shown to it again."""
    try:
        yield
    except unless:
        raise
    except BaseException:
        undo()
        raise
