"""Nodes for ComfyUI. In its Python: ``pip install`` this package; then link or copy this folder into its custom_nodes.

*LongLive model* loads a model and keeps it. *LongLive video* makes a video's frames of a prompt, *LongLive story* those
of a story; both give an IMAGE batch, for Create Video, Save Image or whatever takes one, and the story as text.
"""

from __future__ import annotations

import json

import torch

import longlive_optimized
from longlive_optimized import LongLiveEngine, OptimizationConfig, Story

PRESETS = ["balanced", "speed", "realtime", "turbo", "ultra"]


class LongLiveModel:
    """Loads a model. The one before is closed first, so that there is room."""

    CATEGORY, FUNCTION = "LongLive", "load"
    RETURN_TYPES, RETURN_NAMES = ("LONGLIVE",), ("model",)

    def __init__(self):
        self._engine = None

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("STRING", {"default": "tiny", "tooltip": "A model's folder, or tiny, the built-in one."}),
                "eight_bits": ("BOOLEAN", {"default": False, "tooltip": "Load for the presets in 8 bits."}),
            }
        }

    def load(self, model, eight_bits):
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        precision = "int8" if eight_bits else "bf16"
        self._engine = LongLiveEngine(model, OptimizationConfig(precision=precision), progress=Bar())
        return (self._engine,)


class LongLiveVideo:
    """A video of a prompt, with others to switch to: lines of ``SECONDS: PROMPT``."""

    CATEGORY, FUNCTION = "LongLive", "make"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE", "STRING"), ("images", "story")

    @classmethod
    def INPUT_TYPES(cls):
        pixels = {"default": 0, "min": 0, "max": 4096, "step": 16, "tooltip": "0 is the model's own."}
        return {
            "required": {
                "model": ("LONGLIVE",),
                "prompt": ("STRING", {"default": "", "multiline": True}),
                "seconds": ("FLOAT", {"default": 5.0, "min": 0.1, "max": 600.0, "step": 0.1}),
                "seed": ("INT", {"default": 42, "min": 0, "max": 2**63 - 1}),
                "preset": (PRESETS,),
                "height": ("INT", pixels),
                "width": ("INT", pixels),
            },
            "optional": {
                "later": ("STRING", {"default": "", "multiline": True, "tooltip": "Lines of SECONDS: PROMPT"})
            },
        }

    def make(self, model, prompt, seconds, seed, preset, height, width, later=""):
        prompts = [{"block": 0, "prompt": prompt}]
        for line in filter(str.strip, later.splitlines()):
            when, _, text = line.partition(":")
            try:
                prompts.append({"seconds": float(when), "prompt": text.strip()})
            except ValueError:
                raise ValueError(f"later must have lines of SECONDS: PROMPT, got {line!r}") from None
        own_height, own_width = model.config.size
        size = {"height": height or own_height, "width": width or own_width}
        told = {"version": 1, "seconds": seconds, "seed": seed, "preset": preset, **size, "prompts": prompts}
        return played(model, Story.read(told))


class LongLiveStory:
    """The video of a story: of the page, of a file, or of another node."""

    CATEGORY, FUNCTION = "LongLive", "make"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE", "STRING"), ("images", "story")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("LONGLIVE",), "story": ("STRING", {"default": "", "multiline": True})}}

    def make(self, model, story):
        return played(model, Story.read(json.loads(story)))


def played(engine, story):
    """The frames as ComfyUI has images, float32 [T, H, W, 3] in 0..1, and the story."""
    video = longlive_optimized.generate(story, model=engine, progress=Bar())
    return torch.from_numpy(video.frames).float() / 255, video.story.to_json(indent=2)


class Bar:
    """Shows ComfyUI how far it is, and lets a user stop between two blocks."""

    def __init__(self):
        from comfy import model_management, utils

        self._bar, self._check = utils.ProgressBar(1), model_management.throw_exception_if_processing_interrupted

    def __call__(self, what, done, total):
        self._check()
        self._bar.update_absolute(done, total)


NODE_CLASS_MAPPINGS = {node.__name__: node for node in (LongLiveModel, LongLiveVideo, LongLiveStory)}
NODE_DISPLAY_NAME_MAPPINGS = {
    "LongLiveModel": "LongLive model",
    "LongLiveVideo": "LongLive video",
    "LongLiveStory": "LongLive story",
}
