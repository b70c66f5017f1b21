"""Open Sound Control: what artists' programs and controllers send by UDP becomes the messages that viewers send.

Each datagram holds a message, or a bundle of them, which are obeyed as they come, whatever time they are for. An
address names a message by its type, or one of ``SHORT``, and one field of it: ``/settings/playback_speed 0.5``. Those
of a stream begin with ``/s/NAME``, of the shared one with nothing; where the server has a token, all begin with
``/token/TOKEN`` before that.

However much comes, little is done at a time: the newest datagrams count.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import socket
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import NamedTuple
from urllib.parse import unquote

from pythonosc.osc_packet import OscPacket

from .access import Access, Refused
from .messages import MAX_BYTES, BadMessage
from .sessions import MAIN, Sessions
from .settings import ServerSettings

log = logging.getLogger(__name__)

FORM = "PORT, or HOST:PORT"
ADDRESS = re.compile(r"(?:(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):)?([0-9]{1,5})")
BY = "OSC"  # who has changed something, as viewers are told
TICK = 0.02  # seconds between two looks at what has come
MOST = 64  # messages that are obeyed in one look, and datagrams that wait for it
MOST_TOLD = 100  # reasons in the log
SHORT = {  # the message, and the fields that its values are for, in their order
    "prompt": ("switch_prompt", "prompt", "transition_blocks"),
    "preset": ("set_optimization_preset", "preset"),
    "settings": ("settings",),
    "lora": ("settings", "loras"),
    "transition": ("set_transition", "blocks", "blend"),
    "overlay": ("set_overlay", "enabled"),
    "paused": ("set_paused", "paused"),
    "strength": ("set_strength", "noise_scale", "control_scale"),
    "picture": ("remove_picture",),
    "reset": ("reset",),
    "seed": ("reset", "seed"),
    "stop_replay": ("stop_replay",),
}
LONG = {kind: (kind, *fields) for name, (kind, *fields) in SHORT.items() if name not in ("seed", "lora")}
BUTTONS = "reset", "stop_replay"  # which say 1, and 0 when they are let go
FLAGS = "enabled", "paused"  # for which controllers send 0 and 1


class OscAddress(NamedTuple):
    """Where datagrams are received."""

    host: str
    port: int


class _Said(NamedTuple):
    """One message: the token that it presents, the stream that it is for, and the rest of its address."""

    token: str | None
    stream: str | None
    path: str
    values: list


class OscInput(asyncio.DatagramProtocol):
    """Obeys what comes. Belongs to one event loop; ``sessions`` are open."""

    def __init__(self, sessions: Sessions):
        self._sessions, self._access = sessions, Access(sessions.settings)
        self._waiting: deque[bytes] = deque(maxlen=MOST)
        self._loop = asyncio.get_running_loop()
        self._look: asyncio.TimerHandle | None = None
        self._next_look = 0.0
        self._told: set[tuple[str, str]] = set()

    def datagram_received(self, data: bytes, addr) -> None:
        """Note a datagram; the oldest makes way where too many wait."""
        if len(self._waiting) == MOST:
            self._tell("", f"more messages come than are obeyed, {round(MOST / TICK)} a second: the oldest are dropped")
        self._waiting.append(data)
        if self._look is None:
            self._look = self._loop.call_at(max(self._next_look, self._loop.time()), self._obey_some)

    def connection_lost(self, exc: Exception | None) -> None:
        """Obey nothing any more."""
        self._waiting.clear()
        if self._look:
            self._look.cancel()

    def _obey_some(self) -> None:
        self._look, self._next_look = None, self._loop.time() + TICK
        left, unread = MOST, MAX_BYTES
        while self._waiting and left > 0 and unread > 0:
            data = self._waiting.popleft()
            unread -= len(data)
            said = self._read(data)
            if len(said) > MOST:
                self._tell("", f"a bundle of {len(said)} messages: the first {MOST} count")
            left -= max(1, len(said))
            for message in said[:MOST]:
                self._obey(message)
        if self._waiting:
            self._look = self._loop.call_at(self._next_look, self._obey_some)

    def _read(self, data: bytes) -> list[_Said]:
        if len(data) > MAX_BYTES:
            self._tell("", f"a datagram may have at most {MAX_BYTES} bytes")
            return []
        try:
            with _without_its_log():
                return [_split(message.address, message.params) for _, message in OscPacket(data).messages]
        except (Exception, RecursionError):  # python-osc's parser raises whatever its parts do
            self._tell("", "what came is no OSC")
            return []

    def _obey(self, said: _Said) -> None:
        try:
            self._access.check("localhost", None, said.token and f"Bearer {said.token}", said.stream)
        except Refused:
            self._tell("", "a message without this server's token: addresses must begin with /token/TOKEN")
            return
        try:
            message = message_of(said.path, said.values)
            if message is None:
                return
            if not self._sessions.ready:
                raise BadMessage("the model is not loaded yet")
            self._sessions.room(said.stream or MAIN).obey(message, BY)
        except (BadMessage, Refused) as error:
            self._tell(said.path, str(error))
        except Exception:  # or the next message would wait for ever
            log.exception("a message over OSC could not be obeyed")

    def _tell(self, path: str, why: str) -> None:
        """Say once what is wrong."""
        if len(self._told) < MOST_TOLD and (path, why) not in self._told:
            self._told.add((path, why))
            log.warning("over OSC%s: %s", f", {path[:80]!r}" if path else "", why)


def message_of(path: str, values: Sequence) -> str | None:
    """The message, in JSON, that an address without stream and token stands for; None for a button that is let go.
    Raises BadMessage."""
    name, *fields = path.strip("/").split("/")
    if name not in SHORT | LONG or len(fields) > 1:
        raise BadMessage(f"there is no such address: it begins with one of {', '.join(f'/{name}' for name in SHORT)}")
    kind, *order = (SHORT | LONG)[name]
    if name == "lora":
        if not fields or len(values) != 1:
            raise BadMessage("it takes a LoRA's name behind it and its scale, as in /lora/paint 0.8")
        said = {"loras": {unquote(fields[0]): _plain(values[0], False)}}
    elif fields:
        if not values:
            raise BadMessage("a value is missing")
        said = {fields[0]: values[0] if len(values) == 1 else list(values)}
    elif kind in BUTTONS and not order and len(values) == 1:
        if not values[0]:
            return None
        said = {}
    elif kind == "switch_prompt" and len(values) >= 4 and len(values) % 2 == 0:
        said = {"prompts": [[text, weight] for text, weight in zip(values[::2], values[1::2], strict=True)]}
    elif len(values) > len(order):
        raise BadMessage(f"it takes {' and '.join(order) or 'a field behind it, as in /settings/playback_speed'}")
    else:
        said = dict(zip(order, values, strict=False))
    said = {name: _plain(value, name in FLAGS) for name, value in said.items()}
    try:
        return json.dumps({**said, "type": kind})
    except TypeError:
        raise BadMessage("values must be texts and numbers") from None


@contextlib.asynccontextmanager
async def listening(receiver: socket.socket, sessions: Sessions) -> AsyncIterator[None]:
    """Within it, what comes by this bound socket is obeyed; it is closed afterwards."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: OscInput(sessions), sock=receiver)
    try:
        yield
    finally:
        transport.close()


