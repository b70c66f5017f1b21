"""Scope's modules in sys.modules for a while, and the objects of its server that a plugin can reach."""

import contextlib
import json
import sys
from importlib import metadata
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from types import SimpleNamespace
from typing import Any

import pluggy

from .manager import Manager
from .names import MODULES, ScopeHookSpec


class Scope:
    """What ``scope_installed`` yields.

    ``notifications`` are the messages broadcast so far, as a client would read them; ``stages`` are the texts given to
    ``pipeline_manager.set_loading_stage``. ``webrtc_manager`` and ``pipeline_manager`` are what the module
    ``scope.server.app`` holds; a test may set either to None there, as before the server's start.
    """

    def __init__(self):
        self.notifications: list[dict] = []
        self.unsendable: list[str] = []
        self.stages: list[str | None] = []
        self.webrtc_manager = SimpleNamespace(broadcast_notification=self._broadcast)
        self.pipeline_manager = SimpleNamespace(set_loading_stage=self.stages.append)
        self.manager = Manager(self.stages.append)

    def register(self, target: Any, name: str) -> dict[str, type]:
        """Register a plugin as pluggy does and return its pipeline classes by id.

        Scope fires the hooks through pluggy and calls them directly besides; both must give the same class objects.
        """
        plugins = pluggy.PluginManager("scope")
        plugins.add_hookspecs(ScopeHookSpec)
        plugins.register(target, name)
        plugins.check_pending()
        classes: dict[str, type] = {}
        again: list[type] = []
        plugins.hook.register_pipelines(register=lambda cls: classes.update({_type_id(cls): cls}))
        target.register_pipelines(again.append)
        if [*classes.values()] != again:
            raise AssertionError(f"register_pipelines gave {again} when called again, {classes} at first")
        return classes

    def discover(self, distribution: str) -> dict[str, type]:
        """Register an installed distribution by its entry point. Scope wants exactly one in the group ``scope``."""
        points = [point for point in metadata.distribution(distribution).entry_points if point.group == "scope"]
        if len(points) != 1:
            raise AssertionError(f"{distribution} has {len(points)} entry points in the group scope, not 1")
        return self.register(points[0].load(), points[0].name)

    def _broadcast(self, message: dict) -> None:
        try:
            self.notifications.append(json.loads(json.dumps(message, allow_nan=False)))
        except (TypeError, ValueError) as error:  # scope logs this and sends nothing; a browser reads no NaN
            self.unsendable.append(f"{message!r}: {error}")


def _type_id(cls: type) -> str:
    config = cls.get_config_class()
    type_id = getattr(cls, "node_type_id", "") or (config and config.pipeline_id)
    if not type_id:
        raise ValueError(f"{cls.__name__} has neither a node_type_id nor a config class")
    return type_id


@contextlib.contextmanager
def scope_installed(server: bool = True):
    """Put scope's modules into sys.modules, take them out at the end, and release what is loaded.

    Args:
        server: With ``scope.server.app``; False is the state of scope's command line tools.

    Raises AssertionError at the end when a notification was broadcast that is not JSON.
    """
    scope = Scope()
    before = {name: sys.modules.pop(name) for name in [*sys.modules] if name.split(".")[0] == "scope"}
    managers = {"webrtc_manager": scope.webrtc_manager, "pipeline_manager": scope.pipeline_manager}
    for name, values in (MODULES | ({"scope.server.app": managers} if server else {})).items():
        # Packages without files: any other name in them fails to import.
        module = module_from_spec(ModuleSpec(name, None, is_package=True))
        vars(module).update(values)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    try:
        yield scope
    finally:
        scope.manager.close()
        for name in [*sys.modules]:
            if name.split(".")[0] == "scope":
                del sys.modules[name]
        sys.modules.update(before)
    if scope.unsendable:
        raise AssertionError(f"notifications that are not JSON: {scope.unsendable}")
