"""``longlive-optimized serve --cluster``: a cluster of this machine's GPUs, or of one that Ray runs already."""

from __future__ import annotations

import os
import re
import signal
import threading
from typing import Any

import ray
import torch
from ray import serve

from ...engine.devices import checked
from ...weights.locate import locate
from .config import ClusterConfig
from .deployment import app

EVERY_ADDRESS = "0.0.0.0", "::"


def run(port: int, host: str, **fields: Any) -> None:
    """Serve until a signal comes.

    port, host: of the one address. fields: ClusterConfig's, of which it raises the errors. Replicas are one for each
    GPU that PyTorch sees, or one on the CPU where there is none, and so many seats as ClusterConfig says. Raises
    OSError where they do not come up.
    """
    cuda = torch.cuda.is_available() and fields.get("device") != "cpu"
    usual: dict[str, Any] = {"gpus": 1, "replicas": torch.cuda.device_count()} if cuda else {"gpus": 0}
    config = ClusterConfig(**usual | fields, host=None if host in EVERY_ADDRESS else host)
    ended = threading.Event()
    joins = "RAY_ADDRESS" in os.environ
    if not joins:  # what is not here will be nowhere
        checked(config.device)
        locate(config.model)
    ray.init(log_to_driver=False, include_dashboard=None if joins else False)
    try:
        serve.start(http_options={"host": host, "port": port})
        try:
            serve.run(app(config))
        except RuntimeError as error:
            raise OSError(f"the cluster does not come up: {_reason() or error}") from error
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: ended.set())
        print(f"open http://{host}:{port}/  (Ctrl-C ends)", flush=True)
        ended.wait()
    finally:
        if joins:
            serve.delete("default", _blocking=False)
        ray.shutdown()


def _reason() -> str:
    """Why replicas do not come up: the last error that Serve tells of one."""
    deployments = [one for each in serve.status().applications.values() for one in each.deployments.values()]
    lines = [line.strip() for one in deployments if one.status.name != "HEALTHY" for line in one.message.splitlines()]
    return next((line for line in reversed(lines) if re.match(r"[\w.]*(Error|Exception|MemoryShort)\b", line)), "")
