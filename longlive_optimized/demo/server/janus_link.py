"""A connection to Janus and its VideoRoom plugin, by janus-client: questions, answers, one video, and the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Sequence

from aiortc import RTCConfiguration, RTCIceServer

from .publishing import Lost
from .settings import IceServer

_handler = logging.NullHandler()
logging.root.addHandler(_handler)  # or janus-client would set up the program's log, at INFO
try:
    from janus_client import JanusPlugin, JanusSession, JanusTransportWebsocket, PluginAttachFail
finally:
    logging.root.removeHandler(_handler)

ANSWER_SECONDS = 10.0  # within which Janus must answer
CONNECT_SECONDS = 20.0  # within which the connection for video must stand
LEAVE_SECONDS = 1.0  # that a good-bye may take
WRONG_SECRET, CLOSED_TO_TOKEN = 403, 405  # Janus's codes

# Its log repeats secrets, and has tracebacks of what is told here.
logging.getLogger("janus_client").setLevel(logging.CRITICAL)


class Refused(Exception):
    """An error that Janus answers with, and its code."""

    def __init__(self, code: int, words: str):
        super().__init__(f"{words}, code {code}")
        self.code = code


class Plugin(JanusPlugin):
    """A handle of the VideoRoom plugin. over: says why it ended, once it has."""

    name = "janus.plugin.videoroom"

    def __init__(self, ice_servers: Sequence[IceServer]):
        servers = [RTCIceServer(one.urls, one.username, one.credential) for one in ice_servers]
        super().__init__(pc_config=RTCConfiguration(iceServers=servers))
        self.over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.connected = asyncio.Event()
        self.pc.on("connectionstatechange", self._follow_state)

    async def on_receive(self, response: dict) -> None:
        """Take what Janus says unasked."""
        data = response.get("plugindata", {}).get("data", {})
        if response["janus"] == "hangup":
            self._end(f"Janus hung up: {response.get('reason', 'no reason given')}")
        elif response["janus"] == "detached":
            self._end("Janus ended the session")
        elif data.get("videoroom") == "destroyed":
            self._end("the room was destroyed")
        elif data.get("leaving") == "ok":
            self._end(f"Janus put us out of the room: {data.get('reason', 'no reason given')}")
        elif data.get("unpublished") == "ok":
            self._end("Janus ended the publication")

    def _end(self, why: str) -> None:
        if not self.over.done():
            self.over.set_result(why)

    def _follow_state(self) -> None:
        if self.pc.connectionState == "connected":
            self.connected.set()
        if self.pc.connectionState in ("failed", "closed"):
            self._end("the connection for video has ended")


class Link:
    """A session of Janus's with one handle, from ``open`` to ``close``. All but ``close`` raise Lost."""

    def __init__(self, url: str, api_secret: str | None, token: str | None, ice_servers: Sequence[IceServer]):
        self._transport = JanusTransportWebsocket(base_url=url, api_secret=api_secret, token=token)  # pyright: ignore[reportArgumentType]
        self._session = JanusSession(transport=self._transport)
        self._plugin = Plugin(ice_servers)
        self.pc = self._plugin.pc

    @property
    def local_address(self) -> str:
        """This machine's, of the WebSocket."""
        return self._transport.ws.local_address[0]

    async def open(self) -> None:
        """Begin a session and attach the handle."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._session.create()
                await self._plugin.attach(self._session)
        except Exception as error:
            raise Lost(_why_not_open(error)) from error

    async def ask(self, body: dict, jsep: dict | None = None) -> dict:
        """Janus's answer. Raises Refused."""
        message = {"janus": "message", "body": body} | ({"jsep": jsep} if jsep else {})
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                asked = await self._plugin.send(message)
                answer = await asked.get(lambda heard: heard["janus"] in ("success", "event", "error"))
                await asked.done()
        except TimeoutError:
            raise Lost("no answer of Janus") from None
        except Exception as error:  # janus-client's and websockets' of a connection that has ended
            raise Lost(f"the connection to Janus has ended: {error}") from error
        if error := answer.get("error"):
            raise Refused(error.get("code", 0), error.get("reason", "an error without a reason"))
        data = answer.get("plugindata", {}).get("data", {})
        if "error" in data:
            raise Refused(data.get("error_code", 0), data["error"])
        return answer

    async def connected(self) -> None:
        """Wait until the connection for video stands."""
        stands = asyncio.ensure_future(self._plugin.connected.wait())
        try:
            await self._first(stands, timeout=CONNECT_SECONDS)
        finally:
            stands.cancel()
        if self._plugin.over.done():
            raise Lost(self._plugin.over.result())
        if not self._plugin.connected.is_set():
            raise Lost("no video gets through to Janus: something on the way may block UDP")

    async def ended(self) -> str:
        """Wait for the end, and say what it was."""
        await self._first()
        over = self._plugin.over
        return over.result() if over.done() else "the connection to Janus has ended"

    async def close(self) -> None:
        """Say good-bye where Janus is still there, and let go of everything."""
        await self.pc.close()
        if self._session.created and self._transport.connected:
            await _within(LEAVE_SECONDS, self._session.destroy())
        await _within(LEAVE_SECONDS, self._transport.disconnect())
        if socket := getattr(self._transport, "ws", None):
            socket.transport.abort()  # where the other end did not answer
        if beat := getattr(self._session, "keepalive_task", None):
            beat.cancel()
            await asyncio.gather(beat, return_exceptions=True)

    async def _first(self, *others: asyncio.Future, timeout: float | None = None) -> None:
        ends = {self._transport.receive_message_task, self._plugin.over}
        await asyncio.wait({*ends, *others}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)


async def _within(seconds: float, doing: Awaitable) -> None:
    """Wait for it, but not long, and whatever comes of it: the other end may be gone."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(seconds):
            await doing


def _why_not_open(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer of Janus"
    if isinstance(error, OSError):
        return f"Janus cannot be reached: {error.strerror or error}"
    if f"'code': {WRONG_SECRET}" in str(error):  # janus-client gives it in no other form
        return "Janus wants another secret or token: set LONGLIVE_JANUS_API_SECRET or LONGLIVE_JANUS_TOKEN to its own"
    if isinstance(error, PluginAttachFail):
        hint = ": LONGLIVE_JANUS_TOKEN has to allow it" if f"'code': {CLOSED_TO_TOKEN}" in str(error) else ""
        return f"Janus does not open its VideoRoom plugin{hint} ({error})"
    return f"what answers does not speak Janus's protocol over WebSockets: {type(error).__name__}: {error}"
