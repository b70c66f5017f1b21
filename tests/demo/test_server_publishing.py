"""The shared stream is published elsewhere: what an outlet gets, and what becomes of one that fails."""

import asyncio
import contextlib
import itertools
import logging
import re
import subprocess
import sys
import time

import pytest

pytest.importorskip("aiortc")
pytest.importorskip("fastapi")

from demo.test_server_encoding import decoded

from longlive_optimized.cli import publish
from longlive_optimized.demo.server import publishing
from longlive_optimized.demo.server.encoding import is_key_frame
from longlive_optimized.demo.server.publishing import Lost
from longlive_optimized.demo.server.sessions import Sessions
from longlive_optimized.demo.server.settings import ServerSettings
from support.event_loop import as_test, nothing_left
from support.painted import painted
from support.room import value
from support.server_peer import Viewer, visit_all


class Pipe:
    """An outlet that keeps what it is sent, until it is cut; why: of an attempt's failure, if it is to fail."""

    address = "a pipe"

    def __init__(self, codec: str = "VP8", why: Exception | None = None):
        self.codec, self.why = codec, why
        self.attempts, self.tracks, self.left = [], [], 0
        self.packets: list[list] = []
        self.cut = asyncio.Event()

    async def publish(self, track, rate, begin) -> None:
        self.attempts.append(time.monotonic())
        self.rate = rate
        try:
            if self.why:
                raise self.why
            track.codec = self.codec
            begin()
            self.tracks.append(track)
            self.packets.append([])
            while not self.cut.is_set():
                with contextlib.suppress(TimeoutError):
                    self.packets[-1].append(await asyncio.wait_for(track.recv(), 0.05))
            self.cut.clear()
            raise Lost("the pipe was cut")
        finally:
            self.left += 1

    async def wait(self, count: int) -> list:
        """The last attempt's packets, once there are so many."""
        while not self.packets or len(self.packets[-1]) < count:
            await asyncio.sleep(0.01)
        return self.packets[-1]


def piped(**settings):
    """Run a test with a server that publishes to a pipe; quickly again where that fails."""

    def decorate(test):
        async def run(monkeypatch, **values):
            monkeypatch.setattr(publishing, "FIRST_WAIT", 0.05)
            monkeypatch.setattr(publishing, "LONGEST_WAIT", 0.4)
            pipe = Pipe()
            async with visit_all(painted(), ServerSettings(**settings), outlet=pipe) as (sessions, http):
                await asyncio.wait_for(test(pipe, sessions, http, **values), 30)
            assert pipe.left == len(pipe.attempts)
            await nothing_left()

        return as_test(run, test, 3, "monkeypatch")

    return decorate


async def published(http, phase: str = "publishing") -> dict:
    """What ``/status`` says of it, once it is in this phase."""
    while (said := (await http.get("/status")).json()["publish"])["phase"] != phase:
        await asyncio.sleep(0.01)
    return said


@piped()
async def test_a_stream_is_published_though_nobody_watches(pipe, sessions, http):
    packets = await pipe.wait(20)
    shown = decoded(packets[:20])
    assert shown == list(range(shown[0], shown[0] + len(shown)))
    assert is_key_frame("VP8", bytes(packets[0]))
    pipe.tracks[-1].rate = 50_000
    said = {"to": "a pipe", "phase": "publishing", "detail": "", "retry_in": 0.0, "bitrate": 50_000}
    assert await published(http) == said
    status = (await http.get("/status")).json()
    assert (status["viewers"], status["streams"][0]["viewers"]) == (1, 1)
    text = (await http.get("/metrics")).text
    assert value(text, "longlive_viewers") == value(text, "longlive_publishing") == 1
    assert pipe.rate == 81_920  # 0.25 bits for each pixel of 40 frames a second


@piped(max_viewers=1)
async def test_it_takes_no_seat_and_costs_no_encoding(pipe, sessions, http):
    await pipe.wait(3)
    viewer = await Viewer(http).join()
    assert (await viewer.wait_for(lambda message: message["type"] == "state"))["viewers"] == 2
    await viewer.frame()  # which both get
    counts = len(pipe.packets[-1]), value((await http.get("/metrics")).text, "longlive_frames_encoded_total")
    for _ in range(20):
        await viewer.frame()
    sent, encoded = len(pipe.packets[-1]), value((await http.get("/metrics")).text, "longlive_frames_encoded_total")
    assert sent - counts[0] > 15 and abs((encoded - counts[1]) - (sent - counts[0])) <= 2
    await viewer.leave()


