"""The shared stream in a room of a real Janus: who subscribes there sees it, and it comes back when Janus does."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("aiortc")
pytest.importorskip("fastapi")
pytest.importorskip("janus_client")

from aiortc.codecs import vpx

from longlive_optimized.demo.server import encoding, publishing
from longlive_optimized.demo.server.janus import JanusAddress, JanusRoom, JanusSecrets
from longlive_optimized.demo.server.rtc import local_addresses
from longlive_optimized.demo.server.settings import ServerSettings
from support.janus_server import MISSING, janus, subscribers
from support.painted import painted
from support.room import numbers, value
from support.server_peer import Viewer, visit_all

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

OPEN, LOCKED, H264, VP9, NARROW = 1, 2, 3, 4, 5
ROOMS = {
    OPEN: 'description = "for all"',
    LOCKED: 'pin = "1357"',
    H264: 'videocodec = "h264"',
    VP9: 'videocodec = "vp9"',
    NARROW: "bitrate = 200000",
}
PAINTED = painted(0.1)


@pytest.fixture(scope="module")
def server():
    with janus(ROOMS) as running:
        yield running


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(publishing, "FIRST_WAIT", 0.2)
    monkeypatch.setattr(publishing, "LONGEST_WAIT", 1.0)


def room_of(server, room, settings=None, make=False, **secrets) -> JanusRoom:
    known = {"api_secret": server.secret} | secrets
    address = JanusAddress(f"ws://127.0.0.1:{server.port}", room)
    return JanusRoom(address, settings or ServerSettings(), JanusSecrets(**known), make)


def publishing_to(outlet, test, **settings) -> None:
    """Run a test with a server that publishes there; no task may be left afterwards."""

    async def run() -> None:
        async with visit_all(PAINTED, ServerSettings(**settings), outlet=outlet) as (sessions, http):
            await asyncio.wait_for(test(sessions, http), 60)
        for _ in range(100):
            if len(asyncio.all_tasks()) == 1:
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"left behind: {asyncio.all_tasks()}")

    asyncio.run(run())


async def published(http, wanted=lambda said: said["phase"] == "publishing") -> dict:
    """What ``/status`` says of it, once it is as wanted."""
    for _ in range(3000):
        if wanted(said := (await http.get("/status")).json()["publish"]):
            return said
        await asyncio.sleep(0.01)
    raise AssertionError(said)


def test_all_who_subscribe_see_the_picture_move(server, caplog):
    async def look(sessions, http) -> None:
        await published(http)
        assert sessions.main.people == 1
        async with subscribers(server, OPEN, 4) as watching:
            seen = await asyncio.gather(*(numbers(one, 20) for one in watching))
            for shown in seen:
                assert len({*shown}) >= 15 and shown == sorted(shown)
            viewer = await Viewer(http).join()  # who comes to the server itself
            assert len({*await numbers(viewer, 10)}) > 5 and sessions.main.people == 2
            encoded = value((await http.get("/metrics")).text, "longlive_frames_encoded_total")
            assert encoded <= max(max(shown) for shown in seen) + 60
            assert {one.codec for one in watching} == {"vp8"}
            await viewer.leave()
        assert sessions.main.people == 1

    with caplog.at_level(logging.INFO):
        publishing_to(room_of(server, OPEN), look)
    assert server.secret not in caplog.text
    assert f"publishing to room 1 of ws://127.0.0.1:{server.port}" in caplog.text


def test_janus_gone_and_back_again_shows_the_same_stream(caplog):
    """The room is made anew each time: Janus keeps none."""
    with janus({}) as server:

        async def look(sessions, http) -> None:
            await published(http)
            async with subscribers(server, 77, 1) as (one,):
                before = (await numbers(one, 10))[-1]
                server.kill()
                said = await published(http, lambda said: "cannot be reached" in said["detail"])
                assert said["phase"] in ("waiting", "connecting")
                assert sessions.main.people == 0
            for _ in range(2):
                server.start()
                assert (await published(http))["detail"] == ""
                async with subscribers(server, 77, 2) as watching:
                    for shown in await asyncio.gather(*(numbers(one, 10) for one in watching)):
                        assert before < shown[0] and len({*shown}) > 5
                before = shown[-1]
                server.kill()
                await published(http, lambda said: "cannot be reached" in said["detail"])
            server.start()
            await published(http)

        publishing_to(room_of(server, 77, make=True, admin_key=server.admin_key), look)
    assert "the connection to Janus has ended" in caplog.text and "again" in caplog.text


def test_a_room_that_is_destroyed_is_told_and_made_again(server):
    async def look(sessions, http) -> None:
        await published(http)
        async with subscribers(server, 88, 1) as (one,):
            await one._ask({"request": "destroy"})
            said = await published(http, lambda said: said["detail"])
            assert said["detail"] == "the room was destroyed"
        await published(http)

    publishing_to(room_of(server, 88, make=True, admin_key=server.admin_key), look)


@pytest.mark.parametrize(
    ("room", "how", "wanted"),
    [
        (99, {}, "Janus has no room 99: make it there, or let it be made by --publish-make-room"),
        (OPEN, {"api_secret": "wrong"}, "Janus wants another secret or token: set LONGLIVE_JANUS_API_SECRET"),
        (OPEN, {"api_secret": None}, "Janus wants another secret or token: set LONGLIVE_JANUS_API_SECRET"),
        (LOCKED, {}, "room 2 wants another PIN: set LONGLIVE_JANUS_PIN"),
        (LOCKED, {"pin": "2468"}, "room 2 wants another PIN: set LONGLIVE_JANUS_PIN"),
        (VP9, {}, "room 4 takes neither VP8 nor H264"),
        (99, {"make": True}, "Janus does not make room 99: set LONGLIVE_JANUS_ADMIN_KEY"),
        (99, {"make": True, "admin_key": "wrong"}, "Janus does not make room 99: set LONGLIVE_JANUS_ADMIN_KEY"),
        ("lobby", {}, "Janus does not let us into room lobby (Invalid element type"),
    ],
)
def test_what_is_wrong_is_said_and_the_server_goes_on(server, caplog, room, how, wanted):
    async def look(sessions, http) -> None:
        said = await published(http, lambda said: said["detail"])
        assert said["detail"].startswith(wanted), said
        viewer = await Viewer(http).join()
        assert len({*await numbers(viewer, 10)}) > 5
        assert (await http.get("/status")).json()["publish"]["phase"] != "publishing"
        await viewer.leave()

    publishing_to(room_of(server, room, **how), look)
    assert wanted in caplog.text and caplog.text.count(wanted) == 1
    assert server.secret not in caplog.text and "2468" not in caplog.text and "Traceback" not in caplog.text


def test_a_locked_room_opens_to_its_pin(server):
    async def look(sessions, http) -> None:
        await published(http)
        async with subscribers(server, LOCKED, 1, pin="1357") as (one,):
            assert len({*await numbers(one, 10)}) > 5

    publishing_to(room_of(server, LOCKED, pin="1357"), look)


def test_a_room_may_want_h264(server):
    async def look(sessions, http) -> None:
        await published(http)
        async with subscribers(server, H264, 1) as (one,):
            assert one.codec == "h264" and len({*await numbers(one, 10)}) > 5

    publishing_to(room_of(server, H264), look)


@pytest.mark.parametrize(("room", "told", "rate"), [(OPEN, None, 900_000), (NARROW, 200_000, 200_000)])
def test_a_rooms_own_rate_is_not_exceeded(server, monkeypatch, room, told, rate):
    monkeypatch.setattr(encoding, "RATE_SECONDS", 0.1)
    monkeypatch.setattr(vpx, "MIN_BITRATE", 50_000)

    async def look(sessions, http) -> None:
        def taken() -> int:
            (encoder,) = sessions.main._broadcast._encoders.values()
            return encoder._encoder.target_bitrate

        await published(http)
        while (await http.get("/status")).json()["publish"]["bitrate"] != told:  # Janus begins with a part of it
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        for _ in range(20):
            await asyncio.sleep(0.1)
            assert taken() == rate

    publishing_to(room_of(server, room), look, bitrate=900_000)


def test_a_server_whose_rooms_have_names():
    with janus({}, string_ids=True) as server:

        async def look(sessions, http) -> None:
            await published(http)
            async with subscribers(server, "lobby", 1) as (one,):
                assert len({*await numbers(one, 10)}) > 5

        publishing_to(room_of(server, "lobby", make=True, admin_key=server.admin_key), look)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"\xff" * 100])
def test_what_is_no_janus_is_told(answer):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(4096)
                        connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        address = JanusAddress(f"ws://127.0.0.1:{listener.getsockname()[1]}", 1)

        async def look(sessions, http) -> None:
            said = await published(http, lambda said: said["detail"])
            assert said["detail"].startswith("what answers does not speak Janus's protocol"), said

        publishing_to(JanusRoom(address, ServerSettings()), look)


def test_janus_that_stands_still_is_left(monkeypatch):
    """Its process is stopped: nothing is answered, and nothing refused."""
    monkeypatch.setattr("longlive_optimized.demo.server.janus_link.ANSWER_SECONDS", 0.5)
    with janus({1: ""}) as server:
        server.pause()

        async def look(sessions, http) -> None:
            said = await published(http, lambda said: said["detail"])
            assert said["detail"] == "no answer of Janus"
            server.resume()
            await published(http)

        publishing_to(room_of(server, 1), look)


def test_the_command_publishes_the_built_in_model(tmp_path):
    """A process of its own: its secret is in a file, and neither in its arguments nor in what it says."""
    with janus({}) as server:
        (tmp_path / "secret").write_text(server.secret + "\n")
        secrets = {
            "LONGLIVE_JANUS_API_SECRET_FILE": str(tmp_path / "secret"),
            "LONGLIVE_JANUS_ADMIN_KEY": server.admin_key,
        }
        to = ["--publish", f"janus://127.0.0.1:{server.port}/5", "--publish-make-room"]
        to += ["--height", "64", "--width", "96"]
        command = ["-c", "from longlive_optimized.cli import main; main()", "--verbose", "serve", "--port", "0", *to]
        log = tmp_path / "log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, *command], stdout=file, stderr=file, env={**os.environ, **secrets, "COLUMNS": "200"}
            )
        try:
            for _ in range(600):
                if "publishing to room 5" in log.read_text():
                    break
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)

            async def look() -> None:
                async with subscribers(server, 5, 1) as (one,):
                    pictures = [await one.picture() for _ in range(30)]
                assert pictures[0].shape == (64, 96, 3)
                assert len({picture.tobytes() for picture in pictures}) > 20

            with local_addresses(ServerSettings()):
                asyncio.run(asyncio.wait_for(look(), 60))
            arguments = Path(f"/proc/{process.pid}/cmdline").read_text()
            assert server.secret not in arguments + log.read_text() and server.admin_key not in log.read_text()
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0, log.read_text()
