"""Open Sound Control over UDP: what is said changes the stream; what is wrong, foreign or too much does not."""

import asyncio
import contextlib
import json
import logging
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import time

import pytest

pytest.importorskip("aiortc")
pytest.importorskip("fastapi")
pytest.importorskip("pythonosc")

from pythonosc.osc_bundle_builder import IMMEDIATELY, OscBundleBuilder
from pythonosc.osc_message_builder import OscMessageBuilder

from longlive_optimized.cli import serve
from longlive_optimized.demo.server import messages, osc
from longlive_optimized.demo.server.access import stream_token
from longlive_optimized.demo.server.messages import BadMessage
from longlive_optimized.demo.server.osc import OscAddress, bind, listening, message_of, read_osc
from longlive_optimized.demo.server.settings import ServerSettings
from support.event_loop import as_test, nothing_left
from support.painted import painted
from support.room import value
from support.server_peer import Viewer, visit_all

TOKEN = "a-token/of the*server"
IN_THE_ADDRESS = "a-token%2Fof%20the%2Aserver"


def packet(address: str, *values) -> bytes:
    """A message."""
    builder = OscMessageBuilder(address)
    for one in values:
        builder.add_arg(one)
    return builder.build().dgram


def bundle(*packets: bytes, at: float = IMMEDIATELY) -> bytes:
    return OscBundleBuilder(at).build().dgram + b"".join(struct.pack(">i", len(one)) + one for one in packets)


class Sender:
    """A program that speaks OSC to this port."""

    def __init__(self, port: int):
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect(("127.0.0.1", port))

    def send(self, *packets: bytes) -> None:
        for one in packets:
            self._socket.send(one)

    def say(self, address: str, *values) -> None:
        self.send(packet(address, *values))


def with_osc(**settings):
    """Run a test with an open server and a sender; no task may be left afterwards."""

    def decorate(test):
        async def run(caplog, **values):
            receiver = bind(OscAddress("127.0.0.1", 0))
            sender = Sender(receiver.getsockname()[1])
            async with (
                asyncio.timeout(60),
                visit_all(painted(0.02), ServerSettings(**{"sessions": 2} | settings)) as (sessions, http),
                listening(receiver, sessions),
            ):
                with contextlib.closing(sender._socket):
                    await test(sender, sessions, http, caplog, **values)
            await nothing_left()
            assert receiver.fileno() == -1

        return as_test(run, test, 4, "caplog")

    return decorate


async def until(wanted) -> None:
    for _ in range(500):
        if wanted():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(wanted)


def told(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == osc.__name__]


@with_osc()
async def test_what_is_said_is_seen_by_those_who_watch(sender, sessions, http, caplog):
    viewer = await Viewer(http).join()
    sender.say("/prompt", "a cat", 4)
    said = await viewer.wait_for(lambda m: m["type"] == "state" and m["changed"] == "switch_prompt")
    assert (said["by"], said["prompt"]) == ("OSC", "a cat")
    assert sessions.main.feed.prompt.transition_blocks == 4
    sender.say("/preset", "ultra")
    said = await viewer.wait_for(lambda m: m["type"] == "state" and m["changed"] == "set_optimization_preset")
    assert said["preset"] == "ultra"
    sender.say("/settings/playback_speed", 0.3)  # no float of 32 bits
    said = await viewer.wait_for(lambda m: m["type"] == "state" and m["changed"] == "settings")
    assert said["effective"]["playback_speed"] == 0.3
    sender.say("/overlay", 1.0)
    assert (await viewer.wait_for(lambda m: m.get("changed") == "set_overlay"))["overlay"] is True
    sender.say("/paused", True)
    assert (await viewer.wait_for(lambda m: m.get("changed") == "set_paused"))["paused"] is True
    sender.say("/transition", 3.0, "slerp")
    said = await viewer.wait_for(lambda m: m.get("changed") == "set_transition")
    assert said["transition"] == {"blocks": 3, "blend": "slerp"}
    assert value((await http.get("/metrics")).text, 'longlive_messages_total{outcome="obeyed"}') == 6
    assert told(caplog) == []
    await viewer.leave()


