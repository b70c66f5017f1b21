"""Every bad wish is refused where it is made."""

import math

import numpy as np
import pytest
import torch

from longlive_optimized import config as config_module
from longlive_optimized.config import ALIASES, PRESETS, OptimizationConfig
from longlive_optimized.engine.request import BlockRequest, Control


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"prompt": ""}, "prompt must hold some text"),
        ({"prompt": " \n"}, "prompt must hold some text"),
        ({"prompt": "&nbsp;"}, "prompt must hold some text"),
        ({"prompt": ()}, "at least one"),
        ({"prompt": "a", "seed": "x", "reset": True}, "seed must be"),
        ({"prompt": "a", "seed": -1, "reset": True}, "seed must be"),
        ({"prompt": (("a", -1.0),)}, "weights must be finite"),
        ({"prompt": (("a", math.nan),)}, "weights must be finite"),
        ({"prompt": "a", "blend": "mean"}, "blend must be"),
        ({"prompt": (("a", 1), ("b", 1), ("c", 1)), "blend": "slerp"}, "two prompts"),
        ({"prompt": "a", "transition_blocks": 0}, "transition_blocks must be"),
        ({"prompt": "a", "transition_blend": "mean"}, "transition_blend must be"),
        ({"prompt": "a", "noise_scale": 0.05}, "noise_scale must lie"),
        ({"prompt": "a", "noise_scale": math.nan}, "noise_scale must lie"),
        ({"prompt": "a", "noise_steps": "half"}, "noise_steps must be"),
        ({"prompt": "a", "first_step": 1001}, "first_step must be"),
        ({"prompt": "a", "first_step": 0.5}, "first_step must be"),
        ({"prompt": "a", "denoising_steps": ()}, "denoising_steps must be"),
        ({"prompt": "a", "denoising_steps": (500, 750)}, "denoising_steps must be"),
        ({"prompt": "a", "denoising_steps": (1001,)}, "denoising_steps must be"),
        ({"prompt": "a", "video": torch.zeros(12, 3, 16, 16, dtype=torch.uint8)}, "video must be uint8"),
        ({"prompt": "a", "video": torch.zeros(12, 16, 16, 3)}, "video must be uint8"),
        ({"prompt": "a", "video": torch.zeros(0, 16, 16, 3, dtype=torch.uint8)}, "at least one frame"),
        ({"prompt": "a", "video": torch.zeros(2, 0, 16, 3, dtype=torch.uint8)}, "video must be uint8"),
        ({"prompt": "a", "video": [torch.zeros(1, 16, 16, 3, dtype=torch.uint8)]}, "video must be uint8"),
    ],
)
def test_bad_requests(wish, message):
    with pytest.raises(ValueError, match=message):
        BlockRequest(**wish)


def test_prompt_of_another_type():
    with pytest.raises(TypeError, match="prompt must be a string, got int"):
        BlockRequest(((3, 1.0),))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 100}, "height"),
        ({"width": 0}, "width"),
        ({"denoising_steps": ()}, "denoising_steps"),
        ({"denoising_steps": (250, 500)}, "denoising_steps must fall"),
        ({"denoising_steps": (0,)}, "denoising_steps"),
        ({"local_attn_size": 5}, r"local_attn_size must be at least sink_size \+ 3 = 6, got 5"),
        ({"sink_size": 0, "local_attn_size": 3}, "local_attn_size must be at least 4, got 3"),
        ({"sink_size": -1}, "sink_size"),
        ({"precision": "int4"}, "precision"),
        ({"prompt_cache_size": 0}, "prompt_cache_size"),
        ({"no_such_field": 1}, "no_such_field"),
    ],
)
def test_bad_configs(change, message):
    with pytest.raises(ValueError, match=message):
        OptimizationConfig(**change)


def test_fp8_becomes_int8_and_that_is_said_once(caplog):
    config_module._say_once.cache_clear()
    configs = [OptimizationConfig(precision="fp8") for _ in range(2)]
    assert [c.precision for c in configs] == ["int8"] * 2 and configs[0] == OptimizationConfig(precision="int8")
    assert caplog.text.count("precision fp8 runs as int8") == 1


