"""A viewer without a browser, and a room to visit."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence

import httpx
import numpy as np
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from longlive_optimized.demo.server.app import create_app
from longlive_optimized.demo.server.publishing import Outlet
from longlive_optimized.demo.server.sessions import Sessions
from longlive_optimized.demo.server.settings import ServerSettings


class Viewer:
    """A connection to a room: ``frame`` and ``ask`` wait, ``heard`` collects what was said.

    label: of the data channel; None opens none. stream: the path of the stream, such as ``/s/lobby``; empty for the
    shared one. wishes: of a stream that is opened. kinds: of the sections that are offered. sends: a track that goes
    over the first of them.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        label: str | None = "control",
        kinds: Sequence[str] = ("video",),
        sends: MediaStreamTrack | None = None,
        stream: str = "",
        wishes: dict | None = None,
    ):
        self._http, self._stream, self._wishes = http, stream, {"stream": wishes} if wishes else {}
        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        for i, kind in enumerate(kinds):
            sent = sends if i == 0 else None
            self.connection.addTransceiver(sent or kind, direction="sendrecv" if sent else "recvonly")
        self.channel = None if label is None else self.connection.createDataChannel(label)
        self.heard: list[dict] = []
        self._news, self._ids, self._notes = asyncio.Condition(), 0, set()
        self._open, self._track = asyncio.Event(), asyncio.get_running_loop().create_future()
        self.connection.on("track", self._take_track)
        if self.channel:
            self.channel.on("open", self._open.set)
            self.channel.on("message", self._hear)

    async def join(self, rewrite: Callable[[str], str] = str) -> Viewer:
        """Connect, with an offer that may be rewritten. Raises httpx.HTTPStatusError where that is refused."""
        await self.watch(rewrite)
        await asyncio.wait_for(self._open.wait(), 20)
        self.hello = await self.wait_for(lambda message: message["type"] == "hello")
        return self

    async def watch(self, rewrite: Callable[[str], str] = str) -> None:
        """As ``join``, without waiting for the data channel."""
        await self.connection.setLocalDescription(await self.connection.createOffer())
        sdp = rewrite(self.connection.localDescription.sdp)
        answer = await self._http.post(f"{self._stream}/offer", json={"type": "offer", "sdp": sdp} | self._wishes)
        answer.raise_for_status()
        await self.connection.setRemoteDescription(RTCSessionDescription(**answer.json()))

    async def frame(self, timeout: float = 20):
        """The next frame."""
        track = await asyncio.wait_for(asyncio.shield(self._track), timeout)
        return await asyncio.wait_for(track.recv(), timeout)

    async def picture(self) -> np.ndarray:
        """The next frame as RGB [H, W, 3]."""
        return (await self.frame()).to_ndarray(format="rgb24")

    async def ask(self, type: str, **fields) -> dict:
        """Send a command and wait for its answer."""
        self._ids += 1
        self.say({"type": type, "id": self._ids, **fields})
        wanted = self._ids
        return await self.wait_for(lambda message: message.get("id") == wanted)

    def say(self, message) -> None:
        """Send what may be no message at all."""
        self.channel.send(message if isinstance(message, str | bytes) else json.dumps(message))

    async def wait_for(self, wanted: Callable[[dict], bool], timeout: float = 20) -> dict:
        """The first message heard so far, or from now on, that is wanted; it is taken out."""

        def look() -> dict | None:
            return next((message for message in self.heard if wanted(message)), None)

        async with self._news:
            await asyncio.wait_for(self._news.wait_for(look), timeout)
            found = look()
            self.heard.remove(found)
            return found

    async def leave(self) -> None:
        await self.connection.close()

    def _take_track(self, track) -> None:
        if track.kind == "video" and not self._track.done():
            self._track.set_result(track)

    def _hear(self, text: str) -> None:
        async def note() -> None:
            async with self._news:
                self.heard.append(json.loads(text))
                self._news.notify_all()

        task = asyncio.ensure_future(note())
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)


@contextlib.asynccontextmanager
async def visit(load, settings: ServerSettings | None = None, prompt: str = "a fox") -> AsyncIterator[tuple]:
    """The shared stream's room and an HTTP client of its server, which is ready."""
    async with visit_all(load, settings, prompt) as (sessions, http):
        yield sessions.main, http


@contextlib.asynccontextmanager
async def visit_all(
    load, settings: ServerSettings | None = None, prompt: str = "a fox", outlet: Outlet | None = None
) -> AsyncIterator[tuple]:
    """An open server's streams, and an HTTP client of it, which is ready."""
    settings = settings or ServerSettings()
    sessions = Sessions(load, prompt, settings, outlet=outlet)
    app = create_app(sessions)
    async with app.router.lifespan_context(app):
        headers = {"Authorization": f"Bearer {settings.token}"} if settings.token else {}
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as http:
            while (await http.get("/readyz")).status_code != 200:
                assert sessions.worker.error is None, sessions.worker.error
                await asyncio.sleep(0.01)
            yield sessions, http