@with_osc()
async def test_a_reset_begins_anew_when_the_button_is_pressed(sender, sessions, http, caplog):
    viewer = await Viewer(http).join()
    pipeline = sessions.main.feed.pipeline
    sender.say("/reset", 0)
    sender.say("/reset", 0.0)
    sender.say("/overlay", 1)  # once this is seen those were, too
    await until(lambda: sessions.main.feed.overlay)
    await asyncio.sleep(0.2)
    assert "reset" not in pipeline.calls
    sender.say("/reset")
    await until(lambda: pipeline.calls.count("reset") == 1)
    sender.say("/reset", 1.0)
    await until(lambda: pipeline.calls.count("reset") == 2)
    await viewer.leave()


@with_osc()
async def test_prompts_with_weights_and_another_seed(sender, sessions, http, caplog):
    viewer = await Viewer(http).join()
    sender.say("/prompt", "a cat", 0.75, "a dog", 0.25)
    said = await viewer.wait_for(lambda m: m.get("changed") == "switch_prompt")
    assert said["prompts"] == [["a cat", 0.75], ["a dog", 0.25]]
    sender.say("/seed", 7)
    await until(lambda: sessions.main.config.seed == 7)
    sender.say("/settings/denoising_steps", 1000, 500)
    await until(lambda: sessions.main.feed.config_wished_for.denoising_steps == (1000, 500))
    assert told(caplog) == []
    await viewer.leave()


@with_osc()
async def test_each_stream_has_its_addresses(sender, sessions, http, caplog):
    viewer = await Viewer(http, stream="/s/other").join()
    sender.say("/s/other/prompt", "a cat")
    await until(lambda: sessions.room("other").feed.prompt.prompt == "a cat")
    sender.say("/prompt", "a dog")
    await until(lambda: sessions.main.feed.prompt.prompt == "a dog")
    sender.say("/s/main/prompt", "a cow")
    await until(lambda: sessions.main.feed.prompt.prompt == "a cow")
    assert sessions.room("other").feed.prompt.prompt == "a cat"
    sender.say("/s/unknown/prompt", "a pig")
    await until(lambda: told(caplog))
    assert "no stream 'unknown' is open" in told(caplog)[0] and sessions.names == ["main", "other"]
    await viewer.leave()


@with_osc()
async def test_bundles_are_obeyed_in_their_order_and_at_once(sender, sessions, http, caplog):
    inner = bundle(packet("/prompt", "two"), packet("/overlay", 1), at=time.time() + 3600)
    sender.send(bundle(packet("/prompt", "one"), inner))
    await until(lambda: sessions.main.feed.overlay)
    assert sessions.main.feed.prompt.prompt == "two" and told(caplog) == []


@with_osc()
async def test_the_specifications_own_bytes_are_understood(sender, sessions, http, caplog):
    """As OSC 1.0 lays them out: texts end with a null and fill four bytes, numbers are big-endian."""
    sender.send(b"/settings/playback_speed\0\0\0\0,f\0\0" + struct.pack(">f", 2.5))
    await until(lambda: sessions.main.feed.config_wished_for.playback_speed == 2.5)
    sender.send(b"/prompt\0,si\0a fox\0\0\0" + struct.pack(">i", 2))
    await until(lambda: sessions.main.feed.prompt.transition_blocks == 2)
    sender.send("/prompt\0,s\0\0ein Füchslein\0\0".encode())
    await until(lambda: sessions.main.feed.prompt.prompt == "ein Füchslein")
    sender.send(b"/overlay\0\0\0\0,T\0\0")
    await until(lambda: sessions.main.feed.overlay)
    assert told(caplog) == []


def test_a_lora_is_named_by_its_address():
    """Percent-encoded, as OSC's addresses have no spaces."""
    for scale in (1, 1.0, 0.25):
        said = json.loads(message_of("/lora/my%20ink", [scale]))
        assert said == {"type": "settings", "loras": {"my ink": scale}}


def test_a_button_stops_a_replay_when_it_is_pressed():
    assert message_of("/stop_replay", []) == message_of("/stop_replay", [1.0]) == '{"type": "stop_replay"}'
    assert message_of("/stop_replay", [0]) is None


