"""A WHIP endpoint on this machine, made with aiortc: it takes video by RFC 9725, decodes it, and notes its requests."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import numpy as np
import uvicorn
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


@dataclass
class Asked:
    """One request: its path with the query, and the headers that matter."""

    method: str
    path: str
    authorization: str | None
    kind: str | None
    body: str


@dataclass
class Session:
    """One publisher: ``picture`` waits for a frame of theirs."""

    connection: RTCPeerConnection
    track: asyncio.Future = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    codec: str = ""

    async def picture(self, timeout: float = 20) -> np.ndarray:
        """The next frame as RGB [H, W, 3]."""
        track = await asyncio.wait_for(asyncio.shield(self.track), timeout)
        return (await asyncio.wait_for(track.recv(), timeout)).to_ndarray(format="rgb24")

    def vanish(self) -> None:
        """Say and hear nothing any more, as a machine that is switched off."""
        for ice in {t.receiver.transport.transport for t in self.connection.getTransceivers()}:
            connection = ice._connection
            connection._query_consent_task.cancel()
            for protocol in connection._protocols:
                protocol.send_stun = protocol.datagram_received = lambda *_: None
                protocol.transport.sendto = lambda *_: None


class WhipServer:
    """The endpoint at ``/whip``; its sessions are below ``/session``.

    token: what it wants, also to end a session. answer: given the request, a response in place of its own, or None.
    rewrite: of the answers that it gives. location: of a session, by its name. asked, sessions: all so far.
    """

    def __init__(self, token: str | None = None):
        self.token, self.asked, self.sessions = token, [], []
        self.open: dict[str, Session] = {}
        self.answer: Callable[[Request], Response | None] = lambda request: None
        self.rewrite: Callable[[str], str] = str
        self.location: Callable[[str], str | None] = lambda name: f"/session/{name}"
        self._app = Starlette(
            routes=[
                Route("/whip", self._begin, methods=["POST"]),
                Route("/session/{name}", self._end, methods=["DELETE"]),
                Route("/{path:path}", self._other, methods=["POST", "DELETE"]),
            ]
        )

    @contextlib.asynccontextmanager
    async def listen(self, port: int = 0, **tls) -> AsyncIterator[int]:
        """Serve within it; the port. Connections end with it, without a good-bye over HTTP."""
        quiet = {"log_level": "error", "access_log": False, "lifespan": "off", "timeout_graceful_shutdown": 1}
        server = uvicorn.Server(uvicorn.Config(self._app, "127.0.0.1", port, **quiet, **tls))
        serving = asyncio.create_task(server._serve())  # serve() would take the test's signals
        while not server.started:
            assert not serving.done()
            await asyncio.sleep(0.01)
        try:
            yield server.servers[0].sockets[0].getsockname()[1]
        finally:
            server.should_exit = True
            await serving
            await asyncio.gather(*(session.connection.close() for session in self.sessions))
            self.open.clear()

    async def session(self, count: int = 1, timeout: float = 20) -> Session:
        """The last session, once there were so many."""
        async with asyncio.timeout(timeout):
            while len(self.sessions) < count:
                await asyncio.sleep(0.01)
        return self.sessions[count - 1]

    async def _begin(self, request: Request) -> Response:
        offer = await self._note(request)
        if response := self._refusal(request):
            return response
        session = Session(RTCPeerConnection(RTCConfiguration(iceServers=[])))
        session.connection.on("track", session.track.set_result)
        await session.connection.setRemoteDescription(RTCSessionDescription(offer, "offer"))
        await session.connection.setLocalDescription(await session.connection.createAnswer())
        answer = self.rewrite(session.connection.localDescription.sdp)
        name = secrets.token_hex(8)
        self.sessions.append(session)
        self.open[name] = session
        where = self.location(name)
        headers = {"Location": where} if where else {}
        return Response(answer, 201, headers, media_type="application/sdp")

    async def _end(self, request: Request) -> Response:
        await self._note(request)
        if self._wants_token(request):
            return Response(status_code=401)
        session = self.open.pop(request.path_params["name"], None)
        if session is None:
            return Response(status_code=404)
        await session.connection.close()
        return Response(status_code=200)

    async def _other(self, request: Request) -> Response:
        await self._note(request)
        return self._refusal(request) or Response(status_code=404)

    async def _note(self, request: Request) -> str:
        body = (await request.body()).decode()
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        headers = request.headers
        kind, authorization = headers.get("content-type"), headers.get("authorization")
        self.asked.append(Asked(request.method, path, authorization, kind, body))
        return body

    def _refusal(self, request: Request) -> Response | None:
        if self._wants_token(request):
            return Response("a token is wanted", 401, {"WWW-Authenticate": "Bearer"})
        if request.headers.get("content-type") != "application/sdp":
            return Response(status_code=415)
        return self.answer(request)

    def _wants_token(self, request: Request) -> bool:
        return self.token is not None and request.headers.get("authorization") != f"Bearer {self.token}"


def certificate(folder) -> tuple[str, str]:
    """Files of a certificate for 127.0.0.1 that nobody has signed, and of its key."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(made.public_bytes(pem))
    plain = serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return str(folder / "cert.pem"), str(folder / "key.pem")