@piped(keep_seconds=0.1)
async def test_it_goes_on_after_an_outage_with_its_time_stamps(pipe, sessions, http):
    before = [*await pipe.wait(10)]
    pipe.why = Lost("the other end is away")
    pipe.cut.set()
    while (said := await published(http, "waiting"))["detail"] != "the other end is away":
        await asyncio.sleep(0.01)
    assert 0 <= said["retry_in"] <= 0.5 and said["bitrate"] is None
    assert sessions.main.people == 0 and not sessions.main.feed._watched
    assert value((await http.get("/metrics")).text, "longlive_publishing") == 0
    made = len(sessions.main.feed.pipeline.painted)
    await asyncio.sleep(0.3)
    assert len(sessions.main.feed.pipeline.painted) <= made + 24  # what was under way
    pipe.why = None
    await published(http)
    after = [*await pipe.wait(10)]
    assert len({*pipe.tracks}) == 2 and is_key_frame("VP8", bytes(after[0]))
    assert after[0].pts > before[-1].pts
    assert all(one.pts < two.pts for one, two in itertools.pairwise(after))
    assert decoded(after)[0] >= decoded(before)[-1]  # the last picture may be shown again


@piped()
async def test_attempts_come_ever_later_and_a_reason_is_told_once(pipe, sessions, http, caplog):
    await pipe.wait(1)
    pipe.why = Lost("no such room")
    caplog.clear()
    with caplog.at_level(logging.INFO, logger=publishing.__name__):
        pipe.cut.set()
        while len(pipe.attempts) < 7:
            await asyncio.sleep(0.01)
        pipe.why = None
        await published(http)
    told = [record.getMessage() for record in caplog.records if record.name == publishing.__name__]
    assert told == [
        "not publishing to a pipe: the pipe was cut",
        "not publishing to a pipe: no such room",
        "publishing to a pipe again",
    ]
    waits = [later - sooner for sooner, later in itertools.pairwise(pipe.attempts[1:])]
    for wait, wanted in zip(waits, (0.1, 0.2, 0.4, 0.4, 0.4), strict=False):
        assert 0.79 * wanted <= wait <= 1.21 * wanted + 0.1


@piped()
async def test_a_bug_of_an_outlet_does_not_end_publishing(pipe, sessions, http, caplog):
    await pipe.wait(1)
    pipe.why = ZeroDivisionError("a bug")
    pipe.cut.set()
    while (await published(http, "waiting"))["detail"] != "ZeroDivisionError: a bug":
        await asyncio.sleep(0.01)
    assert "Traceback" in caplog.text
    pipe.why = None
    await published(http)


@piped()
async def test_a_reset_and_a_pause_are_seen_there_too(pipe, sessions, http):
    await pipe.wait(5)
    viewer = await Viewer(http).join()
    await viewer.ask("set_paused", paused=True)
    await asyncio.sleep(1.2)
    count = len(pipe.packets[-1])
    await asyncio.sleep(1.2)
    assert len(pipe.packets[-1]) - count <= 4  # the last picture again, every half a second
    await viewer.ask("set_paused", paused=False)
    await pipe.wait(count + 20)
    await viewer.leave()


def test_an_outlet_that_loses_a_cancellation_is_ended(monkeypatch):
    monkeypatch.setattr(publishing, "CLOSE_SECONDS", 0.1)

    class Stubborn(Pipe):
        async def publish(self, track, rate, begin) -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await super().publish(track, rate, begin)
            self.codec = "H264"
            await asyncio.sleep(60)

    async def look() -> None:
        async with visit_all(painted(), ServerSettings(), outlet=(pipe := Stubborn())):
            await pipe.wait(1)
        assert pipe.codec == "H264"
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("publisher")]

    asyncio.run(asyncio.wait_for(look(), 20))


def test_other_streams_are_not_published():
    async def look() -> None:
        pipe = Pipe()
        async with visit_all(painted(), ServerSettings(sessions=2), outlet=pipe) as (_, http):
            viewer = await Viewer(http, stream="/s/other").join()
            assert (await http.get("/s/other/status")).json()["publish"] is None
            assert (await http.get("/s/unknown/status")).json()["publish"] is None
            assert len(pipe.attempts) == 1
            await viewer.leave()

    asyncio.run(look())


def test_a_server_with_private_streams_has_nothing_to_publish():
    with pytest.raises(ValueError, match="the stream that all share"):
        Sessions(painted(), "a fox", ServerSettings(private=True), outlet=object())


# --- the command's options


SETTINGS = ServerSettings()
NAMES = "API_SECRET", "TOKEN", "PIN", "ADMIN_KEY"