WRONG = [
    (packet("/prompt"), "prompt"),
    (packet("/prompt", ""), "prompt"),
    (packet("/prompt", 5), "prompt: Input should be a valid string"),
    (packet("/prompt", "x" * 2001), "at most 2000 characters"),
    (packet("/prompt", "a cat", 0), "transition_blocks: Input should be greater than or equal to 1"),
    (packet("/prompt", "a cat", 1.5), "transition_blocks"),
    (packet("/prompt", "a cat", 1, 2), "it takes prompt and transition_blocks"),
    (packet("/prompt", b"a cat"), "values must be texts and numbers"),
    (packet("/preset", "fastest"), "preset"),
    (packet("/preset", 1), "preset: Input should be a valid string"),
    (packet("/settings", 1), "it takes a field behind it, as in /settings/playback_speed"),
    (packet("/settings"), "settings must have at least one of"),
    (packet("/settings/speed", 1.0), "speed: Extra inputs are not permitted"),
    (packet("/settings/playback_speed"), "a value is missing"),
    (packet("/settings/playback_speed", 5.0), "playback_speed: Input should be less than or equal to 4"),
    (packet("/settings/playback_speed", float("nan")), "playback_speed"),
    (packet("/settings/playback_speed", float("inf")), "playback_speed"),
    (packet("/settings/playback_speed", "fast"), "playback_speed: Input should be a valid number"),
    (packet("/settings/playback_speed", 1.0, 2.0), "playback_speed: Input should be a valid number"),
    (packet("/settings/shown_fps", 30), "shown_fps"),
    (packet("/settings/type", "reset"), "type"),
    (packet("/lora/ink", 0.5), "loras: none are served"),
    (packet("/lora/ink", 7.0), "loras.ink: Input should be less than or equal to 5"),
    (packet("/lora/ink", "much"), "loras.ink: Input should be a valid number"),
    (packet("/lora/ink"), "it takes a LoRA's name behind it and its scale, as in /lora/paint 0.8"),
    (packet("/lora/ink", 1.0, 2.0), "it takes a LoRA's name behind it and its scale"),
    (packet("/lora", 1.0), "it takes a LoRA's name behind it and its scale"),
    (packet("/settings/loras", 1.0), "loras: Input should be an object"),
    (packet("/overlay", 2), "enabled: Input should be a valid boolean"),
    (packet("/overlay", "on"), "enabled: Input should be a valid boolean"),
    (packet("/transition", 4, "cubic"), "blend: Input should be 'linear' or 'slerp'"),
    (packet("/strength", 2.0), "noise_scale: Input should be less than or equal to 1"),
    (packet("/prompt", "a cat", 1.0, "a dog", "b"), "prompts.1.1: Input should be a valid number"),
    (packet("/prompt", "a cat", 0.0, "a dog", 0.0), "a weight above 0"),
    (packet("/prompt", *["a cat", 1.0] * 5), "at most 4 items"),
    (packet("/seed", -1), "seed"),
    (packet("/seed", 1.5), "seed"),
    (packet("/set_input", "video"), "there is no such address"),
    (packet("/get_latency_stats"), "there is no such address"),
    (packet("/"), "there is no such address"),
    (packet("/prompt/prompt/prompt", "x"), "there is no such address"),
    (packet("/s/main"), "there is no such address"),
    (packet("/s/../prompt", "x"), "no stream '..' is open"),
    (packet("/p*", "x"), "there is no such address"),
    (packet("/prompt", [1, 2]), "prompt: Input should be a valid string"),
    (b"/prompt\0,m\0\0\1\2\3\4", "prompt: Input should be a valid string"),
    (b"/prompt\0,t\0\0" + bytes(8), "prompt"),
    (b"/prompt\0,s\0\0\xff\xfe\0\0", "what came is no OSC"),
    (b"/prompt\0,s\0\0abcd", "what came is no OSC"),
    (b"/prompt\0abc\0", "what came is no OSC"),
    (b"/prompt", "what came is no OSC"),
    (b"", "what came is no OSC"),
    (b"#bundle\0", "what came is no OSC"),
    (b"GET / HTTP/1.1\r\n\r\n", "what came is no OSC"),
    (b"/" * 20_000, "a datagram may have at most 16384 bytes"),
    (b"/prompt\0," + b"[" * 1002 + b"\0", "what came is no OSC"),
]


