"""What the server answers over HTTP: who may ask what, the page, recordings."""

import asyncio
import io
import re
import threading

import httpx
import pytest

pytest.importorskip("aiortc")
pytest.importorskip("fastapi")
from longlive_optimized import clip
from longlive_optimized.demo.server import app
from longlive_optimized.demo.server.settings import ServerSettings
from support.painted import painted, read_number
from support.room import in_room, numbers
from support.server_peer import Viewer


@in_room(host="0.0.0.0", token="correct horse battery")
async def test_what_needs_a_token(room, http):
    async with httpx.AsyncClient(transport=http._transport, base_url="http://gpu.example") as stranger:
        for path in ("/status", "/metrics", "/recording.mp4"):
            assert (await stranger.get(path)).status_code == 401
        assert (await stranger.post("/offer", json={})).status_code == 401
        for path in ("/", "/app.js", "/healthz", "/readyz"):
            assert (await stranger.get(path)).status_code == 200
    assert (await http.get("/status")).status_code == 200


@in_room()
async def test_an_offer_that_never_ends_is_not_waited_for(room, http, monkeypatch):
    monkeypatch.setattr(app, "BODY_SECONDS", 0.1)

    async def slowly():
        yield b'{"type": "offer",'
        await asyncio.sleep(1)
        yield b"}"

    answer = await http.post("/offer", content=slowly())
    assert (answer.status_code, answer.json()["code"]) == (408, "too slow")


@in_room()
async def test_pages_of_others_are_kept_out(room, http):
    evil = {"Origin": "http://evil.example"}
    assert (await http.post("/offer", json={"type": "offer", "sdp": ""}, headers=evil)).status_code == 403
    assert (await http.get("/recording.mp4", headers=evil)).status_code == 403
    assert (await http.get("/status", headers={"Host": "evil.example"})).status_code == 403


@in_room(origins=("https://demo.example",))
async def test_a_page_elsewhere_gets_its_headers_and_nothing_more(room, http):
    mine, evil = {"Origin": "https://demo.example"}, {"Origin": "https://evil.example"}
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    for path in ("/offer", "/status", "/recording.mp4", "/metrics"):
        answer = await http.options(path, headers=mine | asks)
        assert answer.status_code == 204 and answer.headers["access-control-allow-origin"] == mine["Origin"]
        assert answer.headers["access-control-allow-methods"] == "GET, HEAD, POST"
        assert answer.headers["access-control-allow-headers"].lower() == "authorization, content-type"
        assert "access-control-allow-credentials" not in answer.headers
        answer = await http.options(path, headers=evil | asks)
        assert answer.status_code == 403 and "--origin" in answer.json()["error"]
        assert not any(name.startswith("access-control") for name in answer.headers)
    for method, path, status in (
        ("GET", "/status", 200),
        ("HEAD", "/status", 200),
        ("GET", "/nothing", 404),
        ("POST", "/offer", 422),
        ("GET", "/recording.mp4", 404),
        ("GET", "/recording.mp4?seconds=-1", 422),
        ("PUT", "/status", 405),
    ):
        answer = await http.request(method, path, headers=mine)
        assert answer.status_code == status and answer.headers["access-control-allow-origin"] == mine["Origin"]
        assert "origin" in answer.headers["vary"].lower() and (status == 200 or answer.json()["error"])
        answer = await http.request(method, path, headers=evil)
        assert not any(name.startswith("access-control") for name in answer.headers)


@in_room(host="0.0.0.0", token="correct horse battery", origins=("https://demo.example",))
async def test_a_page_elsewhere_needs_the_token_and_can_read_that(room, http):
    async with httpx.AsyncClient(transport=http._transport, base_url="http://gpu.example") as stranger:
        mine = {"Origin": "https://demo.example"}
        assert (await stranger.options("/offer", headers=mine)).status_code == 204
        answer = await stranger.post("/offer", headers=mine)
        assert answer.status_code == 401 and "Bearer TOKEN" in answer.json()["error"]
        assert answer.headers["access-control-allow-origin"] == mine["Origin"]


@in_room()
async def test_nobody_elsewhere_unless_told(room, http):
    for method in ("OPTIONS", "GET"):
        answer = await http.request(method, "/status", headers={"Origin": "https://demo.example"})
        assert answer.status_code == 403 and not any(name.startswith("access-control") for name in answer.headers)


@in_room()
async def test_every_page_answers_head(room, http):
    for path in ("/", "/app.js", "/healthz", "/readyz", "/status", "/metrics"):
        assert (await http.head(path)).status_code == (await http.get(path)).status_code == 200


