"""A world small enough for a tiny model to know all of it: its clips and captions, a score for videos of it, and the
training of the built-in model.

``world`` scenes and sentences · ``render`` frames · ``score`` what a video shows, and ``study`` how sure that is ·
``vocabulary``, ``networks``, ``umt5`` the model · ``autoencode``, ``script``, ``forward``, ``sample`` the engine's
arithmetic once more, in batches and differentiable · ``data``, ``coupling``, ``tasks``, ``stage``, ``stage_*``,
``checkpoint``, ``pictures``, ``train`` · ``export`` to the public layout, in ``trained/`` of the built-in model ·
``adherence`` and ``evaluate`` what the model must show · ``watch`` what a video file shows
"""

from .score import Score, score
from .world import Scene, Shape

__all__ = ["Scene", "Score", "Shape", "score"]
