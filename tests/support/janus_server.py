"""Janus as Debian packages it, on this machine with a configuration of its own, and its viewers."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
from aiortc import RTCConfiguration, RTCSessionDescription

from longlive_optimized.demo.server.rtc import all_addresses

MISSING = None if shutil.which("janus") else "needs Janus: apt-get install janus"
MAIN_CONFIG = """
general: {{
    configs_folder = "{folder}"
    debug_level = 4
    api_secret = "{secret}"
    server_name = "test"
}}
media: {{ rtp_port_range = "20000-29999" }}
plugins: {{ disable = "{plugins}" }}
transports: {{ disable = "{transports}" }}
"""
SOCKETS_CONFIG = """
general: {{ ws = true, ws_port = {port}, ws_ip = "127.0.0.1", wss = false }}
admin: {{ admin_ws = false }}
"""
ROOMS_CONFIG = """
general: {{ admin_key = "{admin_key}", string_ids = {string_ids} }}
{rooms}
"""


class JanusServer:
    """A process of Janus: ``start`` and ``kill`` it as often as you like, at the same port.

    rooms: their settings by number, in Janus's own syntax.
    """

    def __init__(
        self,
        folder: Path,
        rooms: dict[int, str],
        secret: str = "the secret of the API",
        admin_key: str = "the key to rooms",
        string_ids: bool = False,
    ):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        self.secret, self.admin_key, self._folder = secret, admin_key, folder
        written = "\n".join(f"room-{number}: {{ {fields} }}" for number, fields in rooms.items())
        names = {
            "janus.jcfg": MAIN_CONFIG.format(
                folder=folder,
                secret=secret,
                plugins=",".join(_libraries("plugins", besides="videoroom")),
                transports=",".join(_libraries("transports", besides="websockets")),
            ),
            "janus.transport.websockets.jcfg": SOCKETS_CONFIG.format(port=self.port),
            "janus.plugin.videoroom.jcfg": ROOMS_CONFIG.format(
                admin_key=admin_key, rooms=written, string_ids=str(string_ids).lower()
            ),
        }
        for name, text in names.items():
            (folder / name).write_text(text)
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start it and wait until it listens."""
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                ["janus", "--configs-folder", str(self._folder), "--disable-colors"], stdout=log, stderr=log
            )
        end = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert self._process.poll() is None and time.monotonic() < end, self.log
            time.sleep(0.05)

    def kill(self) -> None:
        """Kill it, without a good-bye."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Let it stand still: connections to it are neither answered nor ended."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self._process
        self._process.send_signal(signal.SIGCONT)

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")[-3000:]


@contextlib.contextmanager
def janus(rooms: dict[int, str], **how) -> Iterator[JanusServer]:
    """Such a server, started."""
    with tempfile.TemporaryDirectory(prefix="janus-") as folder:
        server = JanusServer(Path(folder), rooms, **how)
        try:
            server.start()
            yield server
        finally:
            server.kill()


class Subscriber:
    """Watches the first publisher of a room, by a session of its own: ``frame`` waits for a picture."""

    def __init__(self, server: JanusServer, room: int | str, pin: str | None = None):
        from janus_client import JanusSession

        self._room, self._pin = room, {"pin": pin} if pin else {}
        self._session = JanusSession(base_url=f"ws://127.0.0.1:{server.port}", api_secret=server.secret)
        self._handle, self.codec = None, ""
        self._track = asyncio.get_running_loop().create_future()

    async def join(self) -> Subscriber:
        """Connect. Raises AssertionError where the room has no publisher."""
        await self._session.create()
        self._handle = _handle()
        await self._handle.attach(self._session)
        listed = (await self._ask({"request": "listparticipants"}))["plugindata"]["data"]
        feeds = [one["id"] for one in listed["participants"] if one["publisher"]]
        assert feeds, "nobody publishes"
        streams = [{"feed": feeds[0]}]
        offer = await self._ask({"request": "join", "ptype": "subscriber", "streams": streams, **self._pin})
        assert "jsep" in offer, offer
        connection = self._handle.pc
        connection.on("track", lambda track: self._track.done() or self._track.set_result(track))
        self.codec = offer["plugindata"]["data"]["streams"][0]["codec"]
        await connection.setRemoteDescription(RTCSessionDescription(offer["jsep"]["sdp"], "offer"))
        with all_addresses(besides="127.0.0.1"):  # Janus itself uses none of loopback's
            await connection.setLocalDescription(await connection.createAnswer())
        answer = {"type": "answer", "sdp": connection.localDescription.sdp}
        await self._ask({"request": "start"}, jsep=answer)
        return self

    @property
    def pc(self):
        """The connection for video."""
        return self._handle.pc

    async def frame(self, timeout: float = 20):
        """The next frame."""
        track = await asyncio.wait_for(asyncio.shield(self._track), timeout)
        return await asyncio.wait_for(track.recv(), timeout)

    async def picture(self, timeout: float = 20) -> np.ndarray:
        """The next frame as RGB [H, W, 3]."""
        return (await self.frame(timeout)).to_ndarray(format="rgb24")

    async def leave(self) -> None:
        """End the session and the connection, whether or not the server is still there."""
        if self._handle:
            await self._handle.pc.close()
        await self._session.transport.disconnect()
        if task := getattr(self._session, "keepalive_task", None):
            task.cancel()

    async def _ask(self, body: dict, **more) -> dict:
        asked = await self._handle.send({"janus": "message", "body": {"room": self._room} | body, **more})
        return await asked.get(lambda answer: answer["janus"] in ("success", "event", "error"), timeout=15)


@contextlib.asynccontextmanager
async def subscribers(server: JanusServer, room: int | str, count: int, pin: str | None = None) -> AsyncIterator[list]:
    """So many viewers of a room's first publisher, who leave at the end."""
    watching = [Subscriber(server, room, pin) for _ in range(count)]
    try:
        for one in watching:
            await one.join()
        yield watching
    finally:
        await asyncio.gather(*(one.leave() for one in watching))


def _handle():
    from janus_client import JanusPlugin

    class Handle(JanusPlugin):
        name = "janus.plugin.videoroom"

        def __init__(self) -> None:
            super().__init__(pc_config=RTCConfiguration(iceServers=[]))

        async def on_receive(self, response: dict) -> None:
            pass

    return Handle()


def _libraries(kind: str, besides: str) -> list[str]:
    folders = [*Path("/usr/lib").glob(f"*/janus/{kind}"), *Path("/usr/lib/janus").glob(kind)]
    found = {path.name for folder in folders for path in folder.glob("*.so") if besides not in path.name}
    return sorted(found)