@pytest.mark.parametrize(("data", "wanted"), WRONG, ids=[re.sub(r"\W+", " ", repr(data))[:40] for data, _ in WRONG])
@with_osc()
async def test_what_is_wrong_is_told_once_and_changes_nothing(sender, sessions, http, caplog, data, wanted):
    feed = sessions.main.feed
    before = feed.prompt, feed.config_wished_for, feed.overlay, feed.paused, sessions.main.commands.transition
    sender.send(*[data] * 5)
    await until(lambda: told(caplog))
    sender.send(data)
    sender.say("/strength", 0.75)  # which is obeyed
    await until(lambda: sessions.main.inputs.noise_scale == 0.75)
    assert (feed.prompt, feed.config_wished_for, feed.overlay, feed.paused, sessions.main.commands.transition) == before
    assert len(told(caplog)) == 1 and wanted in told(caplog)[0], told(caplog)
    assert len(told(caplog)[0]) < 600 and "Traceback" not in caplog.text


@with_osc()
async def test_no_bytes_end_it(sender, sessions, http, caplog):
    """Neither random ones nor damaged messages; what is said afterwards is obeyed, and the log stays small."""
    random.seed(7)
    good = [data for data, _ in WRONG if data] + [packet("/prompt", "a cat", 4), bundle(packet("/overlay", 1))]
    deep = bundle()
    for _ in range(700):
        deep = bundle(deep)
    for i in range(1500):
        data = bytearray(random.choice(good))
        for _ in range(random.randrange(1, 6)):
            data[random.randrange(len(data))] = random.randrange(256)
        sender.send(random.randbytes(random.randrange(200)), bytes(data[:2000]))
        if i % 30 == 0:
            await asyncio.sleep(0.03)
    sender.send(b"/prompt\0," + b"Q" * 12_000 + b"\0\0\0", deep)  # kinds of values that there are none of
    await asyncio.sleep(0.3)
    sender.say("/prompt", "the last one")
    await until(lambda: sessions.main.feed.prompt.prompt == "the last one")
    assert len(caplog.records) <= osc.MOST_TOLD + 10 and "Traceback" not in caplog.text


@with_osc()
async def test_a_flood_is_bounded_and_its_last_word_holds(sender, sessions, http, caplog):
    obeyed, obey = [], sessions.main.obey
    sessions.main.obey = lambda message, by: (obeyed.append(message), obey(message, by))
    slow = []

    async def watch() -> None:
        while True:
            began = time.monotonic()
            assert (await http.get("/healthz")).status_code == 200
            slow.append(time.monotonic() - began)
            await asyncio.sleep(0.01)

    watching = asyncio.create_task(watch())
    began = time.monotonic()

    def flood() -> int:
        count = 0
        while time.monotonic() < began + 2:
            sender.say("/settings/playback_speed", 0.25 + count % 1000 / 1000)
            count += 1
        sender.say("/settings/playback_speed", 3.5)
        return count

    sent = await asyncio.to_thread(flood)
    for _ in range(5):  # the kernel keeps what came first, and drops what comes while its room is full
        await asyncio.sleep(0.1)
        sender.say("/settings/playback_speed", 3.5)
    await until(lambda: sessions.main.feed.config_wished_for.playback_speed == 3.5)
    took = time.monotonic() - began
    watching.cancel()
    assert len(obeyed) <= (took / osc.TICK + 2) * osc.MOST
    assert max(slow) < 1 and len(slow) > 20
    assert sent < 3 * osc.MOST / osc.TICK or any("the oldest are dropped" in one for one in told(caplog))
    assert len(told(caplog)) <= 1


@with_osc()
async def test_a_bundle_of_very_many_is_cut(sender, sessions, http, caplog):
    obeyed = []
    sessions.main.obey = lambda message, by: obeyed.append(message)
    sender.send(bundle(*[packet("/reset")] * 500))
    await until(lambda: told(caplog))
    assert len(obeyed) == osc.MOST and "a bundle of 500 messages" in told(caplog)[0]


