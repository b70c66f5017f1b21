"""The shared stream at a WHIP endpoint on this machine: it sees the picture move, and what goes wrong is told."""

import asyncio
import itertools
import logging
import os
import re
import signal
import subprocess
import sys
import time
from email.utils import formatdate
from pathlib import Path

import pytest

pytest.importorskip("aiortc")
pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from starlette.responses import Response
from typer.testing import CliRunner

from longlive_optimized.cli import app, publish
from longlive_optimized.demo.server import encoding, publishing, rtc, whip, whip_http
from longlive_optimized.demo.server.publishing import Lost
from longlive_optimized.demo.server.rtc import local_addresses
from longlive_optimized.demo.server.settings import ServerSettings
from longlive_optimized.demo.server.whip import WhipEndpoint, read_whip
from support.event_loop import as_test, nothing_left
from support.painted import painted
from support.room import numbers, value
from support.server_peer import Viewer, visit_all
from support.whip_server import WhipServer, certificate

TOKEN = "a token of the endpoint"
KEY = "a-key-in-the-path"


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(publishing, "FIRST_WAIT", 0.2)
    monkeypatch.setattr(publishing, "LONGEST_WAIT", 1.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture
def environment(monkeypatch):
    for name in ("LONGLIVE_WHIP_TOKEN", "LONGLIVE_WHIP_TOKEN_FILE", "LONGLIVE_PUBLISH", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def at(port: int, path: str = "/whip", token: str | None = None, scheme: str = "whip+http", **settings):
    return WhipEndpoint(read_whip(f"{scheme}://127.0.0.1:{port}{path}"), ServerSettings(**settings), token)


def endpoint(token: str | None = None):
    """Run a test with an endpoint and its port; no task may be left afterwards."""

    def decorate(test):
        async def run(**values):
            server = WhipServer(token)
            with local_addresses(ServerSettings()):
                async with server.listen() as port:
                    await asyncio.wait_for(test(server, port, **values), 60)
            await nothing_left()

        return as_test(run, test, 2)

    return decorate


def publishing_to(outlet, **settings):
    """A server that publishes there, and a client of it."""
    return visit_all(painted(0.1), ServerSettings(**settings), outlet=outlet)


async def published(http, wanted=lambda said: said["phase"] == "publishing") -> dict:
    """What ``/status`` says of it, once it is as wanted."""
    for _ in range(1000):
        if wanted(said := (await http.get("/status")).json()["publish"]):
            return said
        await asyncio.sleep(0.01)
    raise AssertionError(said)


async def why_not(outlet) -> dict:
    """What ``/status`` says of an outlet that cannot be published to."""
    async with publishing_to(outlet) as (_, http):
        return await published(http, lambda said: said["detail"])


@endpoint(TOKEN)
async def test_an_endpoint_sees_the_picture_move(server, port):
    async with publishing_to(at(port, token=TOKEN)) as (sessions, http):
        said = await published(http)
        assert said["to"] == f"WHIP at http://127.0.0.1:{port}"
        assert sessions.main.people == 1
        session = await server.session()
        shown = await numbers(session, 20)
        assert len({*shown}) >= 15 and shown == sorted(shown)
        viewer = await Viewer(http).join()  # who comes to the server itself
        assert len({*await numbers(viewer, 10)}) > 5 and sessions.main.people == 2
        encoded = value((await http.get("/metrics")).text, "longlive_frames_encoded_total")
        assert encoded <= max(await numbers(session, 1)) + 60
        assert value((await http.get("/metrics")).text, "longlive_publishing") == 1
        await viewer.leave()
    (post, delete) = server.asked
    assert (post.method, post.path, post.kind) == ("POST", "/whip", "application/sdp")
    assert delete.method == "DELETE" and delete.path.startswith("/session/")
    assert post.authorization == delete.authorization == f"Bearer {TOKEN}"
    assert not server.open


@endpoint()
async def test_the_offer_is_as_the_standard_wants_it(server, port):
    async with publishing_to(at(port)) as (_, http):
        await published(http)
    offer = server.asked[0].body
    assert re.findall(r"^m=(\w+)", offer, re.MULTILINE) == ["video"]
    for line in ("a=sendonly", "a=setup:actpass", "a=rtcp-mux", "a=group:BUNDLE 0", "a=end-of-candidates"):
        assert line in offer.splitlines(), line
    assert "a=candidate:" in offer and len(re.findall(r"^a=msid:", offer, re.MULTILINE)) == 1
    assert server.asked[0].authorization is None


@pytest.mark.parametrize("codec", ["vp8", "h264"])
@endpoint()
async def test_the_servers_codec_comes_first_and_the_endpoints_choice_counts(server, port, codec):
    other = {"vp8": "H264", "h264": "VP8"}[codec]
    for wanted in (codec.upper(), other):

        def only(answer: str, wanted=wanted) -> str:
            """The answer with one codec."""
            (number,) = re.findall(rf"^a=rtpmap:(\d+) {wanted}/", answer, re.MULTILINE)[:1]
            lines = [
                line
                for line in answer.splitlines()
                if not (found := re.match(r"a=(?:rtpmap|fmtp|rtcp-fb):(\d+) ", line)) or found[1] == number
            ]
            return "\r\n".join(re.sub(r"^(m=video \d+ \S+).*", rf"\1 {number}", line) for line in lines) + "\r\n"

        server.rewrite = str if wanted == codec.upper() else only
        before = len(server.sessions)
        async with publishing_to(at(port, codec=codec), codec=codec) as (sessions, http):
            await published(http)
            assert [*sessions.main._broadcast._encoders] == [wanted]
            session = await server.session(before + 1)
            assert len({*await numbers(session, 10)}) > 5


@endpoint(TOKEN)
async def test_redirects_are_followed_with_the_token(server, port):
    steps = iter(["/elsewhere?x=1", "whip"])
    server.answer = lambda request: (
        None if request.url.path == "/whip" else Response(status_code=307, headers={"Location": next(steps)})
    )
    server.location = lambda name: f"http://localhost:{port}/session/{name}"  # and another host
    async with publishing_to(at(port, "/first", TOKEN)) as (_, http):
        await published(http)
        assert len({*await numbers(await server.session(), 10)}) > 5
    assert [(asked.method, asked.path.partition("/session")[0]) for asked in server.asked] == [
        ("POST", "/first"),
        ("POST", "/elsewhere?x=1"),
        ("POST", "/whip"),
        ("DELETE", ""),
    ]
    assert {asked.authorization for asked in server.asked} == {f"Bearer {TOKEN}"}
    assert len({asked.body for asked in server.asked[:3]}) == 1 and not server.open


REFUSALS = [
    (Response(status_code=401), "the endpoint wants a token: set LONGLIVE_WHIP_TOKEN (401 Unauthorized)"),
    (Response(status_code=403), "the endpoint wants a token: set LONGLIVE_WHIP_TOKEN (403 Forbidden)"),
    (Response(status_code=404), "the host takes no WHIP at this path (404 Not Found)"),
    (Response(status_code=405), "the host takes no WHIP at this path (405"),
    (Response(status_code=400), "the endpoint refuses what it is offered, video as VP8 or H264 (400"),
    (Response(status_code=406), "the endpoint refuses what it is offered, video as VP8 or H264 (406"),
    (Response(status_code=422), "the endpoint refuses what it is offered, video as VP8 or H264 (422"),
    (Response(status_code=409), "somebody else publishes there (409 Conflict)"),
    (Response(status_code=429), "the endpoint takes nobody now (429"),
    (Response(status_code=503), "the endpoint takes nobody now (503"),
    (Response(status_code=500), "the endpoint answers 500 Internal Server Error, where WHIP has 201"),
    (Response(status_code=418), "the endpoint answers 418"),
    (Response("v=0", 200), "the endpoint answers 200 OK, where WHIP has 201"),
    (Response("v=0", 201), "the endpoint names no session: a Location is missing from its 201"),
    (Response("hello", 201, {"Location": "/session/1"}), "the endpoint's answer is no session description"),
    (Response("v=0\r\n", 201, {"Location": "/session/1"}), "the endpoint takes no video: its answer rejects it"),
    (Response("v=0" * 30_000, 201, {"Location": "/session/1"}), "the endpoint's answer has more than 65536 bytes"),
    (Response("v=0", 201, {"Location": "ftp://127.0.0.1/1"}), "the endpoint names a session that is not reached by"),
    (Response("v=0", 201, {"Location": "http://[::1"}), "the endpoint names a session that is no address"),
    (Response(status_code=302, headers={"Location": "/x"}), "the endpoint has moved: give its new address (302 Found)"),
    (Response(status_code=307), "the endpoint names no redirect: a Location is missing from its 307"),
    (Response(status_code=308, headers={"Location": "/whip"}), "the endpoint leads from one address to another more"),
]


@pytest.mark.parametrize(("response", "wanted"), REFUSALS, ids=[wanted[-40:] for _, wanted in REFUSALS])
@endpoint()
async def test_what_the_endpoint_refuses_is_told(server, port, response, wanted):
    server.answer = lambda request: response
    said = await why_not(at(port))
    assert said["detail"].startswith(wanted), said
    posts = sum(asked.method == "POST" for asked in server.asked)
    assert len(server.asked) - posts == (response.headers.get("location") == "/session/1") * (len(response.body) < 9)


@endpoint(TOKEN)
async def test_a_wrong_token_is_told_and_the_server_goes_on(server, port):
    async with publishing_to(at(port, token="another one")) as (_, http):
        said = await published(http, lambda said: said["detail"])
        assert said["detail"].startswith("the endpoint wants another token: set LONGLIVE_WHIP_TOKEN (401")
        viewer = await Viewer(http).join()
        assert len({*await numbers(viewer, 10)}) > 5
        await viewer.leave()


@pytest.mark.parametrize(
    ("rewrite", "wanted"),
    [
        (lambda sdp: sdp.replace("a=recvonly", "a=inactive"), "the endpoint takes no video: its answer says inactive"),
        (lambda sdp: re.sub(r"m=video \d+", "m=video 0", sdp), "the endpoint takes no video: its answer rejects it"),
        (lambda sdp: sdp.replace("a=mid:0", "a=mid:7"), "the endpoint's answer cannot be used"),
    ],
    ids=["inactive", "rejected", "unreadable"],
)
@endpoint()
async def test_an_answer_that_takes_no_video_is_told_and_its_session_ended(server, port, rewrite, wanted):
    server.rewrite = rewrite
    said = await why_not(at(port))
    assert said["detail"].startswith(wanted), said
    assert not server.open and len(server.asked) == 2 * len(server.sessions)


@pytest.mark.parametrize("form", ["seconds", "date"])
@endpoint()
async def test_an_endpoint_that_wants_to_be_left_alone_is(server, port, form):
    asked = []

    def refuse(request):
        asked.append(time.monotonic())
        until = {"seconds": "2", "date": formatdate(time.time() + 3, usegmt=True)}[form]
        return Response(status_code=503, headers={"Retry-After": until}) if len(asked) < 2 else None

    server.answer = refuse
    async with publishing_to(at(port)) as (_, http):
        said = await published(http, lambda said: said["phase"] == "waiting")
        assert 1 < said["retry_in"] <= 3
        await published(http)
    assert 1.9 <= asked[1] - asked[0] < 5


def test_an_endpoint_gone_and_back_again_gets_the_same_stream(caplog):
    async def look() -> None:
        server = WhipServer()
        async with server.listen() as port:
            pass
        async with publishing_to(at(port)) as (sessions, http):
            await published(http, lambda said: "cannot be reached" in said["detail"])
            before = -1
            for count in (1, 2):
                async with server.listen(port):
                    assert (await published(http))["detail"] == ""
                    shown = await numbers(await server.session(count), 10)
                    assert before < shown[0] and len({*shown}) > 5
                    before = shown[-1]
                said = await published(http, lambda said: said["detail"])
                assert "has ended the connection for video" in said["detail"] or "reached" in said["detail"]
                assert sessions.main.people == 0
        await nothing_left()

    asyncio.run(look())
    assert "the endpoint has ended the connection for video" in caplog.text and "again" in caplog.text


@endpoint()
async def test_an_endpoint_that_vanishes_is_left(server, port):
    before, rtc.GONE_SECONDS = rtc.GONE_SECONDS, 2.0
    try:
        async with publishing_to(at(port)) as (_, http):
            await published(http)
            session = await server.session()
            await numbers(session, 5)
            await asyncio.sleep(2.5)  # a report of what it got has come
            session.vanish()
            said = await published(http, lambda said: said["detail"])
            assert said["detail"] == "the endpoint has vanished"
            await published(http)
            assert len({*await numbers(await server.session(2), 10)}) > 5
    finally:
        rtc.GONE_SECONDS = before


@endpoint()
async def test_an_endpoint_that_says_nothing_is_left(server, port):
    before, whip_http.ANSWER_SECONDS = whip_http.ANSWER_SECONDS, 0.3
    listener = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    try:
        said = await why_not(at(listener.sockets[0].getsockname()[1]))
        assert said["detail"] == "no answer of the endpoint"
    finally:
        whip_http.ANSWER_SECONDS = before
        listener.close()


@pytest.mark.parametrize("answer", [b"", b"\xff" * 100, b"SSH-2.0-x\r\n"])
@endpoint()
async def test_what_speaks_no_http_is_told(server, port, answer):
    async def say(reader, writer) -> None:
        await reader.read(100)
        writer.write(answer)
        writer.close()

    listener = await asyncio.start_server(say, "127.0.0.1", 0)
    said = await why_not(at(listener.sockets[0].getsockname()[1]))
    listener.close()
    assert said["detail"].startswith("the endpoint does not answer as HTTP has it"), said


@endpoint()
async def test_video_that_does_not_get_through_is_told(server, port):
    before, whip.CONNECT_SECONDS = whip.CONNECT_SECONDS, 0.5
    server.rewrite = lambda sdp: re.sub(r"a=candidate:.*\r\n", "", sdp)
    try:
        said = await why_not(at(port))
        assert "something on the way may block UDP" in said["detail"] or "ended the connection" in said["detail"]
        assert not server.open
    finally:
        whip.CONNECT_SECONDS = before


def test_a_certificate_counts(tmp_path, environment):
    """Over TLS: one that nobody has signed is refused, and taken where it is trusted; from there nothing leads to plain
    HTTP."""
    cert, key = certificate(tmp_path)

    async def look() -> None:
        server = WhipServer(TOKEN)
        async with server.listen(ssl_certfile=cert, ssl_keyfile=key) as port:
            outlet = at(port, token=TOKEN, scheme="whip+https")
            said = await why_not(outlet)
            assert said["detail"].startswith("the endpoint's certificate is not trusted"), said
            assert not server.asked
            environment.setenv("SSL_CERT_FILE", cert)
            outlet = at(port, token=TOKEN, scheme="whip+https")
            async with publishing_to(outlet) as (_, http):
                await published(http)
                assert len({*await numbers(await server.session(), 10)}) > 5
            server.answer = lambda request: Response(status_code=307, headers={"Location": f"http://127.0.0.1:{port}/"})
            said = await why_not(outlet)
            assert said["detail"] == "the endpoint names a redirect that is not reached by https, but by 'http'"
        await nothing_left()

    asyncio.run(look())


@endpoint()
async def test_the_endpoints_rate_is_not_exceeded(server, port):
    before, encoding.RATE_SECONDS = encoding.RATE_SECONDS, 0.1
    try:
        async with publishing_to(at(port), bitrate=900_000) as (sessions, http):
            await published(http)
            (track,) = sessions.main._broadcast._tracks
            track.rate = 300_000
            await asyncio.sleep(1)
            (encoder,) = sessions.main._broadcast._encoders.values()
            assert encoder._encoder.target_bitrate == 300_000
            assert (await http.get("/status")).json()["publish"]["bitrate"] == 300_000
    finally:
        encoding.RATE_SECONDS = before


@endpoint()
async def test_a_key_frame_is_made_when_the_endpoint_asks(server, port):
    async with publishing_to(at(port)) as (sessions, http):
        await published(http)
        session = await server.session()
        await session.picture()
        keys = []
        (track,) = sessions.main._broadcast._tracks
        send = track.send
        track.send = lambda packet, is_key: (keys.append(is_key), send(packet, is_key))
        await asyncio.sleep(0.6)
        before = sum(keys)
        (receiver,) = session.connection.getReceivers()
        await receiver._send_rtcp_pli(next(iter(receiver._RTCRtpReceiver__active_ssrc)))
        for _ in range(300):
            if sum(keys) > before:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("no key frame came")


# --- the command's options


SETTINGS = ServerSettings()


@pytest.mark.parametrize(
    ("text", "url", "host", "port", "shown"),
    [
        ("whip+https://a.example/x/y?key=1", "https://a.example/x/y?key=1", "a.example", 443, "https://a.example"),
        ("WHIP+HTTPS://a.example:81", "https://a.example:81/", "a.example", 81, "https://a.example:81"),
        ("whip+http://[::1]:8889/live/whip", "http://[::1]:8889/live/whip", "::1", 8889, "http://[::1]:8889"),
    ],
)
def test_addresses_of_endpoints(text, url, host, port, shown):
    address = read_whip(text)
    assert address == (url, host, port) and address.shown == f"WHIP at {shown}"


@pytest.mark.parametrize(
    "text",
    [
        "whip+https:",
        "whip+https://",
        "whip+https:///key",
        "whip://a.example/key",
        "whips://a.example/key",
        "whip+https://a.example:0/key",
        "whip+https://a.example:65536/key",
        "whip+https://a.example:x/key",
        "whip+https://[a.example/key",
        "whip+https://a.example/key#part",
        "whip+https://a.example/key word",
        "whip+https://a.example/schlüssel-key",
        "whip+https://name:key@a.example/",
        "https://a.example/key",
    ],
)
def test_what_is_no_endpoint_is_refused_by_its_form(environment, text):
    with pytest.raises(ValueError, match=r"--publish: .*whip\+https://HOST\[:PORT\]/PATH") as caught:
        publish.outlet(text, False, SETTINGS)
    assert "key" not in str(caught.value)


def test_the_token_comes_from_the_environment_or_a_file(environment, tmp_path):
    assert publish.outlet("whip+https://a.example/x", False, SETTINGS)._token is None
    environment.setenv("LONGLIVE_WHIP_TOKEN", TOKEN)
    assert publish.outlet("whip+https://a.example/x", False, SETTINGS)._token == TOKEN
    (tmp_path / "token").write_text("two\n")
    environment.setenv("LONGLIVE_WHIP_TOKEN_FILE", str(tmp_path / "token"))
    with pytest.raises(ValueError, match="not both"):
        publish.outlet("whip+https://a.example/x", False, SETTINGS)
    environment.delenv("LONGLIVE_WHIP_TOKEN")
    assert publish.outlet("whip+https://a.example/x", False, SETTINGS)._token == "two"
    environment.delenv("LONGLIVE_WHIP_TOKEN_FILE")
    environment.setenv("LONGLIVE_WHIP_TOKEN", "two\nlines")
    with pytest.raises(ValueError, match="LONGLIVE_WHIP_TOKEN: token must be of ASCII") as caught:
        publish.outlet("whip+https://a.example/x", False, SETTINGS)
    assert "lines" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "warns"),
    [
        ("whip+https://a.example/x", False),
        ("whip+http://127.0.0.1/x", False),
        ("whip+http://localhost/x", False),
        ("whip+http://[::1]/x", False),
        ("whip+http://a.example/x", True),
        ("whip+http://192.0.2.1/x", True),
    ],
)
def test_a_token_in_the_clear_is_told(environment, caplog, address, warns):
    publish.outlet(address, False, SETTINGS)
    assert "in the clear" not in caplog.text
    environment.setenv("LONGLIVE_WHIP_TOKEN", TOKEN)
    publish.outlet(address, False, SETTINGS)
    assert ("in the clear" in caplog.text) == warns and TOKEN not in caplog.text