@in_room()
async def test_the_page_is_what_it_is(room, http):
    page = await http.get("/")
    assert page.status_code == 200 and "default-src 'self'" in page.headers["content-security-policy"]
    for name in {*re.findall(r'(?:src|href)="([\w.]+)"', page.text)} | {
        "chart.js",
        "connection.js",
        "prompts.js",
        "settings.js",
    }:
        found = await http.get(f"/{name}")
        assert found.status_code == 200 and found.headers["x-content-type-options"] == "nosniff"
        for imported in re.findall(r'from "\./([\w.]+)"', found.text):
            assert (await http.get(f"/{imported}")).status_code == 200
    for path in (
        "/page/index.html",
        "/../room.py",
        "/%2e%2e/room.py",
        "/index.html",
        "/app.js/",
        "//etc/passwd",
        "/docs",
        "/openapi.json",
    ):
        assert (await http.get(path)).status_code in (307, 404)


@in_room(painted(playback_speed=4))
async def test_a_recording_holds_what_was_made(room, http):
    """Every frame once, at the model's rate, though the world went four times as fast, stood still for a while, and
    was begun anew."""
    import av

    for path in ("/recording", "/recording.mp4"):
        assert (await http.get(path)).json()["code"] == "empty"
    viewer = await Viewer(http).join()
    seen = await numbers(viewer, 40)
    await viewer.ask("set_paused", paused=True)
    await asyncio.sleep(0.7)
    await viewer.ask("set_paused", paused=False)
    await viewer.ask("reset")
    seen += await numbers(viewer, 40)
    await viewer.ask("set_paused", paused=True)
    answer = await http.get("/recording?seconds=30")
    assert answer.status_code == 200 and answer.headers["content-type"] == "video/mp4"
    with av.open(io.BytesIO(answer.content)) as video:
        kept = [(frame.time, read_number(frame.to_ndarray(format="rgb24"))) for frame in video.decode(video=0)]
    assert {*seen} <= {number for _, number in kept} and [number for _, number in kept] == [*range(len(kept))]
    assert [at for at, _ in kept] == pytest.approx([i / 16 for i in range(len(kept))], abs=1e-4)
    assert "longlive.mp4" in answer.headers["content-disposition"]
    for form, kind, begin in (("gif", "image/gif", b"GIF89a"), ("webp", "image/webp", b"RIFF")):
        room._downloads._left = 3
        answer = await http.get(f"/recording?seconds=1&format={form}&scale=2")
        assert (answer.status_code, answer.headers["content-type"]) == (200, kind) and answer.content.startswith(begin)
        assert f"longlive.{form}" in answer.headers["content-disposition"]
    await viewer.leave()


@in_room()
async def test_bad_clips_are_named(room, http):
    viewer = await Viewer(http).join()
    await numbers(viewer, 20)
    for query, name in [
        *((f"seconds={seconds}", "seconds") for seconds in ("0", "-1", "nan", "601", "x")),
        *((f"scale={scale}", "scale") for scale in ("0", "9", "1.5", "-1", "x")),
        *((f"format={form}", "format") for form in ("avi", "", "MP4")),
    ]:
        answer = await http.get(f"/recording?{query}")
        assert answer.status_code == 422 and answer.json()["error"].startswith(f"{name}: "), answer.text
    before, clip.MOST_CLIP = clip.MOST_CLIP, {"gif": 1000}
    try:
        answer = await http.get("/recording?format=gif&scale=8")
    finally:
        clip.MOST_CLIP = before
    assert answer.status_code == 422 and answer.json()["error"].startswith("seconds: gif of 512x1024 may have at most")
    await viewer.leave()


@in_room(record_seconds=0)
async def test_no_recording(room, http):
    assert (await http.get("/recording.mp4")).json()["code"] == "off"


def test_before_the_model_is_there():
    from longlive_optimized.demo.server.app import create_app
    from longlive_optimized.demo.server.sessions import Sessions

    loaded = threading.Event()

    def slow(progress):
        progress("VAE", 1, 4)
        loaded.wait(20)
        return painted()(progress)

    async def scene():
        app = create_app(Sessions(slow, "a fox", ServerSettings()))
        async with app.router.lifespan_context(app):
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
                assert (await http.get("/healthz")).status_code == 200
                assert (await http.get("/readyz")).status_code == 503
                status = (await http.get("/status")).json()
                assert (status["phase"], status["detail"], status["done"], status["total"]) == ("loading", "VAE", 1, 4)
                answer = await http.post("/offer", json={"type": "offer", "sdp": ""})
                assert answer.status_code == 503 and answer.json()["code"] == "loading"
                loaded.set()

    asyncio.run(scene())