@with_osc(host="0.0.0.0", token=TOKEN)
async def test_a_server_with_a_token_wants_it_in_the_address(sender, sessions, http, caplog):
    viewer = await Viewer(http, stream="/s/other").join()
    for prefix in ("", "/token/wrong", "/token", "/token/", f"/token/{stream_token(TOKEN, 'other')}", "/s/other"):
        sender.say(f"{prefix}/prompt", "a thief")
    sender.say(f"/token/{stream_token(TOKEN, 'main')}/s/other/prompt", "a thief")
    sender.say(f"/token/{IN_THE_ADDRESS}/prompt", "a cat")
    await until(lambda: sessions.main.feed.prompt.prompt == "a cat")
    assert sessions.room("other").feed.prompt.prompt == "a fox"
    sender.say(f"/token/{stream_token(TOKEN, 'other')}/s/other/prompt", "a dog")
    await until(lambda: sessions.room("other").feed.prompt.prompt == "a dog")
    sender.say(f"/token/{IN_THE_ADDRESS}/s/other/prompt", "a cow")
    await until(lambda: sessions.room("other").feed.prompt.prompt == "a cow")
    sender.say(f"/token/{IN_THE_ADDRESS}/nothing", 1)
    await until(lambda: len(told(caplog)) == 2)
    assert "a message without this server's token" in told(caplog)[0] and "'/nothing'" in told(caplog)[1]
    assert TOKEN not in caplog.text and IN_THE_ADDRESS not in caplog.text and "thief" not in caplog.text
    await viewer.leave()


@with_osc(private=True)
async def test_a_server_with_private_streams_has_no_shared_one(sender, sessions, http, caplog):
    viewer = await Viewer(http).join()
    sender.say("/prompt", "a cat")
    await until(lambda: told(caplog))
    assert "no stream 'main' is open" in told(caplog)[0]
    sender.say(f"/s/{viewer.hello['stream']}/prompt", "a cat")
    await until(lambda: sessions.room(viewer.hello["stream"]).feed.prompt.prompt == "a cat")
    await viewer.leave()


@with_osc()
async def test_before_the_model_is_there_nothing_is_obeyed(sender, sessions, http, caplog):
    status, sessions.worker.status = sessions.worker.status, sessions.worker.status.__class__("loading")
    sender.say("/prompt", "a cat")
    await until(lambda: told(caplog))
    assert "the model is not loaded yet" in told(caplog)[0]
    sessions.worker.status = status
    sender.say("/prompt", "a cat")
    await until(lambda: sessions.main.feed.prompt.prompt == "a cat")


@with_osc()
async def test_a_bug_does_not_end_it(sender, sessions, http, caplog):
    obey = sessions.main.obey
    sessions.main.obey = lambda message, by: 1 / 0
    sender.say("/prompt", "a cat")
    await until(lambda: "ZeroDivisionError" in caplog.text)
    sessions.main.obey = obey
    sender.say("/prompt", "a cat")
    await until(lambda: sessions.main.feed.prompt.prompt == "a cat")


def test_every_message_but_those_of_a_connection_has_an_address():
    """And every field of it can be said."""
    others = {"get_latency_stats", "set_input", "replay"}
    for command in messages.Command.__args__:
        (kind,) = command.model_fields["type"].annotation.__args__
        assert (kind in osc.LONG) == (kind not in others), kind
    for kind, *fields in [*osc.SHORT.values(), *osc.LONG.values()]:
        command = next(one for one in messages.Command.__args__ if kind in one.model_fields["type"].annotation.__args__)
        assert {*fields} <= {*command.model_fields}, kind