def test_options_that_contradict(environment):
    with pytest.raises(ValueError, match="--publish-make-room is for a room of Janus"):
        publish.outlet("whip+https://a.example/x", True, SETTINGS)
    with pytest.raises(ValueError, match=r"--publish .*--private"):
        publish.outlet("whip+https://a.example/x", False, ServerSettings(private=True))


@pytest.mark.parametrize("option", ["--publish=whip+https://a.example/x", "--publish-make-room", "--osc=9000"])
def test_a_cluster_takes_none_of_it(environment, option):
    result = CliRunner().invoke(app, ["serve", "--cluster", option])
    assert result.exit_code != 0
    name = option.partition("=")[0]
    assert f"{name} cannot be used with --cluster" in str(result.exception) + result.output


def test_the_extra_is_named_where_it_is_missing(environment):
    for name in ("whip", "whip_http"):
        environment.delitem(sys.modules, f"longlive_optimized.demo.server.{name}", raising=False)
    environment.setitem(sys.modules, "httpx", None)
    with pytest.raises(ValueError, match=re.escape("pip install 'longlive-optimized[whip]'")):
        publish.outlet("whip+https://a.example/x", False, SETTINGS)


def test_the_log_holds_no_key_and_no_token(environment, caplog):
    """At any level; nor do ``/status`` and what an outlet raises."""
    heard = []

    async def look() -> None:
        server = WhipServer(TOKEN)
        server.location = lambda name: f"/session/{name}?{KEY}"
        async with server.listen() as port:
            outlet = at(port, f"/{KEY}", TOKEN)
            server.answer = lambda request: Response(status_code=404)
            heard.append(await why_not(outlet))
            server.answer = lambda request: (
                Response(status_code=307, headers={"Location": f"/whip?{KEY}"}) if KEY in request.url.path else None
            )
            async with publishing_to(outlet) as (_, http):
                heard.append(await published(http))
            server.answer = lambda request: Response(status_code=307, headers={"Location": f"ftp://{KEY}/{KEY}"})
            heard.append(await why_not(outlet))
            await asyncio.sleep(0)

    with caplog.at_level(logging.DEBUG):
        asyncio.run(look())
    said = "".join(
        record.getMessage() for record in caplog.records if record.name.startswith(("longlive", "httpx", "httpcore"))
    )
    assert "publishing to WHIP at" in said
    for secret in (TOKEN, KEY):
        assert secret not in said + str(heard)
    assert isinstance(Lost("x").wait, float)


