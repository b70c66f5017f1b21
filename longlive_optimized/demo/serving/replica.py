"""One GPU of a cluster: an engine, and the server of its streams."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import uvicorn

from ...engine.loading import Progress
from ..server.app import create_app
from ..server.sessions import Sessions
from ..server.source import EngineSource
from .config import ClusterConfig
from .directory import Report

log = logging.getLogger(__name__)

REPORT = 0.5  # seconds between two reports
LOOK = 0.1  # seconds between two looks at whether a session has ended
ARRIVAL = 5.0  # seconds within which the viewer for whom a session was opened must come
FIRST_BLOCK = 30.0  # seconds that the first block of one that goes on may take
LEAVING = 15.0  # seconds that viewers may take to follow a session that has moved


class Replica:
    """A server at an address of its own, whose sessions are let in and followed by ``hold``.

    name: the replica's. address: for the gate, once it is open. draining: whether it is to go, so that all sessions
    have to leave. host: the address that it binds. desk: the actor.
    """

    def __init__(self, name: str, config: ClusterConfig, host: str, desk: Any):
        self.name, self.draining, self._config, self._desk = name, False, config, desk
        self.sessions = Sessions(self._load, config.first_prompt, config.server(host))
        self._listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        port = self._listener.getsockname()[1]
        self.address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        quiet = {"log_level": "warning", "access_log": False, "server_header": False}
        # The gate says whom a request is from; who may use the server at all, the token tells.
        web = uvicorn.Config(create_app(self.sessions), lifespan="on", ws="none", forwarded_allow_ips="*", **quiet)
        self._web = uvicorn.Server(web)
        self._held: dict[str, int] = {}  # how many requests hold a session
        self._moved: set[str] = set()
        self._kept: dict[str, int] = {}  # blocks that a session had when it was kept
        self._tasks: set[asyncio.Task] = set()

    async def open(self) -> None:
        """Load the model and begin to serve. Raises what loading raised."""
        self._start(self._web.serve(sockets=[self._listener]))
        while not self.sessions.ready:
            if self.sessions.worker.error:
                raise self.sessions.worker.error
            await asyncio.sleep(LOOK)
        await self._report()
        self._start(self._every(REPORT, self._report))
        self._start(self._every(REPORT, self._keep_all))

    def watch(self, is_to_go: Callable[[], Awaitable[bool]]) -> None:
        """Ask now and then whether it is to go."""

        async def look() -> None:
            if not self.draining and await is_to_go():
                for name in [*self.sessions.names]:
                    await self._keep(name)
                self.draining = True
            for name in [*self.sessions.names] if self.draining else []:
                if not self.sessions.room(name).people:
                    self.sessions.end(name)

        self._start(self._every(REPORT, look))

    async def close(self) -> None:
        """Say good-bye to those who are still there."""
        self._web.should_exit = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*self._tasks, return_exceptions=True), 5)

    @property
    def healthy(self) -> bool:
        """Whether it can make blocks."""
        return self.sessions.ready

    async def hold(self, name: str) -> AsyncIterator[dict]:
        """Open a session, which goes on where it was if it was somewhere, and last as long as it does. Yields where it
        is, once its first viewer can come."""
        resumed = await self._resume(name)
        self._held[name] = self._held.get(name, 0) + 1
        try:
            yield {"replica": self.name, "address": self.address, "resumed": resumed}
            await self._until(lambda: name in self.sessions.names, ARRIVAL)
            while name in self.sessions.names:
                await asyncio.sleep(LOOK)
        finally:
            self._held[name] -= 1
            if not self._held[name]:
                del self._held[name]

    async def _resume(self, name: str) -> bool:
        if not (found := await self._desk.saved.remote(name)):
            return False
        loop = asyncio.get_running_loop()
        try:
            data = await asyncio.wait_for(found[0], 10)
            saved = await loop.run_in_executor(None, pickle.loads, data)  # from a replica like this one, through Ray
        except Exception:
            log.exception("what session %s should go on from could not be read: it begins anew", name[:8])
            return False
        room = self.sessions.resume(name, saved)
        await self._until(lambda: len(room.feed.frames) or room.feed.paused, FIRST_BLOCK)
        return True

    async def _until(self, there: Callable[[], object], seconds: float) -> None:
        end = asyncio.get_running_loop().time() + seconds
        while not there() and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(LOOK / 2)

    def _load(self, progress: Progress) -> EngineSource:
        return EngineSource(self._config.model, self._config.stream, self._config.device, progress)

    # --- what it tells the desk

    async def _report(self) -> None:
        status, here = self.sessions.status(), [*self.sessions.names]
        report = Report(
            replica=self.name,
            address=self.address,
            pid=os.getpid(),
            seats=self._config.seats,
            sessions=sorted({*here, *self._held}),
            draining=self.draining,
            figures=status["streams"],
            load=status["sessions"]["load"],
        )
        for name in await self._desk.report.remote(report):
            if name in here and name not in self._moved:
                self._moved.add(name)
                self._start(self._part(name))

    async def _part(self, name: str) -> None:
        """A session goes on elsewhere: lead its viewers there, then end it here."""
        room = self.sessions.room(name)
        room.say_moved()
        await self._until(lambda: not room.people, LEAVING)
        self.sessions.end(name)
        await asyncio.sleep(2 * REPORT)
        self._moved.discard(name)
        self._kept.pop(name, None)

    async def _keep_all(self) -> None:
        for name in [*self.sessions.names]:
            with contextlib.suppress(KeyError):
                room = self.sessions.room(name)
                if room.feed.blocks >= self._kept.get(name, 0) + self._config.snapshot_blocks or name not in self._kept:
                    await self._keep(name)
        for name in self._kept.keys() - {*self.sessions.names}:
            del self._kept[name]

    async def _keep(self, name: str) -> bool:
        """Keep a session's state where it outlives this replica; False where it has none yet."""
        room = self.sessions.room(name)
        blocks = room.feed.blocks

        def save() -> bytes | None:
            saved = room.save()
            return None if saved is None else pickle.dumps(saved)

        data = await asyncio.get_running_loop().run_in_executor(None, save)
        if data is None:
            return False
        await self._desk.keep.remote(name, self.name, data)
        self._kept[name] = blocks
        return True

    async def _every(self, seconds: float, act: Callable) -> None:
        while not self._web.should_exit:
            await asyncio.sleep(seconds)
            try:
                await act()
            except Exception:  # the desk may be starting anew
                log.exception("the desk could not be told")

    def _start(self, work) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
