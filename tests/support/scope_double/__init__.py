"""A stand-in for daydreamlive/scope: own code, for tests of a plugin where scope is not installed.

    with scope_installed() as scope:
        [pipeline_class] = scope.register(plugin_module, "my-plugin").values()
        scope.manager.load(pipeline_class, {"model_path": "tiny"})
        session = scope.manager.open({"prompts": [{"text": "a fox", "weight": 1.0}]})
        kwargs, result = session.step()

It imitates what a plugin can see: the modules it may import, construction and release, and the order of one call after
another. Left out, because LongLive has no use for them: audio, chains of pipelines, controller input, playback rate and
the beat clock itself (``Session.beat`` stands for what it does to a call). test_scope_double.py holds the same script
against scope's own processor where a checkout is given.
"""

from .installed import Scope, scope_installed
from .manager import Manager
from .processor import Turn
from .session import Session

__all__ = ["Manager", "Scope", "Session", "Turn", "scope_installed"]