@pytest.fixture
def environment(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(f"LONGLIVE_JANUS_{name}", raising=False)
        monkeypatch.delenv(f"LONGLIVE_JANUS_{name}_FILE", raising=False)
    return monkeypatch


def test_without_the_option_there_is_no_outlet():
    assert publish.outlet(None, False, SETTINGS) is None
    with pytest.raises(ValueError, match="--publish-make-room needs --publish"):
        publish.outlet(None, True, SETTINGS)


def test_private_streams_are_not_published():
    with pytest.raises(ValueError, match=r"--publish .*--private"):
        publish.outlet("janus://localhost/1234", False, ServerSettings(private=True))


def test_the_extra_is_named_where_it_is_missing(environment):
    for name in ("janus", "janus_link"):
        environment.delitem(sys.modules, f"longlive_optimized.demo.server.{name}", raising=False)
    environment.setitem(sys.modules, "janus_client", None)
    with pytest.raises(ValueError, match=re.escape("pip install 'longlive-optimized[janus]'")):
        publish.outlet("janus://localhost/1234", False, SETTINGS)


@pytest.fixture
def client():
    return pytest.importorskip("janus_client")


def test_the_programs_log_stays_as_it_is(client):
    look = "import logging, longlive_optimized.demo.server.janus; print(logging.root.level, logging.root.handlers)"
    said = subprocess.run([sys.executable, "-W", "ignore", "-c", look], capture_output=True, text=True, check=True)
    assert said.stdout == "30 []\n"


@pytest.mark.parametrize(
    ("text", "url", "room"),
    [
        ("janus://localhost/1234", "ws://localhost:8188", 1234),
        ("janus://janus.example:81/1234", "ws://janus.example:81", 1234),
        ("janus://[::1]/7", "ws://[::1]:8188", 7),
        ("januss://janus.example/demo", "wss://janus.example:8989", "demo"),
        ("januss://janus.example:443/some/path/demo-2", "wss://janus.example:443/some/path", "demo-2"),
    ],
)
def test_addresses_of_rooms(client, text, url, room):
    from longlive_optimized.demo.server.janus import read_address

    assert read_address(text) == (url, room)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1234",
        "ws://localhost/1234",
        "janus:localhost/1234",
        "janus://localhost",
        "janus://localhost/",
        "janus:///1234",
        "janus://localhost:0/1234",
        "janus://localhost:65536/1234",
        "janus://localhost:x/1234",
        "janus://[localhost/1234",
        "janus://localhost/a room",
        "janus://localhost/1234?pin=1",
        "janus://localhost/1234#1",
        "janus://name:a secret@localhost/1234",
        "janus://name:a secret@localhost/",
    ],
)
def test_what_is_no_address_is_refused_by_its_form(client, environment, text):
    with pytest.raises(ValueError, match=r"--publish: .*janus://HOST\[:PORT\]") as caught:
        publish.outlet(text, False, SETTINGS)
    assert "a secret" not in str(caught.value)


def test_secrets_come_from_the_environment_or_from_files(client, environment, tmp_path):
    environment.setenv("LONGLIVE_JANUS_API_SECRET", "one")
    (tmp_path / "pin").write_text("two\n")
    environment.setenv("LONGLIVE_JANUS_PIN_FILE", str(tmp_path / "pin"))
    room = publish.outlet("janus://localhost/1234", True, SETTINGS)
    assert room._secrets == ("one", None, "two", None)
    assert "one" not in room.address and "two" not in room.address
    assert room.address == "room 1234 of ws://localhost:8188"


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\xfe\xfd"])
def test_a_file_without_a_secret_is_named(client, environment, tmp_path, content):
    if content is not None:
        (tmp_path / "pin").write_bytes(content)
    environment.setenv("LONGLIVE_JANUS_PIN_FILE", str(tmp_path / "pin"))
    with pytest.raises(ValueError, match=r"LONGLIVE_JANUS_PIN_FILE: .*pin"):
        publish.outlet("janus://localhost/1234", False, SETTINGS)


def test_a_secret_and_a_file_of_it_contradict(client, environment, tmp_path):
    environment.setenv("LONGLIVE_JANUS_TOKEN", "one")
    environment.setenv("LONGLIVE_JANUS_TOKEN_FILE", str(tmp_path / "token"))
    with pytest.raises(ValueError, match="LONGLIVE_JANUS_TOKEN or LONGLIVE_JANUS_TOKEN_FILE, not both"):
        publish.outlet("janus://localhost/1234", False, SETTINGS)
