"""The server's routes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from importlib import resources
from typing import Annotated, Literal

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from .access import Access, Refused
from .inputs import Role
from .room import Room
from .rtc import local_addresses

MAX_OFFER_BYTES = 65_536
MAX_PICTURE_BYTES = 8 * 2**20
BODY_SECONDS = 10.0  # within which an offer or a picture must be there
PAGE = {  # what there is to be served; no path of a request is ever looked up in a file system
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/connection.js": ("connection.js", "text/javascript; charset=utf-8"),
    "/input.js": ("input.js", "text/javascript; charset=utf-8"),
    "/chart.js": ("chart.js", "text/javascript; charset=utf-8"),
    "/prompts.js": ("prompts.js", "text/javascript; charset=utf-8"),
    "/settings.js": ("settings.js", "text/javascript; charset=utf-8"),
    "/favicon.svg": ("favicon.svg", "image/svg+xml"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; media-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
PREFLIGHT = {  # what a page elsewhere may do, if it may at all
    "Access-Control-Allow-Methods": "GET, HEAD, POST",
    "Access-Control-Allow-Headers": "Authorization, Content-Type",
    "Access-Control-Allow-Private-Network": "true",
    "Access-Control-Max-Age": "600",
}


class Offer(BaseModel):
    """A viewer's session description."""

    model_config = ConfigDict(extra="ignore", strict=True)

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
    get = functools.partial(app.api_route, methods=["GET", "HEAD"])
    for path, (name, kind) in PAGE.items():
        get(path)(_page(name, kind))

    @app.exception_handler(Refused)
    async def refuse(request: Request, error: Refused) -> Response:
        return JSONResponse({"error": str(error), "code": error.code}, error.status)

    @app.exception_handler(HTTPException)
    async def refuse_request(request: Request, error: HTTPException) -> Response:
        words = f"{request.method} {request.url.path[:100]}: {error.detail}"
        return JSONResponse({"error": words, "code": "request"}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def refuse_parameter(request: Request, error: RequestValidationError) -> Response:
        fault = error.errors()[0]
        return JSONResponse({"error": f"{fault['loc'][-1]}: {fault['msg']}", "code": "parameter"}, 422)

    async def preflight(request: Request) -> Response:
        try:
            access.check_page(request.headers.get("host", ""), request.headers.get("origin"))
        except Refused as error:
            return await refuse(request, error)
        return Response(status_code=204, headers=PREFLIGHT)

    @app.middleware("http")
    async def add_headers(request: Request, call_next) -> Response:
        response = await (preflight(request) if request.method == "OPTIONS" else call_next(request))
        response.headers.update(HEADERS | access.sharing(request.headers.get("origin")))
        return response

    @get("/healthz")
    async def healthz() -> Response:
        alive = room.worker.alive
        return Response("ok" if alive else "the pipeline's thread has ended", 200 if alive else 503)

    @get("/readyz")
    async def readyz() -> Response:
        return Response(room.worker.status.phase, 200 if room.ready else 503)

    @get("/metrics", dependencies=guarded)
    async def metrics() -> Response:
        return Response(room.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @get("/status", dependencies=guarded)
    async def status() -> dict:
        return room.status()

    @app.post("/offer", dependencies=guarded)
    async def offer(request: Request) -> dict:
        return {"type": "answer", "sdp": await room.admit((await _read_offer(request)).sdp)}

    @app.post("/picture", dependencies=guarded)
    async def picture(request: Request, seat: str, role: Role) -> dict:
        await room.set_picture(seat, role, lambda: _read_body(request, "a picture", MAX_PICTURE_BYTES))
        return {"type": "done"}

    @get("/recording.mp4", dependencies=guarded)
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
    body = await _read_body(request, "an offer", MAX_OFFER_BYTES)
    try:
        return Offer.model_validate_json(body)
    except ValidationError as error:
        raise Refused(
            422, f"an offer is {{type: 'offer', sdp: text}}: {error.errors()[0]['msg']}", "bad offer"
        ) from None


async def _read_body(request: Request, what: str, most: int) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise Refused(413, f"{what} may have at most {most} bytes", "too long")
    except TimeoutError:
        raise Refused(408, f"{what} was not there after {BODY_SECONDS:g} seconds", "too slow") from None
    except ClientDisconnect:
        raise Refused(400, f"{what} was cut off", "cut off") from None
    return bytes(body)
