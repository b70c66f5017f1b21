"""What docs/api.md and README.md say of the server, asked of one that runs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message
from typing import NamedTuple

import httpx
import pytest

from longlive_optimized import clip
from longlive_optimized.config import PRESETS
from longlive_optimized.demo.scope_integration import ScopeOptimizationConfig
from longlive_optimized.demo.server import (
    admission,
    app,
    encoding,
    inputs,
    intake,
    loras,
    messages,
    offer,
    osc,
    publishing,
    recording,
    room,
    rtc,
    sessions,
)
from longlive_optimized.demo.server.settings import SHORTEST_TOKEN, ServerSettings
from longlive_optimized.video_time import TRAINED_FPS
from longlive_optimized.weights.locate import TINY_SIZE

from ..server_peer import Viewer
from .claims import lists, says
from .markdown import Unit
from .place import Place
from .tables import names

API = "docs/api.md"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def ask(address: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Answer:
    """What the server answers, refusals included. Headers have _ for -."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    request = urllib.request.Request(address, body, named, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return Answer(answer.status, _lower(answer.headers), answer.read())
    except urllib.error.HTTPError as refused:
        return Answer(refused.code, _lower(refused.headers), refused.read())


def _lower(headers: Message) -> dict[str, str]:
    return {name.lower(): text for name, text in headers.items()}


