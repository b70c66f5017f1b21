"""A cluster on this machine, and viewers who follow their session as the page does."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator, Callable

import httpx
import numpy as np

from .server_peer import Viewer

SILENCE = 2.0  # seconds after which a viewer asks whether the session is still there
DIFFERENT = 0.5  # of 255, mean: less is the same picture, encoded again
SMALL = {
    "height": 64,
    "width": 96,
    "preset": "ultra",
    "playback_speed": 0.5,
    "gpus": 0,
    "cpus": 0.01,
    "host": "127.0.0.1",
}


@contextlib.asynccontextmanager
async def cluster(port: int = 8123, **config) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a cluster of small replicas on the CPU, which is ready; Ray begins and ends with it."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # else it writes a token into the user's home
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    for who in ("HANDLE", "REPLICA"):
        os.environ.setdefault(f"RAY_SERVE_{who}_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "1")
    import ray
    from ray import serve

    from longlive_optimized.demo.serving import ClusterConfig, app

    threads = {"env_vars": {"OMP_NUM_THREADS": "1"}}
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env=threads)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        await asyncio.to_thread(serve.run, app(ClusterConfig(**SMALL | {"record_seconds": 0} | config)))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            yield http
    finally:
        await asyncio.to_thread(ray.shutdown)


async def replicas(http: httpx.AsyncClient) -> list[dict]:
    """What the cluster says of its replicas."""
    return (await http.get("/status")).json()["replicas"]


async def place(http: httpx.AsyncClient) -> dict[str, int]:
    """The process of each session's replica."""
    found = {}
    for replica in await replicas(http):
        found |= {stream["stream"]: replica["pid"] for stream in replica["streams"] if not replica["draining"]}
    return found


def kill(pid: int) -> None:
    """End a replica as a lost machine does."""
    os.kill(pid, signal.SIGKILL)


async def until(look: Callable, seconds: float = 60):
    """What ``look``, which may be a coroutine function, returns once it is something."""
    end = time.monotonic() + seconds
    while True:
        found = look()
        found = await found if asyncio.iscoroutine(found) else found
        if found:
            return found
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.1)


class Watcher:
    """Watches a session until told to leave, and connects anew when it is lost or has moved.

    new: when each picture came that is another than the one before. frames: how many came in all. connected: how often.
    resumed: whether the session goes on from another replica. waits: places in the queue, as they were told.
    """

    def __init__(self, http: httpx.AsyncClient, name: str):
        self.http, self.name = http, name
        self.new: list[float] = []
        self.frames = self.connected = 0
        self.resumed = False
        self.waits: list[int] = []
        self._links: list[tuple[Viewer, asyncio.Task]] = []
        self._last: np.ndarray | None = None
        self._task = asyncio.create_task(self._watch())

    async def leave(self) -> None:
        """Go."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        await asyncio.gather(*(self._cut(link) for link in self._links))

    def gap(self, since: float = 0.0, until: float = float("inf")) -> float:
        """The longest time without a new picture, seconds, of those that ended in between."""
        pairs = itertools.pairwise(self.new)
        return max((b - a for a, b in pairs if since <= b <= until), default=float("inf"))

    def after(self, moment: float) -> float:
        """Seconds from a moment to the next new picture."""
        return next((at - moment for at in self.new if at > moment), float("inf"))

    async def _watch(self) -> None:
        while True:
            link = await self._join()
            viewer, _ = link
            heard, told = len(viewer.heard), time.monotonic()
            while True:
                await asyncio.sleep(0.1)
                if any(message["type"] == "moved" for message in viewer.heard):
                    viewer.heard.clear()
                    before, link = link, await self._join()
                    viewer, _ = link
                    pictures = len(self.new)
                    with contextlib.suppress(AssertionError):
                        await until(lambda: len(self.new) > pictures, 10)  # noqa: B023
                    await self._cut(before)
                if len(viewer.heard) != heard:
                    heard, told = len(viewer.heard), time.monotonic()
                elif time.monotonic() > told + SILENCE:
                    told = time.monotonic()
                    if await self._is_gone():
                        break
                if viewer.connection.connectionState in ("failed", "closed"):
                    break
            await self._cut(link)

    async def _join(self) -> tuple[Viewer, asyncio.Task]:
        while True:
            viewer = Viewer(self.http, stream=f"/s/{self.name}")
            try:
                await viewer.join()
            except (httpx.HTTPError, TimeoutError) as error:
                await viewer.leave()
                if isinstance(error, httpx.HTTPStatusError) and (number := error.response.json().get("queue")):
                    self.waits.append(number)
                await asyncio.sleep(0.5)
                continue
            self.connected += 1
            self.resumed |= viewer.hello["resumed"]
            link = viewer, asyncio.create_task(self._look(viewer))
            self._links.append(link)
            return link

    async def _cut(self, link: tuple[Viewer, asyncio.Task]) -> None:
        viewer, task = link
        task.cancel()
        if link in self._links:
            self._links.remove(link)
        with contextlib.suppress(Exception):
            await asyncio.wait_for(viewer.leave(), 5)

    async def _look(self, viewer: Viewer) -> None:
        with contextlib.suppress(Exception):  # aiortc's, when the connection ends
            while True:
                picture = (await viewer.picture()).astype(np.int16)
                self.frames += 1
                if self._last is None or np.abs(picture - self._last).mean() > DIFFERENT:
                    self.new.append(time.monotonic())
                    self._last = picture

    async def _is_gone(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            answer = await self.http.get(f"/s/{self.name}/status")
            return answer.status_code == 200 and answer.json()["stream"] is None
        return False