def read_osc(text: str, settings: ServerSettings) -> OscAddress:
    """Where to listen: on loopback, if it says no host. Raises ValueError, also where others could send without a
    token."""
    found = ADDRESS.fullmatch(text)
    if not found or int(found[2]) > 65535:
        raise ValueError(f"it is {FORM}, got {text[:100]!r}")
    host, port = (found[1] or "127.0.0.1").strip("[]"), int(found[2])
    ServerSettings(host=host, token=settings.token)
    return OscAddress(host, port)


def bind(address: OscAddress) -> socket.socket:
    """A socket there. Raises OSError naming the address."""
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    receiver = socket.socket(family, socket.SOCK_DGRAM)
    try:
        receiver.bind((host, port))
    except OSError as error:
        receiver.close()
        raise OSError(f"cannot listen on {host} UDP port {port}: {error.strerror}") from error
    receiver.setblocking(False)
    return receiver


def _split(address: str, values: list) -> _Said:
    token = stream = None
    parts = address.split("/")[1:]
    if len(parts) > 1 and parts[0] == "token":
        token, parts = unquote(parts[1]), parts[2:]
    if len(parts) > 2 and parts[0] == "s":
        stream, parts = parts[1], parts[2:]
    return _Said(token, stream, "/" + "/".join(parts), values)


def _plain(value: object, is_flag: bool) -> object:
    """A value as JSON has it: floats have 24 bits, and many programs send no whole numbers and no flags."""
    if isinstance(value, list):
        return [_plain(one, is_flag) for one in value]
    if is_flag and value in (0, 1):
        return bool(value)
    if isinstance(value, float):
        return int(value) if value.is_integer() else float(f"{value:.7g}")
    return value


@contextlib.contextmanager
def _without_its_log() -> Iterator[None]:
    """python-osc says in the program's own log, for each value of a kind that it does not know, that it does not."""

    def others(record: logging.LogRecord) -> bool:
        return "pythonosc" not in record.pathname

    logging.root.addFilter(others)
    try:
        yield
    finally:
        logging.root.removeFilter(others)