@contextlib.contextmanager
def serving(place: Place, options: str = "") -> Iterator[tuple[str, list[str]]]:
    """A server on a free port, ready: its address and the lines that it printed. It is ended by Ctrl-C."""
    process = subprocess.Popen(
        ["bash", "-c", f"exec longlive-optimized serve --model tiny --port 0 {options}"],
        cwd=place.folder,
        env=place.variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    printed: list[str] = []
    try:
        assert process.stdout
        for line in process.stdout:
            printed.append(line.rstrip())
            if line.startswith("ready after"):
                break
        found = re.search(r"open (http://\S+)  \(Ctrl-C ends\)", "\n".join(printed))
        assert found, printed
        yield found[1], printed
    finally:
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and time.monotonic() - began < 15, (process.returncode, rest)
    assert "Traceback" not in rest, rest


@says(API, "`longlive-optimized serve`: `POST /offer` takes")
@says("README.md", "The video over WebRTC fills the page; type anywhere, and it is the next prompt.")
@says(API, "`/watch` is the video and its caption for other screens")
@says(API, "`GET /guide` (`/s/NAME/guide`) is what the page tells those who write prompts")
def pages_are_served(place: Place):
    with serving(place) as (address, _):
        page = ask(address)
        assert page.status == 200 and b"<video" in page.body and b"prompt" in page.body
        asked_for = re.findall(rb'(?:src|href)="([\w.]+)"', page.body)
        assert len(asked_for) >= 4, page.body
        for path in [*map(bytes.decode, asked_for), "watch", "s/main/watch?clean=1"]:
            assert ask(address + path).status == 200, path
        guide = json.loads(ask(address + "guide").body)
        assert guide == json.loads(ask(address + "s/another/guide").body)
        assert guide.keys() == {"name", "builtin", "suggestions", "help", "sizes", "limits"}
        assert guide["limits"].keys() == {"prompt", "transition_blocks", "pixels", "multiple"}
        asyncio.run(_watch(address))
        for path in ("status", "metrics", "healthz", "readyz", "recording?seconds=30"):
            found, head = ask(address + path), ask(address + path, "HEAD")
            assert found.status == head.status == 200 and not head.body, (path, found.status, head.status)
            if path == "status":
                assert json.loads(found.body)
            if path == "metrics":
                assert b"# TYPE" in found.body
            if path.startswith("recording"):
                assert found.body[4:8] == b"ftyp", "an mp4"
        refused = ask(address + "offer", "POST", b'{"type": "offer"}', Content_Type="application/json")
        assert refused.status == 422 and json.loads(refused.body).keys() == {"error", "code"}, refused
        nowhere = ask(address + "nowhere")
        assert nowhere.status == 404 and json.loads(nowhere.body).keys() == {"error", "code"}


async def _watch(address: str) -> None:
    """See some frames, send each message of the table, and get the answer that it says."""
    async with httpx.AsyncClient(base_url=address, timeout=30) as http:
        with rtc.local_addresses(ServerSettings()):
            viewer = await Viewer(http, label="of any name").join()
            for _ in range(15):
                assert (await viewer.frame()).width == TINY_SIZE[1]
            for kind, fields in _MESSAGES.items():
                answer = await viewer.ask(kind, **fields)
                assert answer["type"] == ("latency_stats" if kind == "get_latency_stats" else "done"), answer
                if kind == "switch_prompt":  # what follows drops its frames, and pauses
                    shown = {"type": "shown", "number": answer["number"]}
                    await viewer.wait_for(lambda message, shown=shown: shown.items() <= message.items())
            refused = await viewer.ask("set_optimization_preset", preset="fast")
            assert refused["type"] == "error" and "preset" in str(refused), refused
            for kind in ("state", "block"):
                await viewer.wait_for(lambda message, kind=kind: message["type"] == kind)
            await viewer.leave()


_MESSAGES = {
    "switch_prompt": {"prompt": "a white cross rests on a black night", "transition_blocks": 2},
    "set_optimization_preset": {"preset": "realtime"},
    "settings": {"playback_speed": 1.5, "interpolation": "blend", "shown_fps": 48},
    "set_transition": {"blocks": 2, "blend": "linear"},
    "set_overlay": {"enabled": True},
    "get_latency_stats": {},
    "set_strength": {"noise_scale": 0.5, "control_scale": 1.0},
    "set_input": {"use": None},
    "remove_picture": {"role": "reference"},
    "reset": {},
    "replay": {"story": {"version": 1, "blocks": 2, "prompts": [{"block": 0, "prompt": "a red circle"}]}},
    "stop_replay": {},
    "set_paused": {"paused": True},
}


@says(API, "With a token all but the last two want `Authorization: Bearer TOKEN`.")
def a_token_is_wanted(place: Place):
    token, page = "sixteen-letters-and-more", "https://demo.example"
    with serving(place, f"--token {token} --origin {page}") as (address, _):
        address, _, fragment = address.partition("#")
        assert fragment == f"token={token}"
        for path in ("status", "metrics", "recording.mp4", "guide"):
            assert ask(address + path).status == 401, path
            assert ask(address + path, Authorization=f"Bearer {token}").status in (200, 404, 409, 425, 503), path
        assert ask(address + "healthz").status == ask(address + "readyz").status == 200
        # "Pages elsewhere, `--origin https://HOST`, may GET, HEAD and POST, with that header and `Content-Type`."
        preflight = ask(address + "offer", "OPTIONS", Origin=page, Access_Control_Request_Method="POST")
        assert preflight.status == 204 and preflight.headers["access-control-allow-origin"] == page
        assert preflight.headers["access-control-allow-methods"] == "GET, HEAD, POST"
        assert preflight.headers["access-control-allow-headers"] == "Authorization, Content-Type"
        other = ask(address + "status", Origin="https://other.example", Authorization=f"Bearer {token}")
        assert other.status == 403 and "access-control-allow-origin" not in other.headers


@lists(API, "The server")
def messages_and_limits(units: list[Unit]):
    limits, listed = {}, set()
    for unit in units:
        if unit.text.startswith("| `{"):
            text = names(unit.text)[0].replace("P", '"balanced"', 1) if '"preset": P' in unit.text else None
            text = text or names(unit.text)[0].replace('"prompt": P', '"prompt": "a fox"').replace(": N", ": 3")
            listed.add(messages.parse(text).type)
        elif unit.cells[0] not in ("message", "limit"):
            limits[unit.cells[0]] = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", unit.cells[1])]
    known = {kind.model_fields["type"].annotation.__args__[0] for kind in messages.Command.__args__}
    assert listed == known
    assert limits["message, prompt, transition"] == [
        messages.MAX_BYTES / 1024,
        messages.LONGEST_PROMPT,
        messages.MOST_BLOCKS,
    ]
    assert limits["scale of a LoRA"] == [messages.MOST_LORA_SCALE] * 2
    assert limits["LoRAs are merged"] == [1 / loras.REST]
    assert limits["message with a story"] == [messages.MAX_STORY_BYTES / 1024]
    assert limits["left unread by the viewer"] == [rtc.MOST_UNREAD / 1024]
    assert limits["`state`"] == [*reversed(room.STATES)]
    rate, burst = room.OFFERS
    seconds = app.BODY_SECONDS
    assert limits["offers to a stream"] == [burst, rate, app.MAX_OFFER_BYTES / 1024, seconds, offer.MOST_CANDIDATES]
    rate, burst = sessions.OPENINGS
    assert limits["new streams of one address"] == [burst, 1, 1 / rate]
    rate, burst = room.UPLOADS
    pixels = room.MOST_PICTURE_PIXELS / 2**20
    assert limits["pictures"] == [burst, rate, app.MAX_PICTURE_BYTES / 2**20, app.BODY_SECONDS, pixels]
    wide, high, waiting, undecoded = limits["input frames"]
    assert (wide * high, waiting) == (inputs.MOST_PIXELS, inputs.MOST_WAITING) and undecoded == intake.MOST_UNDECODED
    rate, burst = room.DOWNLOADS
    assert limits["downloads"][:2] == [burst, 1] and limits["downloads"][2] == 1 / rate
    assert limits["downloads"][3:] == [600, recording.MOST_CLIPS]
    most, gif, webp = clip.MOST_PICTURE, clip.MOST_CLIP["gif"], clip.MOST_CLIP["webp"]
    assert limits["a clip"] == [
        clip.MOST_SCALE,
        *(round(n / 1e6, 1) for n in (most,)),
        gif // 10**6,
        webp // 10**6,
        256,
    ]
    assert recording.MOST_KEPT == 256 * 2**20
    assert limits["until a connection stands"] == [rtc.CONNECT_SECONDS]
    assert limits["without a sign of life"][0] == rtc.GONE_SECONDS


@lists(API, "Many streams")
def options_of_streams(units: list[Unit]):
    listed = {names(unit.cells[0])[0]: unit.cells[1].strip("`") for unit in units if unit.cells[0].startswith("`--")}
    usual = ServerSettings()
    assert listed == {
        "--sessions": usual.sessions,
        "--queue": str(usual.max_queued),
        "--keep": f"{usual.keep_seconds:g}",
        "--sessions-per-client": str(usual.sessions_per_client),
    }
    addresses = {names(unit.cells[0])[0] for unit in units if unit.cells[0].startswith("`/")}
    assert addresses == {"/", "/s/NAME/"} and sessions.MAIN == "main" and sessions.NAME.fullmatch("x" * 64)


@lists(API, "Open Sound Control")
def addresses_of_osc(units: list[Unit]):
    values = {
        "/prompt": ("a fox", 4),
        "/preset": ("balanced",),
        "/settings/playback_speed": (0.5,),
        "/lora/ink": (0.8,),
        "/seed": (7,),
        "/transition": (4, "slerp"),
        "/overlay": (1,),
        "/paused": (0,),
        "/strength/noise_scale": (0.5,),
        "/strength/control_scale": (1,),
        "/picture/role": ("reference",),
        "/reset": (1,),
        "/stop_replay": (1,),
    }
    listed = [name for unit in units for name in names(unit.cells[0]) if name.startswith("/")]
    assert listed == [*values] and {name.split("/")[1] for name in listed} == {*osc.SHORT}
    for address in listed:
        message = osc.message_of(address, values[address])
        assert message, address
        messages.parse(message)
    assert osc.message_of("/reset", [0]) is None


@says(API, "Of what comes too fast, more than 64 messages in 20 ms", "A datagram may have 16 KiB")
def bounds_of_osc():
    assert (osc.MOST, osc.TICK, messages.MAX_BYTES) == (64, 0.02, 16 * 1024)


@says(API, "`Retry-After` is over (10 minutes at most)", "One that is silent for 10 seconds is left")
def bounds_of_whip():
    assert (publishing.LONGEST_REST, rtc.GONE_SECONDS) == (600, 10)


@says(API, "One process has one engine, and makes as many streams as its device can")
@says(API, "Who first watches a stream opens it, and may choose what it begins with")
@says(API, "Where all places are taken, a viewer is connected and waits")
@says(API, "A picture is encoded once for all who watch it")
@says(API, "`/status` lists all streams with their model frames a second")
@says("README.md", "One process makes as many streams as its GPU can")
def streams(place: Place):
    assert (admission.FULL, TRAINED_FPS) == (0.95, 16)
    assert (encoding.KEY_SECONDS, encoding.FLOOR, encoding.SETTLE_SECONDS) == (0.5, 0.25, 5)
    place.passes(
        "tests/demo/test_server_sessions.py tests/demo/test_server_streams.py tests/demo/test_server_encoding.py"
    )


@says(API, "each with an `id` if it likes (a number, or a text of at most 64 characters)")
def ids():
    assert messages.parse('{"type": "reset", "id": 7}').id == 7
    assert messages.parse(json.dumps({"type": "reset", "id": "x" * 64})).id == "x" * 64
    for bad in (json.dumps({"type": "reset", "id": "x" * 65}), '{"type": "rest"}', "no JSON"):
        try:
            messages.parse(bad)
        except messages.BadMessage as error:
            assert error.id is None and str(error)
        else:
            raise AssertionError(bad)


@says(API, "An offer must have a video section that is to receive, with VP8 or H264")
def offers():
    assert offer.CODECS == ("VP8", "H264") and SHORTEST_TOKEN == 16
    for sdp, words in (("v=0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 0\r\n", "no video section"),):
        try:
            offer.Offer(sdp)
        except offer.BadOffer as error:
            assert words in str(error)
        else:
            raise AssertionError(sdp)


@says(API, "The others are answered by `done`, or by `error` with a text")
def answers(place: Place):
    place.passes(
        "tests/demo/test_server_messages.py tests/demo/test_server_commands.py tests/demo/test_server_access.py"
    )


@says(API, "`GET /recording?seconds=30&format=mp4&scale=1`")
@says(API, "What is kept are the frames that the engine made, each once, at the model's 16 a second")
def clips(place: Place):
    assert {*clip.MEDIA_TYPES} == {"mp4", "gif", "webp"} and clip.FEW_PIXELS == 32_768
    assert (recording.MOST_KEPT, recording.MOST_WAITING) == (256 * 2**20, 64 * 2**20)
    place.passes("tests/demo/test_server_recording.py tests/demo/test_server_routes.py")


@says(API, "The model's time has 16 frames a second")
@says(API, "`target_fps` sets no pace.")
@says(API, '`interpolation="blend"` shows `shown_fps` pictures a second')
@says("README.md", "The model's time is 16 frames a second")
def the_speed_of_the_world(place: Place):
    config = ScopeOptimizationConfig(interpolation="blend")
    assert (config.model_fps, config.picture_fps, ScopeOptimizationConfig().picture_fps) == (16, 30, None)
    assert {preset["target_fps"] for preset in PRESETS.values()} == {20, 25, 30, 40}
    with pytest.raises(ValueError, match="shown_fps"):
        ScopeOptimizationConfig(shown_fps=30)
    for name, bad in (("playback_speed", 0.2), ("playback_speed", 4.1), ("shown_fps", 23), ("shown_fps", 61)):
        with pytest.raises(ValueError, match=name):
            config.changed(**{name: bad})
    place.passes("tests/demo/test_interpolation.py tests/demo/test_video_track.py")


@says(API, "`longlive-optimized serve --lora FILE[:SCALE]`, as often as wanted, merges [LoRAs](#loras)")
@says(API, "All streams have the engine's weights, so a LoRA acts in all of them")
@says(API, "Files are named without their folders: `generate --story` looks for them beside the story")
def turned_loras(place: Place):
    place.passes("tests/demo/test_server_loras.py")


@says(API, "A viewer whose offer's video section is `sendrecv` may send video")
@says(API, "A block takes the frames that came since the one before", "the last one stands for 2 seconds")
@says(API, "`POST /picture?seat=S&role=reference` (or `first_frame`)")
@says(API, "`hello` says what the model can take: `inputs`")
@says("README.md", "A webcam or a file of video may be what the picture starts from")
def input_comes_in(place: Place):
    assert inputs.HOLD == 2.0
    place.passes("tests/demo/test_server_inputs.py")


@says(API, "On the command line `generate` takes what a request takes, from files that FFmpeg reads")
@says(API, "Videos are taken at 16 frames a second: at each instant the frame that is shown then")
def input_from_files(place: Place):
    place.passes("tests/cli/test_media.py tests/cli/test_inputs.py")
