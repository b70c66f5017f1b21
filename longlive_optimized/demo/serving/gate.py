"""The one address of a cluster: leads each session to its replica."""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import Any

import aiohttp
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from ...weights.locate import native_size
from ..server.access import Access, Refused
from ..server.app import (
    MAX_OFFER_BYTES,
    MAX_PICTURE_BYTES,
    PAGE,
    add_redirects,
    guarded_app,
    page,
    parse_offer,
    read_body,
)
from ..server.offer import BadOffer, Offer
from ..server.room import ice_servers
from ..server.sessions import MAIN, check_name, private_name
from .config import ClusterConfig

log = logging.getLogger(__name__)

SENT_ON = "host", "origin", "authorization", "content-type"
SENT_BACK = "content-type", "content-location", "content-disposition"


class Waits(Refused):
    """All seats are taken; ``position`` is the session's in the queue, from 1 on."""

    def __init__(self, position: int):
        super().__init__(503, f"all seats are taken: you are number {position} in the queue", "full")
        self.position = position


class Gate:
    """The application behind the one address; it remembers nothing. desk: the actor."""

    def __init__(self, config: ClusterConfig, desk: Any):
        self._config, self._settings = config, config.server(config.host or "192.0.2.1")
        self._desk = desk
        self._http: aiohttp.ClientSession | None = None
        self.app = self._routes()

    def _routes(self) -> FastAPI:
        app, guarded = guarded_app(Access(self._settings))
        get = functools.partial(app.api_route, methods=["GET", "HEAD"])

        @app.exception_handler(Waits)
        async def wait(request: Request, error: Waits) -> Response:
            body = {"error": str(error), "code": error.code, "queue": error.position}
            return JSONResponse(body, error.status, {"Retry-After": "2"})

        @get("/healthz")
        async def healthz() -> Response:
            return Response("ok")

        @get("/readyz")
        async def readyz() -> Response:
            ready = bool(await self._desk.addresses.remote())
            return Response("ready" if ready else "loading", 200 if ready else 503)

        @get("/status", dependencies=guarded)
        async def status() -> dict:
            return await self._status(MAIN) | await self._desk.status.remote()

        @get("/metrics", dependencies=guarded)
        async def metrics(request: Request) -> Response:
            return Response(await self._metrics(request), media_type="text/plain; version=0.0.4; charset=utf-8")

        @get("/s/{name}/status", dependencies=guarded)
        async def status_of(name: str, request: Request) -> Response:
            if address := await self._at(name):
                return await self._send(request, address, name, "status")
            return JSONResponse(await self._status(name))

        @app.post("/offer", dependencies=guarded)
        @app.post("/s/{name}/offer", dependencies=guarded)
        async def offer(request: Request, name: str | None = None) -> Response:
            name = name or request.headers.get("x-session-id") or (private_name() if self._config.private else MAIN)
            check_name(name)
            body = await read_body(request, "an offer", MAX_OFFER_BYTES)
            self._check(body)  # what a replica would refuse must take no seat
            client = request.client.host if request.client else ""
            return await self._send(request, await self._place(name, client), name, "offer", body)

        @app.post("/picture", dependencies=guarded)
        @app.post("/s/{name}/picture", dependencies=guarded)
        async def picture(request: Request, name: str = MAIN) -> Response:
            address = await self._open_at(name)
            body = await read_body(request, "a picture", MAX_PICTURE_BYTES)
            return await self._send(request, address, name, "picture", body)

        @get("/recording", dependencies=guarded)
        @get("/recording.mp4", dependencies=guarded)
        @get("/s/{name}/recording", dependencies=guarded)
        @get("/s/{name}/recording.mp4", dependencies=guarded)
        async def recording(request: Request, name: str = MAIN) -> Response:
            return await self._send(request, await self._open_at(name), name, "recording")

        @get("/guide", dependencies=guarded)
        @get("/s/{name}/guide", dependencies=guarded)
        async def guide(request: Request, name: str = MAIN) -> Response:
            replicas = await self._desk.addresses.remote()
            if not replicas:
                raise Refused(503, "there is no guide before the model is loaded", "loading")
            check_name(name)
            return await self._send(request, next(iter(replicas.values())), name, "guide")

        @get("/story", dependencies=guarded)
        @get("/s/{name}/story", dependencies=guarded)
        async def story(request: Request, name: str = MAIN) -> Response:
            return await self._send(request, await self._open_at(name), name, "story")

        add_redirects(app, self._config.private)
        for path, (name, kind) in PAGE.items():
            get(path)(page(name, kind))
            get("/s/{name}" + path)(page(name, kind))
        return app

    def _check(self, body: bytes) -> None:
        """Raise Refused for what is no offer to watch, and for wishes that cannot be."""
        offered = parse_offer(body)
        try:
            Offer(offered.sdp)
        except BadOffer as error:
            raise Refused(400, str(error), "bad offer") from None
        try:
            offered.stream.config(self._config.stream.sized(native_size(self._config.model)))
        except ValueError as error:
            raise Refused(422, str(error), "bad wish") from None

    # --- where sessions are

    async def _at(self, name: str) -> str | None:
        """The address of the replica that has a session; None where none has."""
        check_name(name)
        return await self._desk.address.remote(name)

    async def _open_at(self, name: str) -> str:
        if address := await self._at(name):
            return address
        raise Refused(404, f"no stream {name[:70]!r} is open: whoever watches it first opens it", "no stream")

    async def _place(self, name: str, client: str) -> str:
        """The address of the replica that has a session, which is opened if none has. Raises Refused."""
        entry = await self._desk.place.remote(name, client)
        match entry.kind:
            case "at":
                return entry.address
            case "wait":
                raise Waits(entry.position)
            case "many":
                most = self._config.sessions_per_client
                raise Refused(429, f"you have {most} sessions, and may have no more: close one first", "too many")
            case "full":
                raise Refused(503, "all seats are taken, and too many wait for one: try again later", "full")
        raise Refused(503, "the session could not be opened: try again in a moment", "busy")

    # --- what replicas say

    async def _send(self, request: Request, address: str, name: str, what: str, body: bytes = b"") -> Response:
        """Send a request on to a replica, and its answer back."""
        headers = {key: request.headers[key] for key in SENT_ON if key in request.headers}
        if request.client:
            headers["x-forwarded-for"] = request.client.host
        query = f"?{request.url.query}" if request.url.query else ""
        url = f"{address}/s/{name}/{what}{query}"
        try:
            async with self._client.request(request.method, url, headers=headers, data=body or None) as answer:
                back = {key: answer.headers[key] for key in SENT_BACK if key in answer.headers}
                return Response(await answer.read(), answer.status, back)
        except (aiohttp.ClientError, TimeoutError) as error:
            log.warning("a replica does not answer: %s", error)
            raise Refused(503, "the session's machine does not answer: try again in a moment", "busy") from error

    async def _status(self, name: str) -> dict:
        """Of a session that is not open, as a replica says it of its own."""
        ready, queue = await asyncio.gather(self._desk.addresses.remote(), self._desk.position.remote(name))
        return {
            "phase": "ready" if ready else "loading",
            "detail": "" if ready else "first replica",
            "done": 0,
            "total": 0,
            "retry_in": 0.0,
            "stream": None,
            "viewers": 0,
            "max_viewers": self._config.max_viewers,
            "queue": queue,
            "ice_servers": ice_servers(self._settings),
        }

    async def _metrics(self, request: Request) -> bytes:
        """The figures of all replicas, by the label ``replica``."""
        replicas = await self._desk.addresses.remote()
        headers = {key: request.headers[key] for key in SENT_ON if key in request.headers}

        async def ask(address: str) -> str:
            try:
                async with self._client.get(f"{address}/metrics", headers=headers) as answer:
                    return await answer.text() if answer.status == 200 else ""
            except (aiohttp.ClientError, TimeoutError):
                return ""

        texts = await asyncio.gather(*map(ask, replicas.values()))
        return merged(dict(zip(replicas, texts, strict=True)))

    @property
    def _client(self) -> aiohttp.ClientSession:
        if self._http is None:
            self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30))
        return self._http


def merged(texts: dict[str, str]) -> bytes:
    """Figures in Prometheus' format of several replicas as one, each with the label ``replica``."""
    families: dict = {}
    for replica, text in texts.items():
        for family in text_string_to_metric_families(text):
            samples = [one._replace(labels=one.labels | {"replica": replica}) for one in family.samples]
            if family.name in families:
                families[family.name].samples += samples
            else:
                families[family.name] = family
                family.samples = samples

    class All:
        def collect(self):
            return families.values()

    registry = CollectorRegistry(auto_describe=False)
    registry.register(All())  # pyright: ignore[reportArgumentType]  # a collector is what can collect
    return generate_latest(registry)
