"""The server's routes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from importlib import resources
from typing import Annotated, Literal

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import ClientDisconnect

from .access import Access, Refused
from .room import Room
from .rtc import local_addresses

MAX_OFFER_BYTES = 65_536
PAGE = {  # what there is to be served; no path of a request is ever looked up in a file system
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/connection.js": ("connection.js", "text/javascript; charset=utf-8"),
    "/chart.js": ("chart.js", "text/javascript; charset=utf-8"),
    "/prompts.js": ("prompts.js", "text/javascript; charset=utf-8"),
    "/settings.js": ("settings.js", "text/javascript; charset=utf-8"),
    "/favicon.svg": ("favicon.svg", "image/svg+xml"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Offer(BaseModel):
    """A viewer's session description."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["offer"]
    sdp: str


def create_app(room: Room) -> FastAPI:
    """The application of a room, which opens and closes with it."""

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        with local_addresses(room.settings):
            await room.open()
            try:
                yield
            finally:
                await room.close()

    access = Access(room.settings)

    def guard(request: Request) -> None:
        headers = request.headers
        access.check(headers.get("host", ""), headers.get("origin"), headers.get("authorization"))

    app = FastAPI(lifespan=life, openapi_url=None, title="longlive-optimized")
    guarded = [Depends(guard)]
    for path, (name, kind) in PAGE.items():
        app.add_api_route(path, _page(name, kind), methods=["GET"])

    @app.exception_handler(Refused)
    async def refuse(request: Request, error: Refused) -> Response:
        return JSONResponse({"error": str(error), "code": error.code}, error.status)

    @app.middleware("http")
    async def add_headers(request: Request, call_next) -> Response:
        response = await call_next(request)
        response.headers.update(HEADERS)
        return response

    @app.get("/healthz")
    async def healthz() -> Response:
        alive = room.worker.alive
        return Response("ok" if alive else "the pipeline's thread has ended", 200 if alive else 503)

    @app.get("/readyz")
    async def readyz() -> Response:
        return Response(room.worker.status.phase, 200 if room.ready else 503)

    @app.get("/metrics", dependencies=guarded)
    async def metrics() -> Response:
        return Response(room.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/status", dependencies=guarded)
    async def status() -> dict:
        return room.status()

    @app.post("/offer", dependencies=guarded)
    async def offer(request: Request) -> dict:
        return {"type": "answer", "sdp": await room.admit((await _read_offer(request)).sdp)}

    @app.get("/recording.mp4", dependencies=guarded)
    async def recording(seconds: Annotated[float, Query(gt=0, le=600)] = 30) -> Response:
        name = {"Content-Disposition": 'attachment; filename="longlive.mp4"'}
        return Response(await room.recording(seconds), media_type="video/mp4", headers=name)

    return app


def _page(name: str, kind: str):
    content = resources.files(__name__.rpartition(".")[0]).joinpath("page", name).read_bytes()

    async def send() -> Response:
        return Response(content, media_type=kind)

    return send


async def _read_offer(request: Request) -> Offer:
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > MAX_OFFER_BYTES:
                raise Refused(413, f"an offer may have at most {MAX_OFFER_BYTES} bytes", "too long")
    except ClientDisconnect:
        raise Refused(400, "the offer was cut off", "bad offer") from None
    try:
        return Offer.model_validate_json(bytes(body))
    except ValidationError as error:
        raise Refused(
            422, f"an offer is {{type: 'offer', sdp: text}}: {error.errors()[0]['msg']}", "bad offer"
        ) from None
