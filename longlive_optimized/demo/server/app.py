"""The server's routes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ...clip import MEDIA_TYPES, MOST_SCALE, Format
from .access import Access, Refused
from .guide import guide
from .inputs import Role
from .rtc import local_addresses
from .sessions import MAIN, Sessions, check_name, private_name
from .wishes import Wishes

MAX_OFFER_BYTES = 65_536
MAX_PICTURE_BYTES = 8 * 2**20
BODY_SECONDS = 10.0  # within which an offer or a picture must be there
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
FILES = {  # what there is to be served, listed once: no path of a request is ever looked up in a file system
    file.name: KINDS[Path(file.name).suffix]
    for file in resources.files(__name__.rpartition(".")[0]).joinpath("page").iterdir()
    if Path(file.name).suffix in KINDS
}
ADDRESSES = {"index.html": "/", "watch.html": "/watch"}
PAGE = {ADDRESSES.get(name, f"/{name}"): (name, kind) for name, kind in FILES.items()}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; media-src 'self' blob:; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
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
    """A viewer's session description; stream: what they wish of one that they open by it."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["offer"]
    sdp: str
    stream: Wishes = Wishes()


Beside = Callable[[Sessions], contextlib.AbstractAsyncContextManager[None]]


def create_app(sessions: Sessions, beside: Beside | None = None) -> FastAPI:
    """The application of a server's streams, which opens and closes with them; beside: what else is open then."""

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        with local_addresses(sessions.settings):
            await sessions.open()
            try:
                async with beside(sessions) if beside else contextlib.nullcontext():
                    yield
            finally:
                await sessions.close()

    app, guarded = guarded_app(Access(sessions.settings), life)
    get = functools.partial(app.api_route, methods=["GET", "HEAD"])

    @get("/healthz")
    async def healthz() -> Response:
        alive = sessions.worker.alive
        return Response("ok" if alive else "the engine's thread has ended", 200 if alive else 503)

    @get("/readyz")
    async def readyz() -> Response:
        return Response(sessions.worker.status.phase, 200 if sessions.ready else 503)

    @get("/metrics", dependencies=guarded)
    async def metrics() -> Response:
        return Response(sessions.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    add_redirects(app, sessions.settings.private)
    routes = _stream_routes(sessions, guarded)
    app.include_router(routes)
    app.include_router(routes, prefix="/s/{name}")
    return app


def add_redirects(app: FastAPI, private: bool) -> None:
    """To a stream's page: where its name has no slash behind it, and if ``private`` to one of the visitor's own."""
    get = functools.partial(app.api_route, methods=["GET", "HEAD"])
    if private:

        @get("/")
        async def to_a_stream_of_ones_own(request: Request) -> Response:
            return redirect(f"s/{private_name()}/", request)

    @get("/s/{name}")
    async def with_a_slash(name: str, request: Request) -> Response:
        check_name(name)
        return redirect(f"{name}/", request)


def guarded_app(access: Access, lifespan=None) -> tuple[FastAPI, list]:
    """An application without routes, which answers what is refused, and pages elsewhere; and the dependencies of routes
    that need a token."""

    def guard(request: Request) -> None:
        headers = request.headers
        name = request.path_params.get("name")
        access.check(headers.get("host", ""), headers.get("origin"), headers.get("authorization"), name)

    app = FastAPI(lifespan=lifespan, openapi_url=None, title="longlive-optimized")

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

    return app, [Depends(guard)]


def _stream_routes(sessions: Sessions, guarded: list) -> APIRouter:
    """What there is of each stream: below ``/s/NAME``, and at the root of the shared one."""
    routes = APIRouter()
    get = functools.partial(routes.api_route, methods=["GET", "HEAD"])
    for path, (name, kind) in PAGE.items():
        get(path)(page(name, kind))

    @get("/status", dependencies=guarded)
    async def status(request: Request) -> dict:
        return sessions.status(request.path_params.get("name"))

    @get("/guide", dependencies=guarded)
    async def the_guide() -> dict:
        if not sessions.ready:
            raise Refused(503, "there is no guide before the model is loaded", "loading")
        return guide(sessions.worker.source)

    @routes.post("/offer", dependencies=guarded)
    async def offer(request: Request, response: Response) -> dict:
        offered = parse_offer(await read_body(request, "an offer", MAX_OFFER_BYTES))
        client = request.client.host if request.client else ""
        sdp, room = await sessions.admit(offered.sdp, request.path_params.get("name"), offered.stream, client)
        response.headers["Content-Location"] = f"/s/{room.name}/"
        return {"type": "answer", "sdp": sdp}

    @routes.post("/picture", dependencies=guarded)
    async def picture(request: Request, seat: str, role: Role) -> dict:
        room = sessions.room(request.path_params.get("name", MAIN))
        await room.set_picture(seat, role, lambda: read_body(request, "a picture", MAX_PICTURE_BYTES))
        return {"type": "done"}

    @get("/story", dependencies=guarded)
    async def story(request: Request) -> dict:
        return sessions.room(request.path_params.get("name", MAIN)).story()

    @get("/recording", dependencies=guarded)
    @get("/recording.mp4", dependencies=guarded)
    async def recording(
        request: Request,
        seconds: Annotated[float, Query(gt=0, le=600)] = 30,
        format: Format = "mp4",
        scale: Annotated[int, Query(ge=1, le=MOST_SCALE)] = 1,
    ) -> Response:
        room = sessions.room(request.path_params.get("name", MAIN))
        name = {"Content-Disposition": f'attachment; filename="longlive.{format}"'}
        return Response(await room.clip(seconds, format, scale), media_type=MEDIA_TYPES[format], headers=name)

    return routes


def redirect(address: str, request: Request) -> Response:
    """To an address below the request's own, with its query; browsers keep what follows the #."""
    query = f"?{request.url.query}" if request.url.query else ""
    return Response(status_code=307, headers={"Location": address + query})


def page(name: str, kind: str):
    content = resources.files(__name__.rpartition(".")[0]).joinpath("page", name).read_bytes()

    async def send() -> Response:
        return Response(content, media_type=kind)

    return send


def parse_offer(body: bytes) -> Offer:
    """Raises Refused for what is no offer."""
    try:
        return Offer.model_validate_json(body)
    except ValidationError as error:
        fault = error.errors()[0]
        where = "".join(f"{part}: " for part in fault["loc"])
        raise Refused(422, f"an offer is {{type: 'offer', sdp: text}}: {where}{fault['msg']}", "bad offer") from None


async def read_body(request: Request, what: str, most: int) -> bytes:
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