@pytest.mark.parametrize(
    ("path", "values", "wanted"),
    [
        ("/seed", [7], {"type": "reset", "seed": 7}),
        ("/seed", [7.0], {"type": "reset", "seed": 7}),
        ("/reset/seed", [0], {"type": "reset", "seed": 0}),
        ("/reset", [True], {"type": "reset"}),
        ("/reset/height", [64], {"type": "reset", "height": 64}),
        ("/prompt", ["a", 0.7, "b", 1.0], {"type": "switch_prompt", "prompts": [["a", 0.7], ["b", 1]]}),
        ("/strength/control_scale", [1], {"type": "set_strength", "control_scale": 1}),
        ("/set_strength", [0.5, 2.0], {"type": "set_strength", "noise_scale": 0.5, "control_scale": 2}),
        ("/picture/role", ["reference"], {"type": "remove_picture", "role": "reference"}),
        ("/remove_picture/role", ["reference"], {"type": "remove_picture", "role": "reference"}),
        ("/settings/shown_fps", [None], {"type": "settings", "shown_fps": None}),
        ("/settings/denoising_steps", [1000, 500.0], {"type": "settings", "denoising_steps": [1000, 500]}),
        ("/settings/denoising_steps", [[1000]], {"type": "settings", "denoising_steps": [1000]}),
        ("/set_overlay/enabled", [0], {"type": "set_overlay", "enabled": False}),
    ],
)
def test_addresses_and_their_messages(path, values, wanted):
    assert json.loads(message_of(path, values)) == wanted


def test_a_button_that_is_let_go_says_nothing():
    assert message_of("/reset", [0]) is None and message_of("/reset", [False]) is None
    with pytest.raises(BadMessage):
        message_of("/reset", [1, 2])


# --- the command's option


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("9000", ("127.0.0.1", 9000)),
        ("0", ("127.0.0.1", 0)),
        ("localhost:9000", ("localhost", 9000)),
        ("[::1]:9000", ("::1", 9000)),
    ],
)
def test_where_it_listens(text, wanted):
    assert read_osc(text, ServerSettings()) == wanted


@pytest.mark.parametrize(
    "text", ["", "x", "65536", "-1", "9000.5", ":9000", "a:b", "::1:9000", "9000 ", "٩٠٠٠", "[x]:9"]
)
def test_what_is_no_address_is_refused_by_its_form(text):
    with pytest.raises(ValueError, match=r"--osc: it is PORT, or HOST:PORT, got"):
        serve._osc_address(text, ServerSettings())


@pytest.mark.parametrize("text", ["0.0.0.0:9000", "[::]:9000", "192.0.2.1:9000", "studio.example:9000"])
def test_others_may_send_with_a_token_alone(text):
    with pytest.raises(ValueError, match=r"--osc: host .* can be reached by others: a token of at least 16"):
        serve._osc_address(text, ServerSettings())
    assert read_osc(text, ServerSettings(token=TOKEN)).port == 9000


def test_a_port_that_is_taken_is_told():
    with bind(OscAddress("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1 UDP port {port}: Address already in use"):
            bind(OscAddress("127.0.0.1", port))


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.delitem(sys.modules, "longlive_optimized.demo.server.osc", raising=False)
    for name in [*sys.modules]:
        if name.startswith("pythonosc"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pythonosc", None)
    with pytest.raises(ValueError, match=re.escape("pip install 'longlive-optimized[osc]'")):
        serve._osc_address("9000", ServerSettings())


def test_the_programs_log_stays_as_it_is():
    before = [*logging.root.filters]
    with osc._without_its_log():
        assert len(logging.root.filters) == len(before) + 1
    assert logging.root.filters == before


def test_the_command_listens(tmp_path):
    """A process of its own, which says what is wrong with a message."""
    log = tmp_path / "log"
    command = "from longlive_optimized.cli import main; main()"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", command, "serve", "--port", "0", "--osc", "0"],
            stdout=file,
            stderr=file,
            env={**os.environ, "COLUMNS": "200"},
        )
    try:
        until_then = time.monotonic() + 60
        while "ready after" not in log.read_text() and time.monotonic() < until_then:
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        sender = Sender(int(re.search(r"OSC by UDP port (\d+)", log.read_text())[1]))
        sender.say("/prompt", 7)
        while "over OSC, '/prompt'" not in log.read_text() and time.monotonic() < until_then:
            time.sleep(0.05)
        assert "prompt: Input should be a valid string" in log.read_text()
        sender._socket.close()
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0, log.read_text()
