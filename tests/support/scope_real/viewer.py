"""A client of scope over WebRTC: sends a moving picture and messages, keeps frames and answers."""

import asyncio
import json
from unittest import mock

import aioice.ice
import av
import numpy as np
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription, VideoStreamTrack

from .server import ScopeServer

WAIT = 60.0  # seconds, for anything


class MovingPicture(VideoStreamTrack):
    """A bright bar that wanders, 30 pictures a second."""

    def __init__(self, height: int, width: int):
        super().__init__()
        self._picture = np.zeros((height, width, 3), np.uint8)
        self._picture[:, :8] = 255

    async def recv(self) -> av.VideoFrame:
        pts, time_base = await self.next_timestamp()
        self._picture = np.roll(self._picture, 2, axis=1)
        frame = av.VideoFrame.from_ndarray(self._picture, format="rgb24")
        frame.pts, frame.time_base = pts, time_base
        return frame


class Viewer:
    """One session. ``async with Viewer(server, parameters) as viewer:``

    Without a graph scope serves only those who send video as well, in text mode too.
    """

    def __init__(self, server: ScopeServer, parameters: dict, picture: tuple[int, int] = (90, 130)):
        self.pictures: list[np.ndarray] = []
        self.messages: list[dict] = []
        self._server, self._parameters, self._picture = server, parameters, picture
        self._news = asyncio.Condition()
        self._receiving: asyncio.Task | None = None

    async def __aenter__(self) -> "Viewer":
        self._connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._connection.on("track", self._receive)
        self._connection.addTrack(MovingPicture(*self._picture))
        self._channel = self._connection.createDataChannel("parameters")
        self._channel.on("message", self._keep_message)
        opened = asyncio.Event()
        self._channel.on("open", opened.set)
        with mock.patch.object(aioice.ice, "get_host_addresses", lambda use_ipv4, use_ipv6: ["127.0.0.1"]):
            await self._connection.setLocalDescription(await self._connection.createOffer())
        offer = self._connection.localDescription
        body = {"sdp": offer.sdp, "type": offer.type, "initialParameters": self._parameters}
        answer = await asyncio.to_thread(self._server.post, "/api/v1/webrtc/offer", body)
        self.session_id = answer["sessionId"]
        await self._connection.setRemoteDescription(RTCSessionDescription(answer["sdp"], answer["type"]))
        await asyncio.wait_for(opened.wait(), WAIT)
        return self

    async def __aexit__(self, *error) -> None:
        path = f"/api/v1/webrtc/offer/{self.session_id}"
        await asyncio.to_thread(self._server.fetch, "DELETE", path)
        if self._receiving is not None:
            self._receiving.cancel()
        await self._connection.close()

    def send(self, message: dict | str) -> None:
        """A message over the data channel; a str goes as it is."""
        self._channel.send(message if isinstance(message, str) else json.dumps(message))

    async def more(self, count: int) -> list[np.ndarray]:
        """The next ``count`` frames, [H, W, 3]. Raises TimeoutError when they do not come."""
        start = len(self.pictures)
        await self._until(lambda: len(self.pictures) >= start + count)
        return self.pictures[start : start + count]

    async def answer(self, kind: str, request_id: str | None = None) -> dict:
        """The first message of a type, to one request if it is named. Raises TimeoutError when none comes."""

        def found() -> list[dict]:
            same = [message for message in self.messages if message.get("type") == kind]
            return [message for message in same if request_id is None or message.get("request_id") == request_id]

        await self._until(found)
        return found()[0]

    async def _until(self, true) -> None:
        async with asyncio.timeout(WAIT), self._news:
            await self._news.wait_for(true)

    def _receive(self, track: MediaStreamTrack) -> None:
        async def receive() -> None:
            while True:
                frame = await track.recv()
                async with self._news:
                    self.pictures.append(frame.to_ndarray(format="rgb24"))
                    self._news.notify_all()

        self._receiving = asyncio.ensure_future(receive())

    async def _keep_message(self, text: str) -> None:
        async with self._news:
            self.messages.append(json.loads(text))
            self._news.notify_all()
