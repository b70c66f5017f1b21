"""Blocks of every kind, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from longlive_optimized import BlockRequest, Control, LongLiveEngine

FOX, BOAT = "a red square stands still over a green field", "a white cross rests on a black night"
Wish = BlockRequest | Callable[[LongLiveEngine], None]


def noise(height: int, width: int, device: str = "cpu") -> torch.Tensor:
    """Twelve frames, uint8 [12, height, width, 3]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (12, height, width, 3), dtype=torch.uint8, generator=generator).to(device)


def every_kind(video: torch.Tensor, control: bool) -> list[Wish]:
    """Requests, and what is done to the engine between them, from wherever it stands: a switch, a transition, video
    input, a blend, another window and steps, control, resets, and a decoder that has lost its state."""
    masks = torch.zeros(video.shape[:3], dtype=torch.uint8)
    masks[:, : video.shape[1] // 2] = 255
    steered = [Control(video, masks), Control(video, first_frame=video[0]), Control(references=video[:1])]
    return [
        lambda engine: engine.configure(local_attn_size=12, denoising_steps=(1000, 750, 500, 250)),
        BlockRequest(FOX, reset=True, seed=42),
        BlockRequest(FOX),
        BlockRequest(BOAT, transition_blocks=2),
        BlockRequest(BOAT, video=video, noise_scale=0.5),
        BlockRequest([(BOAT, 1.0), (FOX, 2.0)], video=[*video], noise_from_motion=True),
        lambda engine: engine.configure(local_attn_size=9, denoising_steps=(1000, 500)),
        *(BlockRequest(FOX, control=each) for each in (steered if control else ())),
        BlockRequest(FOX, reset=True, seed=7),
        lose_decoder,
        BlockRequest(FOX),
        BlockRequest(FOX, restart=True),
        lambda engine: engine.reset(),
        BlockRequest(BOAT),
    ]


def lose_decoder(engine: LongLiveEngine) -> None:
    """As where memory runs out while a block is decoded."""
    with engine.devices.at_decoder.here():
        engine.stream.decoder.reset()
    engine.stream.decoder_lost = True


def play(engine: LongLiveEngine, wishes: Iterable[Wish]) -> list[torch.Tensor]:
    """The blocks, on the host once all are enqueued."""
    made = []
    for wish in wishes:
        if isinstance(wish, BlockRequest):
            made.append(engine.generate_block(wish))
        else:
            wish(engine)
    return [block.cpu() for block in made]