def test_presets_follow_the_table():
    assert [*PRESETS] == ["quality_stream", "balanced", "speed", "realtime", "turbo", "ultra"]
    assert OptimizationConfig.preset("quality") == OptimizationConfig.preset("quality_stream")
    turbo = OptimizationConfig.preset("turbo", height=320)
    assert (turbo.denoising_steps, turbo.local_attn_size, turbo.precision) == ((1000, 500, 250), 9, "int8")
    assert turbo.height == 320 and set(ALIASES.values()) <= set(PRESETS)


def test_unknown_preset_lists_the_names():
    with pytest.raises(ValueError, match="quality_stream, balanced, speed, realtime, turbo, ultra, quality"):
        OptimizationConfig.preset("fast")


PICTURES = torch.zeros(3, 16, 24, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("wish", "error", "message"),
    [
        ({}, ValueError, "frames, references, first_frame or last_frame"),
        ({"scale": 0.5}, ValueError, "frames, references, first_frame or last_frame"),
        ({"masks": PICTURES}, ValueError, "frames, references, first_frame or last_frame"),
        ({"masks": PICTURES, "references": PICTURES}, ValueError, "masks must come with frames"),
        ({"frames": PICTURES, "scale": 2.1}, ValueError, r"scale must lie in \[0, 2\], got 2.1"),
        ({"frames": PICTURES, "scale": -0.1}, ValueError, "scale must lie"),
        ({"frames": PICTURES, "scale": math.nan}, ValueError, "scale must lie"),
        ({"frames": PICTURES, "scale": True}, ValueError, "scale must lie"),
        ({"frames": PICTURES, "scale": "1"}, ValueError, "scale must lie"),
        ({"frames": PICTURES.float()}, ValueError, "frames must be uint8"),
        ({"frames": PICTURES[0]}, ValueError, "frames must be uint8"),
        ({"frames": []}, ValueError, "frames must hold at least one frame"),
        ({"frames": "a.mp4"}, TypeError, "frames must be uint8 frames .*; got str"),
        ({"frames": ["a.png"]}, TypeError, "frames must be uint8 frames .*; got str for a frame"),
        ({"frames": PICTURES, "masks": PICTURES[..., :2]}, ValueError, "masks must be uint8"),
        ({"frames": PICTURES, "masks": PICTURES.bool()}, ValueError, "masks must be uint8"),
        ({"frames": PICTURES, "masks": [PICTURES]}, ValueError, "masks must be uint8 .* for a frame"),
        ({"frames": PICTURES, "masks": []}, ValueError, "masks must hold at least one frame"),
        ({"references": PICTURES[0]}, ValueError, "references must be uint8"),
        ({"references": [PICTURES[0, ..., :1]]}, ValueError, "references must be uint8"),
        ({"first_frame": PICTURES}, ValueError, r"first_frame must be a uint8 picture \[H, W, 3\]"),
        ({"last_frame": PICTURES[0, :0]}, ValueError, "last_frame must be a uint8 picture"),
        ({"last_frame": "a.png"}, TypeError, "last_frame must be a uint8 picture .*; got str"),
    ],
)
def test_bad_controls(wish, error, message):
    with pytest.raises(error, match=message):
        Control(**wish)


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
@pytest.mark.parametrize("as_list", [False, True])
def test_masks_have_one_channel_or_three_or_none(channels, as_list):
    masks = torch.full((3, 16, 24, *channels), 255, dtype=torch.uint8)
    control = Control(frames=PICTURES.numpy(), masks=[*masks.numpy()] if as_list else masks, scale=np.float32(0.5))
    assert all(mask.shape == masks.shape[1:] for mask in control.masks)
    assert control.scale == 0.5 and type(control.scale) is float and isinstance(control.frames, torch.Tensor)


def test_a_request_takes_a_control_alone():
    control = Control(first_frame=PICTURES[0], last_frame=PICTURES[1].numpy())
    assert BlockRequest("a fox", control=control).control is control
    assert hash(BlockRequest("a fox", control=control)) == hash(BlockRequest("a fox", control=Control(PICTURES)))
    with pytest.raises(TypeError, match="control must be a Control, got Tensor"):
        BlockRequest("a fox", control=PICTURES)