def test_the_command_publishes_the_built_in_model(environment, tmp_path):
    """A process of its own: address and token are in the environment and a file, and neither in its arguments nor in
    what it says."""
    (tmp_path / "token").write_text(TOKEN + "\n")

    async def look() -> None:
        server = WhipServer(TOKEN)
        async with server.listen() as port:
            secrets = {
                "LONGLIVE_PUBLISH": f"whip+http://127.0.0.1:{port}/whip?{KEY}",
                "LONGLIVE_WHIP_TOKEN_FILE": str(tmp_path / "token"),
            }
            command = "from longlive_optimized.cli import main; main()"
            log = tmp_path / "log"
            with log.open("w") as file:
                process = subprocess.Popen(
                    [sys.executable, "-c", command, "--verbose", "serve", "--port", "0"],
                    stdout=file,
                    stderr=file,
                    env={**os.environ, **secrets, "COLUMNS": "200"},
                )
            try:
                session = await server.session(timeout=60)
                pictures = [await session.picture() for _ in range(30)]
                assert len({picture.tobytes() for picture in pictures}) > 20
                moved = [abs(b.astype(int) - a).mean() for a, b in itertools.pairwise(pictures)]
                assert max(moved) > 0.1
                for secret in (TOKEN, KEY):
                    assert secret not in Path(f"/proc/{process.pid}/cmdline").read_text() + log.read_text()
                assert f"publishing to WHIP at http://127.0.0.1:{port}" in log.read_text()
            finally:
                process.send_signal(signal.SIGINT)
                assert await asyncio.to_thread(process.wait, 20) == 0, log.read_text()
            assert [asked.method for asked in server.asked] == ["POST", "DELETE"] and not server.open

    with local_addresses(ServerSettings()):
        asyncio.run(look())
