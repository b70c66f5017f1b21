"""A room of Janus's VideoRoom plugin as an outlet: Janus sends on what it is sent once, to all who subscribe there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from aiortc import RTCConfiguration, RTCIceServer, RTCSessionDescription

from .encoding import ViewerTrack
from .offer import BadOffer
from .publishing import Lost
from .rtc import all_addresses, first_codec, preferred
from .settings import ServerSettings

if TYPE_CHECKING:
    from janus_client import JanusPlugin, JanusSession

FORM = "janus://HOST[:PORT][/PATH]/ROOM, or januss:// for a connection over TLS"
PORTS = {"janus": ("ws", 8188), "januss": ("wss", 8989)}  # Janus's own
ROOM = re.compile(r"[A-Za-z0-9_.-]{1,64}")
ANSWER_SECONDS = 10.0  # within which Janus must answer
CONNECT_SECONDS = 20.0  # within which the connection for video must stand
LEAVE_SECONDS = 1.0  # that a good-bye may take

# Of Janus (405 is of token authentication, for a plugin) and of its VideoRoom.
UNAUTHORIZED, UNAUTHORIZED_PLUGIN, NO_SUCH_ROOM, ROOM_EXISTS, FULL, ROOM_UNAUTHORIZED = 403, 405, 426, 427, 432, 433
MISSING = 429  # such as a PIN or a key that was not given


class JanusAddress(NamedTuple):
    """Where Janus listens for WebSockets, and a room there: a number, or a text where Janus has ``string_ids``."""

    url: str
    room: int | str


class JanusSecrets(NamedTuple):
    """What Janus may ask for.

    api_secret, token: of its API. pin: of the room. admin_key: to make a room.
    """

    api_secret: str | None = None
    token: str | None = None
    pin: str | None = None
    admin_key: str | None = None


class JanusRoom:
    """An outlet of a room. Raises ImportError where ``janus-client`` is missing.

    make: make the room where it does not exist.
    """

    def __init__(
        self, address: JanusAddress, settings: ServerSettings, secrets: JanusSecrets | None = None, make: bool = False
    ):
        import janus_client  # noqa: F401

        # Its log repeats secrets, and has tracebacks of what is told here.
        logging.getLogger("janus_client").setLevel(logging.CRITICAL)
        self.address = f"room {address.room} of {address.url}"
        self._where, self._settings, self._make = address, settings, make
        self._secrets = secrets or JanusSecrets()

    async def publish(self, track: ViewerTrack, rate: int, begin: Callable[[], None]) -> None:
        """Join the room and send until that ends. Raises Lost."""
        session = await self._enter()
        handle = None
        try:
            handle = _new_handle(self._settings)
            await self._attach(session, handle)
            await self._join(handle, rate)
            await self._connect(session, handle, track, rate)
            begin()
            raise Lost(await _end(session, handle))
        finally:
            await _leave(session, handle)

    async def _enter(self) -> JanusSession:
        """A session, which must be left."""
        from janus_client import JanusSession

        secrets = self._secrets
        session = JanusSession(self._where.url, secrets.api_secret, secrets.token)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await session.create()
            return session
        except BaseException as error:
            await _leave(session, None)
            if isinstance(error, asyncio.CancelledError):
                raise
            raise Lost(self._why_not_entered(error)) from error

    def _why_not_entered(self, error: BaseException) -> str:
        if isinstance(error, TimeoutError):
            return "no answer of Janus"
        if isinstance(error, OSError):
            return f"Janus cannot be reached: {error.strerror or error}"
        if f"'code': {UNAUTHORIZED}" in str(error):  # janus-client has no other form of it
            return (
                "Janus wants another secret or token: set LONGLIVE_JANUS_API_SECRET or LONGLIVE_JANUS_TOKEN to its own"
            )
        return f"what answers does not speak Janus's protocol over WebSockets: {type(error).__name__}: {error}"

    async def _attach(self, session: JanusSession, handle: Handle) -> None:
        from janus_client.session import PluginAttachFail

        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await handle.plugin.attach(session)
        except PluginAttachFail as error:
            if f"'code': {UNAUTHORIZED_PLUGIN}" in str(error):
                raise Lost("the token in LONGLIVE_JANUS_TOKEN does not open Janus's VideoRoom plugin") from error
            raise Lost(f"Janus does not open its VideoRoom plugin: {error}") from error
        except TimeoutError:
            raise Lost("no answer of Janus") from None

    async def _join(self, handle: Handle, rate: int) -> None:
        body = {"request": "join", "ptype": "publisher", "display": "longlive-optimized"}
        body |= self._room(pin=self._secrets.pin)
        try:
            await handle.ask(body)
        except Refused as refused:
            if refused.code != NO_SUCH_ROOM or not self._make:
                raise Lost(self._why_not_joined(refused)) from None
            await self._make_room(handle, rate)
            try:
                await handle.ask(body)
            except Refused as again:
                raise Lost(self._why_not_joined(again)) from None

    async def _make_room(self, handle: Handle, rate: int) -> None:
        body = {"request": "create", "videocodec": "vp8,h264", "bitrate": rate, "permanent": False}
        try:
            await handle.ask(body | self._room(pin=self._secrets.pin, admin_key=self._secrets.admin_key))
        except Refused as refused:
            if refused.code in (ROOM_UNAUTHORIZED, MISSING):
                raise Lost(
                    f"Janus lets nobody make rooms without its key: set LONGLIVE_JANUS_ADMIN_KEY to the admin_key of "
                    f"its VideoRoom plugin ({refused})"
                ) from None
            if refused.code != ROOM_EXISTS:
                raise Lost(f"Janus does not make room {self._where.room}: {refused}") from None

    def _room(self, **secrets: str | None) -> dict:
        return {"room": self._where.room} | {name: value for name, value in secrets.items() if value is not None}

    def _why_not_joined(self, refused: Refused) -> str:
        room = self._where.room
        match refused.code:
            case c if c == NO_SUCH_ROOM:
                return f"Janus has no room {room}: make it there, or let it be made by --publish-make-room"
            case c if c in (ROOM_UNAUTHORIZED, MISSING):
                return f"room {room} wants another PIN: set LONGLIVE_JANUS_PIN to its own ({refused})"
            case c if c == FULL:
                return f"room {room} has as many publishers as it takes ({refused})"
        return f"Janus does not let us into room {room}: {refused}"

    async def _connect(self, session: JanusSession, handle: Handle, track: ViewerTrack, rate: int) -> None:
        """Send the track over a connection that stands."""
        pc = handle.plugin.pc
        transceiver = pc.addTransceiver(track, direction="sendonly")
        transceiver.setCodecPreferences(preferred(self._settings.codec))
        # Addresses that viewers come to need not reach Janus, as loopback; that of the WebSocket does.
        with all_addresses(besides=session.transport.ws.local_address[0]):
            await pc.setLocalDescription(await pc.createOffer())
        jsep = {"type": "offer", "sdp": pc.localDescription.sdp}
        try:
            answer = await handle.ask({"request": "publish", "bitrate": rate}, jsep)
        except Refused as refused:
            raise Lost(f"Janus does not let us publish in room {self._where.room}: {refused}") from None
        sdp = answer.get("jsep", {}).get("sdp", "")
        try:
            track.codec = first_codec(sdp)
            await pc.setRemoteDescription(RTCSessionDescription(sdp, "answer"))
        except (BadOffer, ValueError) as error:
            words = "room {} takes neither VP8 nor H264 of the Baseline profile: allow one there by its videocodec"
            raise Lost(words.format(self._where.room)) from error
        track.follow(transceiver.sender)
        await handle.connected()


class Refused(Exception):
    """An error that Janus answers with, and its code."""

    def __init__(self, code: int, words: str):
        super().__init__(f"{words}, code {code}")
        self.code = code


class Handle:
    """A handle of the VideoRoom plugin: asks, and hears that it ends. plugin: janus-client's."""

    def __init__(self, plugin: JanusPlugin):
        self.plugin = plugin
        self.over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._connected = asyncio.Event()
        plugin.pc.on("connectionstatechange", self._follow_state)

    async def ask(self, body: dict, jsep: dict | None = None) -> dict:
        """Janus's answer. Raises Refused, and Lost where there is none."""
        message = {"janus": "message", "body": body} | ({"jsep": jsep} if jsep else {})
        try:
            asked = await self.plugin.send(message)
            answer = await asked.get(lambda heard: heard["janus"] in ("success", "event", "error"), ANSWER_SECONDS)
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
        """Wait until the connection for video stands. Raises Lost."""
        waiting = asyncio.ensure_future(self._connected.wait())
        try:
            await asyncio.wait({waiting, self.over}, timeout=CONNECT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if self.over.done():
            raise Lost(self.over.result())
        if not self._connected.is_set():
            raise Lost("no video gets through to Janus: something on the way may block UDP")

    def hear(self, message: dict) -> None:
        """Take what Janus says by itself."""
        data = message.get("plugindata", {}).get("data", {})
        if message["janus"] == "hangup":
            self._end(f"Janus hung up: {message.get('reason', 'no reason given')}")
        elif message["janus"] in ("detached", "timeout"):
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
        state = self.plugin.pc.connectionState
        if state == "connected":
            self._connected.set()
        if state in ("failed", "closed"):
            self._end("the connection for video has ended")


def read_address(text: str) -> JanusAddress:
    """A room's address. Raises ValueError, which says the form."""
    parts = urlsplit(text)
    path, _, room = parts.path.rpartition("/")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if parts.username is not None:
        raise ValueError(f"a room of Janus is {FORM}, without a name or password: secrets are for the environment")
    wrong = port == 0 or parts.scheme not in PORTS or not parts.hostname or parts.query or parts.fragment
    if wrong or not ROOM.fullmatch(room):
        raise ValueError(f"a room of Janus is {FORM}, got {text!r}")
    scheme, usual = PORTS[parts.scheme]
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return JanusAddress(f"{scheme}://{host}:{port or usual}{path}", int(room) if room.isdecimal() else room)


def _new_handle(settings: ServerSettings) -> Handle:
    from janus_client import JanusPlugin

    class Plugin(JanusPlugin):
        name = "janus.plugin.videoroom"

        async def on_receive(self, response: dict) -> None:
            handle.hear(response)

    servers = [RTCIceServer(s.urls, s.username, s.credential) for s in settings.ice_servers]
    handle = Handle(Plugin(pc_config=RTCConfiguration(iceServers=servers)))
    return handle


async def _end(session: JanusSession, handle: Handle) -> str:
    """Wait for the end, and say which it was."""
    listening = session.transport.receive_message_task
    await asyncio.wait({listening, handle.over}, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(0)
    return "the connection to Janus has ended" if listening.done() else handle.over.result()


async def _leave(session: JanusSession, handle: Handle | None) -> None:
    """Say good-bye where Janus is still there, and close everything."""
    if handle:
        await handle.plugin.pc.close()
    with contextlib.suppress(Exception):  # of whatever is half open or has ended by itself
        async with asyncio.timeout(LEAVE_SECONDS):
            if session.created and session.transport.connected:
                await session.destroy()
            await session.transport.disconnect()
    if beat := getattr(session, "keepalive_task", None):
        beat.cancel()
        await asyncio.gather(beat, return_exceptions=True)
