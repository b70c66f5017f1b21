"""Start a scope checkout's own server on loopback: ``python serve.py CHECKOUT PORT TRACE``.

Routes, threads, queues and WebRTC code are scope's, and plugins come in by their entry points. Replaced are packages
that are not installed and that no plugin needs, the list of ICE servers (none) and of network interfaces (loopback),
and the networks of scope's depth and RIFE pipelines, whose weights are not here: ``stand_in_networks``.
Each plugin pipeline, and each of ``FOLLOWED``, leaves one JSON line in TRACE for its construction, every call, and its
end.
"""

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import json
import logging
import os
import sys
import tempfile
import threading
import tomllib
import types
import weakref
import zlib
from importlib import metadata
from pathlib import Path
from typing import Any

UNNEEDED = ("livepeer_gateway", "torchvision")  # imported by the server; neither comes with a CPU build of torch
FOLLOWED = {
    "passthrough": "PassthroughPipeline",
    "video-depth-anything": "VideoDepthAnythingPipeline",
    "rife": "RIFEPipeline",
}


class _StandIn(type):
    """A class whose every attribute is another such class, good for base classes and annotations."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _StandIn(name, (), {})


class _StandInModule(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _StandIn(name, (), {})


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Serves packages that are missing, with every module in them."""

    def __init__(self, packages: set[str]):
        self.packages = packages

    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] in self.packages:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        return _StandInModule(spec.name)

    def exec_module(self, module):
        pass


def make_importable(checkout: Path) -> None:
    """Put scope on the path, with what it lacks here."""
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(checkout / "src"))
    sys.meta_path.append(_StandIns({name for name in UNNEEDED if importlib.util.find_spec(name) is None}))
    try:
        metadata.version("daydream-scope")
    except metadata.PackageNotFoundError:  # the server asks for its own version
        version = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]["version"]
        info = Path(tempfile.mkdtemp(), f"daydream_scope-{version}.dist-info")
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: daydream-scope\nVersion: {version}\n")
        sys.path.append(str(info.parent))
    if sys.version_info < (3, 12):  # one module of type aliases in 3.12's syntax
        aliases = types.ModuleType("scope.server.scope_cloud_types")
        aliases.ScopeCloudBackend = Any
        sys.modules[aliases.__name__] = aliases


def stand_in_networks() -> None:
    """Let scope's depth and RIFE pipelines work without their weights: the depth of a pixel is its brightness, and
    RIFE's own network says that nothing moves, of which it makes the mean of two frames."""
    import torch
    from scope.core.config import get_model_file_path
    from scope.core.pipelines.rife.modules.RIFE_HDv3 import Model
    from scope.core.pipelines.video_depth_anything import modules

    class Brightness(torch.nn.Module):
        def __init__(self, **kwargs):
            super().__init__()

        def infer_video_depth_one(self, frame, cached_hidden_state_list=None, **kwargs):
            return frame.astype("float32").mean(-1), cached_hidden_state_list

    modules.VideoDepthAnything = Brightness
    depth = get_model_file_path("Video-Depth-Anything-Small/video_depth_anything_vits.pth")
    rife = get_model_file_path("RIFE/flownet.pkl")
    still = Model()
    for block in (still.flownet.block0, still.flownet.block1, still.flownet.block2, still.flownet.block3):
        for weight in block.lastconv.parameters():
            torch.nn.init.zeros_(weight)
    for file in (depth, rife):
        file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({}, depth)
    still.save_model(rife.parent)


def _level(frames) -> float:
    """The mean of frames, which scope has in 0 to 255 or as floats in 0 to 1, in 0 to 255."""
    frames = [frames] if not isinstance(frames, list) else frames
    means = [frame.double().mean().item() * (255 if frame.is_floating_point() else 1) for frame in frames]
    return sum(means) / len(means)


class Trace:
    """JSON lines, from any thread."""

    def __init__(self, path: str):
        self._file, self._lock = open(path, "a", buffering=1), threading.Lock()

    def note(self, what: str, **record) -> None:
        with self._lock:
            line = {"what": what, "thread": threading.get_ident(), **record}
            self._file.write(json.dumps(line, default=repr) + "\n")

    def follow(self, cls: type, pipeline_id: str) -> None:
        """Note what happens to instances of a class; the class object stays the same."""
        note = functools.partial(self.note, pipeline_id=pipeline_id)
        init, call, running, numbers = cls.__init__, cls.__call__, [], itertools.count()

        @functools.wraps(init)
        def traced_init(pipeline, *args, **kwargs):
            try:
                init(pipeline, *args, **kwargs)
            except Exception as error:
                note("init", kwargs=kwargs, error=f"{type(error).__name__}: {error}")
                raise
            number = next(numbers)
            note("init", kwargs=kwargs, number=number)
            weakref.finalize(pipeline, note, "collected", number=number)

        @functools.wraps(call)
        def traced_call(pipeline, **kwargs):
            frames = kwargs.get("video")
            said = {key: value for key, value in kwargs.items() if not key.startswith("video")}
            record = {"kwargs": said, "frames_in": len(frames) if isinstance(frames, list) else 0}
            record |= {"level_in": _level(frames)} if record["frames_in"] else {}
            running.append(1)
            try:
                result = call(pipeline, **kwargs)
            except Exception as error:
                note("call", **record, error=f"{type(error).__name__}: {error}")
                raise
            finally:
                record["at_once"] = len(running)
                running.pop()
            if result:  # an empty one comes every 10 ms
                video = result["video"].cpu().contiguous()
                note("call", **record, shape=[*video.shape], sum=zlib.crc32(video.numpy()), level=_level(video))
            return result

        cls.__init__, cls.__call__ = traced_init, traced_call


def serve(checkout: Path, port: int, trace: Trace) -> None:
    """Until the process ends."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    make_importable(checkout)
    from scope.core import pipelines
    from scope.core.nodes.registry import NodeRegistry
    from scope.core.pipelines import registry  # noqa: F401 — registers everything, as the command line program does
    from scope.core.plugins import get_plugin_manager

    for type_id in NodeRegistry.list_node_types():
        if get_plugin_manager().get_plugin_for_type_id(type_id):
            trace.follow(NodeRegistry.get(type_id), type_id)
    stand_in_networks()
    for type_id, name in FOLLOWED.items():
        trace.follow(getattr(pipelines, name), type_id)

    import aioice.ice
    import uvicorn
    from aiortc import RTCConfiguration
    from scope.server import webrtc

    aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"]
    webrtc.create_rtc_config = lambda: RTCConfiguration(iceServers=[])
    os.environ["SCOPE_HOST"], os.environ["SCOPE_PORT"] = "127.0.0.1", str(port)  # of its OSC server
    uvicorn.run("scope.server.app:app", host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=1)


if __name__ == "__main__":
    serve(Path(sys.argv[1]).resolve(), int(sys.argv[2]), Trace(sys.argv[3]))
