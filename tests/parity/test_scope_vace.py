"""Control against scope's own pipeline with its VACE blocks, as ``test_scope_parity`` compares the rest.

What we do otherwise on purpose (docs/model.md 14.5) is done here as scope does it: one encoder state for all, and keys
of zeros in the branch's attention. Replaced beside what that module names: scope's compiled flex attention, which is
given no mask, by torch's attention. A newer PEFT than scope's finds no place for LongLive's LoRA in a network that VACE
has wrapped, and says nothing: our engine then goes without it, too.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from parity import test_scope_parity as parity
from parity.test_scope_parity import AS_SCOPE, FOX, HEIGHT, TOLERANCE, WIDTH, Scope, noise_video, roll_out

from longlive_optimized import Control, LongLiveEngine
from longlive_optimized.model.control import PassControl
from longlive_optimized.vae.config import VaeConfig
from longlive_optimized.weights import random_checkpoint
from longlive_optimized.weights.locate import locate

pytestmark = parity.pytestmark

LAYERS = 5
PADDED = 128  # scope's attention has a multiple of so many keys


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = dataclasses.replace(random_checkpoint.TINY, num_layers=LAYERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(random_checkpoint._CONFIGS, "tiny", (config, VaeConfig(base=8), 8))
        yield random_checkpoint.make_checkpoint(tmp_path_factory.mktemp("vace") / "model", "tiny", control=True)


@pytest.fixture(scope="module")
def scope(folder):
    files, plain = locate(folder, control=True), parity._config

    def with_vace(files, pipeline):
        from scope.core.pipelines.longlive.modules import causal_model

        causal_model.flex_attention = attend
        return SimpleNamespace(**vars(plain(files, pipeline)), vace_path=str(files.control))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "_config", with_vace)
        yield Scope(files)


def attend(query, key, value, block_mask):
    assert block_mask is None
    return F.scaled_dot_product_attention(query, key, value)


class WithZeroKeys(PassControl):
    """As many more keys of score 0 and value 0 as scope has."""

    def set_context(self, context, scale, frames):
        super().set_context(context, scale, frames)
        self._ring.k[:, frames:], self._ring.v[0][frames:] = 0, 0
        tokens = frames * self._tokens
        self._ring.valid.fill_(tokens + -tokens % PADDED)


@pytest.fixture(scope="module")
def without_lora(folder, tmp_path_factory):
    copy = shutil.copytree(folder, tmp_path_factory.mktemp("bare") / "model")
    locate(copy).lora.unlink()
    return copy


@pytest.fixture
def engine(folder, without_lora, scope):
    halves = [weight for key, weight in scope.pipeline.components.generator.named_parameters() if "lora_B" in key]
    assert len(halves) == 10 * LAYERS
    loaded = any(weight.any() for weight in halves)
    config = dataclasses.replace(AS_SCOPE, control=True)
    engine = LongLiveEngine(folder if loaded else without_lora, config, device="cpu")
    stream = engine.stream
    stream.passes.control = WithZeroKeys(engine.control, parity.GRID, most=6)
    stream.control_input.context = functools.partial(stream.control_input.context, shared=stream.encoder)
    return engine


def masks(block):
    made = torch.zeros(12, HEIGHT, WIDTH, 1, dtype=torch.uint8)
    made[:, 8 : 30 + block, 20:70] = 255
    return made


@pytest.fixture
def pictures(tmp_path):
    """Files for scope, and what they hold: one of the video's shape, one that must be cropped."""
    image = pytest.importorskip("PIL.Image")
    found = []
    for i, size in enumerate(((HEIGHT, WIDTH), (50, 120))):
        picture = noise_video(90 + i, *size)[0]
        image.fromarray(np.asarray(picture)).save(tmp_path / f"{i}.png")
        found.append((str(tmp_path / f"{i}.png"), picture))
    return found


KINDS = "frames", "masks", "reference", "both", "first", "last", "ends and masks"


# Scope goes on with what it was given last.
NOTHING = dict.fromkeys(("vace_input_frames", "vace_input_masks", "first_frame_image", "last_frame_image"))


def wish(kind, block, pictures):
    """A block's keywords for scope, and its Control."""
    frames, (one, other) = noise_video(50 + block), pictures
    control = {
        "frames": {"frames": frames},
        "masks": {"frames": frames, "masks": masks(block)},
        "reference": {"references": one},
        "both": {"frames": frames, "masks": masks(block), "references": other},
        "first": {"first_frame": other},
        "last": {"last_frame": other},
        "ends and masks": {"frames": frames, "masks": masks(block), "first_frame": one, "last_frame": other},
    }[kind]
    names = {
        "frames": ("vace_input_frames", lambda value: [*value.split(1)]),
        "masks": ("vace_input_masks", lambda value: [*value.split(1)]),
        "references": ("vace_ref_images", lambda value: [value[0]]),
        "first_frame": ("first_frame_image", lambda value: value[0]),
        "last_frame": ("last_frame_image", lambda value: value[0]),
    }
    keywords = NOTHING | {names[name][0]: names[name][1](value) for name, value in control.items()}
    ours = {
        name: value if name in ("frames", "masks") else [value[1]] if name == "references" else value[1]
        for name, value in control.items()
    }
    return keywords | {"vace_context_scale": 0.7}, Control(**ours, scale=0.7)


@pytest.mark.parametrize("kind", KINDS)
def test_control(engine, scope, kind, pictures):
    """From the first block on: three blocks, each with control."""
    blocks = []
    for i in range(3):
        keywords, control = wish(kind, i, pictures)
        blocks.append(({"prompts": FOX, "init_cache": i == 0, **keywords}, {"prompt": FOX, "control": control}))
    assert roll_out(engine, scope, blocks, f"control: {kind}") < TOLERANCE


@pytest.mark.parametrize("kind", ["reference", "ends and masks"])
def test_control_once(engine, scope, kind, pictures):
    """What holds for the call that brings it."""
    blocks = []
    for i in range(4):
        keywords, control = NOTHING, None
        if i == 2 or kind != "reference":
            keywords, control = wish(kind if i == 2 else "frames", i, pictures)
        blocks.append(({"prompts": FOX, "init_cache": i == 0, **keywords}, {"prompt": FOX, "control": control}))
    assert roll_out(engine, scope, blocks, f"control once: {kind}") < TOLERANCE


@pytest.mark.parametrize("kind", ["frames", "masks"])
def test_control_with_video(engine, scope, kind, pictures):
    blocks = []
    for i in range(3):
        keywords, control = wish(kind, i, pictures)
        video = noise_video(i)
        keywords |= {"noise_scale": 0.7, "noise_controller": False, "video": [*video.split(1)], "manage_cache": False}
        request = {"prompt": FOX, "video": video, "noise_scale": 0.7, "control": control}
        blocks.append(({"prompts": FOX, "init_cache": i == 0, **keywords}, request))
    assert roll_out(engine, scope, blocks, f"control with video: {kind}") < TOLERANCE
