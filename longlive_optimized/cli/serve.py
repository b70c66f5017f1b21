"""``serve``: a page with live video, over WebRTC."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import logging
import os
import re
import signal
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import quote

import typer
from rich.text import Text

from ..config import PRESETS, preset_name
from ..plain import whole
from ..weights.locate import TINY
from .download import have, tell_of_the_real_one
from .loading import (
    Device,
    Height,
    KeepTextInt8,
    LowMemory,
    MemoryLimit,
    TextDevice,
    TextPrecision,
    TextResidence,
    VaeDevice,
    Width,
    console,
)
from .needs import extra, named
from .publish import outlet
from .ranks import Gpus, join_ranks, read_gpus
from .story import parse_loras

if TYPE_CHECKING:
    from ..demo.scope_integration import ScopeOptimizationConfig
    from ..demo.server.app import Beside
    from ..demo.server.feed import Status
    from ..demo.server.osc import OscAddress
    from ..demo.server.sessions import Sessions
    from ..demo.server.settings import IceServer, ServerSettings
    from ..engine.loading import Progress
    from ..engine.ranks import Ranks
    from ..weights.user_lora import UserLora

PROMPT = "a red fox walks through fresh snow, morning light, film grain"
TINY_PROMPT = "a red circle and a blue square move left over a green field"


def serve(
    model: Annotated[
        str | None,
        typer.Option(
            help="Model folder, ORG/NAME of the hub, or 'tiny' for the built-in model, which is also the default; then "
            "it is said how to get the real one.",
            show_default=False,
        ),
    ] = None,
    preset: Annotated[str, typer.Option(help=f"One of {', '.join(PRESETS)}.")] = "balanced",
    prompt: Annotated[str | None, typer.Option(help="What to show at first; the default suits the model.")] = None,
    host: Annotated[str, typer.Option(help="Address to bind; one that others can reach needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8000,
    height: Height = None,
    width: Width = None,
    low_memory: LowMemory = None,
    memory_limit: MemoryLimit = None,
    text_precision: TextPrecision = "auto",
    text_residence: TextResidence = "auto",
    keep_text_int8: KeepTextInt8 = False,
    control: Annotated[
        bool, typer.Option("--control", help="Load VACE's module, 1.5 GB: viewers may send control video and pictures.")
    ] = False,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[:SCALE]", help="A LoRA to merge, as often as wanted; viewers may turn it, for all streams."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed and prompt begin the same video.")] = 42,
    playback_speed: Annotated[
        float, typer.Option(help="How fast the world goes at first: times 16 frames a second, 0.25 to 4.")
    ] = 1.0,
    codec: Annotated[
        Literal["vp8", "h264"], typer.Option(help="vp8, or h264, which takes twice the processor time.")
    ] = "vp8",
    bitrate: Annotated[int | None, typer.Option(help="Most bits per second; the default fits the picture.")] = None,
    overlay: Annotated[bool, typer.Option("--overlay", help="Begin with the latency panel in the video.")] = False,
    viewers: Annotated[int, typer.Option(help="How many may watch a stream at a time.")] = 8,
    sessions: Annotated[
        str, typer.Option(help="Streams at a time: a number, or auto: as many as run here, each at its own speed.")
    ] = "auto",
    private: Annotated[
        bool, typer.Option("--private", help="Give each new visitor a stream of their own, in place of a shared one.")
    ] = False,
    keep: Annotated[float, typer.Option(help="Seconds that a stream without viewers stays open.", min=0)] = 60,
    queue: Annotated[int, typer.Option(help="Streams that may wait for a place.", min=0)] = 16,
    sessions_per_client: Annotated[
        int | None, typer.Option(help="Streams that one address may have open or waiting; 4 by default.", min=1)
    ] = None,
    record_seconds: Annotated[int, typer.Option(help="Video kept for download; 0 keeps none.")] = 30,
    token: Annotated[
        str | None, typer.Option(envvar="LONGLIVE_TOKEN", help="What viewers must present, 16 characters or more.")
    ] = None,
    origin: Annotated[
        list[str] | None, typer.Option(help="https://HOST of other pages that may use the server, or of a proxy.")
    ] = None,
    ice_address: Annotated[
        list[str] | None, typer.Option(help="Another address of this machine for the video; Firefox takes no loopback.")
    ] = None,
    stun: Annotated[str | None, typer.Option(help="stun:HOST[:PORT]; none by default.")] = None,
    turn: Annotated[str | None, typer.Option(help="turn:HOST[:PORT][?transport=tcp]; none by default.")] = None,
    turn_username: Annotated[str | None, typer.Option(help="For --turn.")] = None,
    turn_password: Annotated[str | None, typer.Option(envvar="LONGLIVE_TURN_PASSWORD", help="For --turn.")] = None,
    publish: Annotated[
        str | None,
        typer.Option(
            envvar="LONGLIVE_PUBLISH",
            help="whip+https://HOST/PATH or janus://HOST/ROOM: publish the shared stream there, for many viewers.",
        ),
    ] = None,
    publish_make_room: Annotated[
        bool, typer.Option("--publish-make-room", help="Make the room where it does not exist.")
    ] = False,
    osc: Annotated[
        str | None,
        typer.Option(
            help="PORT, on this machine alone, or HOST:PORT: take prompts and settings by Open Sound Control."
        ),
    ] = None,
    device: Device = None,
    vae_device: VaeDevice = None,
    text_device: TextDevice = None,
    gpus: Gpus = None,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="One server on each of several GPUs behind one address, by Ray Serve.")
    ] = False,
    replicas: Annotated[int | None, typer.Option(help="With --cluster: how many; one a GPU by default.", min=1)] = None,
) -> None:
    """Show live video on a page, and follow what is typed there."""
    asks, model = model is None, model or TINY
    if replicas and not cluster:
        raise ValueError("--replicas goes with --cluster")
    if cluster:
        _refuse_beside_cluster(
            low_memory=low_memory,
            memory_limit=memory_limit,
            keep_text_int8=keep_text_int8,
            control=control,
            lora=lora,
            overlay=overlay,
            vae_device=vae_device,
            text_device=text_device,
            gpus=gpus,
            publish=publish,
            publish_make_room=publish_make_room,
            text_precision=text_precision != "auto",
            text_residence=text_residence != "auto",
            osc=osc,
        )
        with extra("cluster"):
            from ..demo.serving.command import run
        seats = _sessions(sessions)
        run(
            port,
            host,
            model=model,
            preset=preset,
            prompt=prompt,
            height=height,
            width=width,
            seed=seed,
            playback_speed=playback_speed,
            device=device,
            codec=codec,
            bitrate=bitrate,
            max_viewers=viewers,
            private=private,
            keep_seconds=keep,
            max_queued=queue,
            sessions_per_client=sessions_per_client,
            record_seconds=record_seconds,
            token=token,
            origins=tuple(origin or ()),
            ice_addresses=tuple(ice_address or ()),
            stun=stun,
            turn=turn,
            turn_username=turn_username,
            turn_password=turn_password,
            **({} if seats == "auto" else {"seats": seats}),
            **({} if replicas is None else {"replicas": replicas}),
        )
        return
    numbers = read_gpus(gpus, device)
    with extra():
        from ..demo.scope_integration import ScopeOptimizationConfig
        from ..demo.server.sessions import Sessions
        from ..demo.server.settings import ServerSettings
        from ..demo.server.source import EngineSource

    loras = _loras(lora or ())
    config = ScopeOptimizationConfig.preset(
        preset_name(preset),
        height=height,
        width=width,
        seed=seed,
        playback_speed=playback_speed,
        low_memory=low_memory,
        memory_limit_gib=memory_limit,
        text_precision=text_precision,
        text_residence=text_residence,
        keep_text_int8=keep_text_int8,
        control=control,
    )
    settings = ServerSettings(
        host=host,
        token=token,
        origins=tuple(origin or ()),
        max_viewers=viewers,
        codec=codec,  # pyright: ignore[reportArgumentType]  # checked by pydantic, as are the addresses
        bitrate=bitrate,
        ice_servers=_ice_servers(stun, turn, turn_username, turn_password),
        ice_addresses=tuple(ice_address or ()),  # pyright: ignore[reportArgumentType]
        record_seconds=record_seconds,
        sessions=_sessions(sessions),
        private=private,
        keep_seconds=keep,
        max_queued=queue,
        model=model,
        ask_for_model=asks,
        **({} if sessions_per_client is None else {"sessions_per_client": sessions_per_client}),
    )
    if prompt is None:
        prompt = TINY_PROMPT if model == TINY else PROMPT
    elsewhere = outlet(publish, publish_make_room, settings)
    osc_at = None if osc is None else _osc_address(osc, settings)
    if os.environ.get("RANK", "0") != "0":
        _follow(model, config, device, join_ranks(numbers, device, leads=True), loras)
        return
    have(model, text_precision=text_precision, control=control)
    with _listen(host, port) as listener:
        beside = None if osc_at is None else _osc(osc_at)
        ranks = join_ranks(numbers, device, leads=True)

        def load(progress: Progress) -> EngineSource:
            return EngineSource(model, config, device, progress, vae_device, text_device, ranks, loras)

        streams = Sessions(load, prompt, settings, outlet=elsewhere)
        streams.overlay, ranks.on_broken = overlay, streams.worker.give_up
        _run(streams, listener, _address(settings, listener), asks, beside)
    if streams.worker.error:
        raise streams.worker.error
    # All is closed, but for a block that may be under way. Python would take seconds to take its libraries down.
    atexit._run_exitfuncs()
    os._exit(0)


def _follow(
    model: str, config: ScopeOptimizationConfig, device: str | None, ranks: Ranks, loras: Sequence[UserLora]
) -> None:
    """Do what rank 0 does, as long as it serves."""
    from ..config import OptimizationConfig
    from ..engine.engine import LongLiveEngine

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for rank 0, which then closes its ranks
    with ranks:
        LongLiveEngine(model, OptimizationConfig.of(config), device, loras=loras, ranks=ranks).follow()


def _run(streams: Sessions, listener: socket.socket, address: str, asks: bool, beside: Beside | None) -> None:
    """Serve until a signal comes or the model turns out not to load; asks: nobody has named one."""
    import uvicorn

    from ..demo.server.app import create_app

    started = time.perf_counter()
    quiet = {"log_level": "warning", "access_log": False, "server_header": False}
    server = uvicorn.Server(
        uvicorn.Config(create_app(streams, beside), lifespan="on", ws="none", timeout_graceful_shutdown=1, **quiet)
    )

    def follow(status: Status) -> None:
        if status.phase == "ready":
            console.print(f"ready after {time.perf_counter() - started:.1f} s")
        server.should_exit |= status.phase == "failed"

    streams.on_status = follow
    logging.getLogger("uvicorn.error").addFilter(lambda record: not (server.should_exit and _is_cut_off(record)))
    console.print(Text.assemble("open ", (address, "bold"), "  (Ctrl-C ends)"), soft_wrap=True)
    if asks:
        tell_of_the_real_one()
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])


def _is_cut_off(record: logging.LogRecord) -> bool:
    """Whether it tells, at length, of a request that was under way when the server was to end."""
    error = record.exc_info[1] if record.exc_info else None
    return (
        isinstance(error, asyncio.CancelledError)
        or re.search("Cancel [0-9]+ running|CancelledError", record.getMessage()) is not None
    )


def _loras(texts: Sequence[str]) -> list[UserLora]:
    """Raises ValueError and FileNotFoundError naming the option."""
    from ..demo.server.loras import served

    scales = parse_loras(texts)
    try:
        return served(scales)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"--lora: {error}") from None


def _sessions(text: str) -> int | Literal["auto"]:
    """Raises ValueError naming the option."""
    if text == "auto":
        return "auto"
    try:
        return whole("--sessions", int(text), 1)
    except ValueError:
        raise ValueError(f"--sessions must be auto or a number from 1 on, got {text!r}") from None


def _ice_servers(stun: str | None, turn: str | None, name: str | None, password: str | None) -> tuple[IceServer, ...]:
    """Raises ValueError naming the option."""
    from ..demo.server.settings import IceServer

    if turn and not (name and password):
        raise ValueError("--turn needs --turn-username and --turn-password")
    servers = []
    for kind, url, signs_in in (("stun", stun, {}), ("turn", turn, {"username": name, "credential": password})):
        if url is not None:
            form = f"--{kind} must be {kind}:HOST[:PORT]{'[?transport=tcp]' if signs_in else ''}, got {url!r}"
            if not url.startswith((kind + ":", kind + "s:")):
                raise ValueError(form)
            try:
                servers.append(IceServer(urls=url, **signs_in))
            except ValueError:
                raise ValueError(form) from None
    return tuple(servers)


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises OSError naming the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(f"cannot listen on {host} port {port}: {error.strerror}") from error


def _osc_address(text: str, settings: ServerSettings) -> OscAddress:
    """Where ``--osc`` listens. Raises ValueError naming the option."""
    with extra("osc"):
        from ..demo.server.osc import read_osc
    with named("--osc"):
        return read_osc(text, settings)


def _osc(address: OscAddress) -> Beside:
    """What obeys OSC there. Raises OSError naming the address."""
    from ..demo.server.osc import bind, listening

    receiver = bind(address)
    console.print(f"OSC by UDP port {receiver.getsockname()[1]}")
    return functools.partial(listening, receiver)


def _address(settings: ServerSettings, listener: socket.socket) -> str:
    """The address of the page. What follows the # stays in the browser, out of logs."""
    host = socket.gethostname() if settings.address and settings.address.is_unspecified else settings.host
    host = f"[{host}]" if ":" in host else host
    token = f"#token={quote(settings.token, safe='')}" if settings.token else ""  # the page decodes it as a query's
    return f"http://{host}:{listener.getsockname()[1]}/{token}"


def _refuse_beside_cluster(**options: object) -> None:
    """Raises ValueError naming an option that a cluster's replicas do not take."""
    if given := [name for name, value in options.items() if value]:
        raise ValueError(f"--{given[0].replace('_', '-')} cannot be used with --cluster")
