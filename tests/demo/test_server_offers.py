"""Offers and answers, by which a viewer and the server find each other."""

import asyncio
import random
import re

import pytest

pytest.importorskip("aiortc")
pytest.importorskip("fastapi")
import aioice.ice
from aiortc import RTCSessionDescription

from longlive_optimized.demo.server import rtc
from longlive_optimized.demo.server.offer import BadOffer, Offer
from longlive_optimized.demo.server.settings import ServerSettings
from support.room import in_room, numbers
from support.server_peer import Viewer

PRINT = ":".join(["AA"] * 32)


def without(*names: str):
    """A change to an offer: no lines of these attributes."""
    return lambda sdp: re.sub(rf"a=({'|'.join(names)}).*\r\n", "", sdp)


def printed(text: str):
    """A change to an offer: other fingerprints."""
    return lambda sdp: re.sub(r"a=fingerprint:.*(?=\r)", f"a=fingerprint:{text}", sdp)


def h264(profile: str, mode: int):
    """A change to an offer: no VP8, and H264 in no other form."""
    form = f"packetization-mode={mode};profile-level-id={profile}"
    return lambda sdp: re.sub("packetization-mode=1;profile-level-id=[0-9a-f]+", form, sdp.replace("VP8", "VP9"))


@in_room()
async def test_offers_without_a_way_are_refused_in_words(room, http):
    viewer = Viewer(http)
    await viewer.connection.setLocalDescription(await viewer.connection.createOffer())
    good = viewer.connection.localDescription.sdp
    room._offers._burst = room._offers._left = 100
    for sdp, words in (
        ("", "no video section: a viewer calls addTransceiver('video'"),
        ("nonsense", "no video section"),
        (good.replace("m=video", "m=audio"), "no video section, but ['audio', 'application']"),
        (re.sub("m=video [0-9]+", "m=video 0", good), "no video section, but ['application']"),
        (good.replace("recvonly", "sendonly"), "must be recvonly, or sendrecv"),
        (good.replace("recvonly", "inactive"), "must be recvonly, or sendrecv"),
        (good.replace("VP8", "VP9").replace("H264", "H265"), "the server sends VP8 and H264"),
        (without("fingerprint")(good), "no a=fingerprint: only encrypted connections"),
        (without("ice-ufrag", "ice-pwd")(good), "no a=ice-ufrag and no a=ice-pwd"),
        (without("setup")(good), "no a=setup"),
        (good.replace("a=mid:1", "a=mid:0"), "each must have one name of its own"),
        (good.replace("a=mid:1", "a=mid:1\r\na=mid:2"), "each must have one name of its own"),
        (without("rtcp-mux")(good), "no a=rtcp-mux: only encrypted connections with all media on one port"),
        (without("recvonly")(good).replace("t=0 0", "t=0 0\r\na=sendonly"), "must be recvonly, or sendrecv"),
        (printed("sha-1 " + PRINT)(good), "says 'a=fingerprint:sha-1 AA:"),
        (printed("sha-256 hello")(good), "a fingerprint must be one of sha-256, sha-384, sha-512"),
        (printed("sha-512 " + PRINT)(good), "a fingerprint must be one of"),
        (h264("640c1f", 1)(good), "no codec that the server sends: VP8, which browsers have, or H264 of the Baseline"),
        (h264("42e01f", 0)(good), "with packetization-mode 1"),
    ):
        answer = await http.post("/offer", json={"type": "offer", "sdp": sdp})
        assert (answer.status_code, answer.json().get("code")) == (400, "bad offer"), (answer.text, sdp)
        assert words in answer.json()["error"]
    for body in (b"", b"{", b'{"type": "answer", "sdp": "x"}', b'{"type": "offer", "sdp": 3}', b"\xff"):
        assert (await http.post("/offer", content=body)).status_code == 422
    assert (await http.post("/offer", content=b"x" * 70_000)).status_code == 413
    assert (await http.get("/status")).json()["viewers"] == 0
    await viewer.leave()


@in_room()
@pytest.mark.parametrize("kinds", ["audio video", "video audio", "video video", "audio video audio video"])
async def test_what_is_not_taken_is_rejected(room, http, kinds):
    viewer = Viewer(http, kinds=kinds.split())
    await viewer.join()
    await numbers(viewer, 5)
    first = kinds.split().index("video")
    ports = re.findall(r"^m=(\w+) (\d+)", viewer.connection.remoteDescription.sdp, re.MULTILINE)
    assert [kind for kind, _ in ports] == [*kinds.split(), "application"]
    assert [port == "0" for _, port in ports] == [i != first for i in range(len(kinds.split()))] + [False]
    assert viewer.connection.connectionState == "connected"
    await viewer.leave()


STANDARD_OFFERS = {
    "no bundle": lambda sdp: re.sub("a=group:BUNDLE.*\r\n", "", sdp),
    "trickle": without("candidate", "end-of-candidates"),
    "line feeds": lambda sdp: sdp.replace("\r\n", "\n"),
    "sends, too": lambda sdp: sdp.replace("recvonly", "sendrecv"),
    "no direction": lambda sdp: sdp.replace("a=recvonly\r\n", ""),
    "H264 alone": lambda sdp: sdp.replace("VP8", "AV1"),
    "VP8 alone": lambda sdp: sdp.replace("H264", "H265"),
    "many addresses": lambda sdp: sdp + "a=candidate:1 1 udp 1 10.0.0.1 9 typ host\r\n" * 40,
    "unknown section": lambda sdp: sdp + "m=text 9 UDP/TLS/RTP/SAVPF 99\r\nc=IN IP4 0.0.0.0\r\na=mid:t\r\n",
    "unknown attributes": lambda sdp: sdp.replace("a=recvonly", "a=recvonly\r\na=extmap-allow-mixed\r\na=foo:bar"),
    "other transports": lambda sdp: sdp.replace("UDP/DTLS/SCTP", "TCP/DTLS/SCTP").replace("UDP/TLS/RTP", "RTP"),
    "the session's direction": lambda sdp: sdp.replace("a=recvonly\r\n", "").replace("t=0 0", "t=0 0\r\na=recvonly"),
    "several fingerprints": lambda sdp: sdp.replace("a=setup", f"a=fingerprint:sha-1 {PRINT}\r\na=setup"),
    "active": lambda sdp: sdp.replace("a=setup:actpass", "a=setup:active"),
}


@in_room()
@pytest.mark.parametrize("how", STANDARD_OFFERS)
async def test_standard_offers_are_answered(room, http, how):
    viewer = Viewer(http)
    await viewer.connection.setLocalDescription(await viewer.connection.createOffer())
    offered = STANDARD_OFFERS[how](viewer.connection.localDescription.sdp)
    answer = await http.post("/offer", json={"type": "offer", "sdp": offered, "name": "some client's own"})
    assert answer.status_code == 200, answer.text
    sdp = answer.json()["sdp"]
    sections = re.findall(r"^m=\w+", offered, re.MULTILINE)
    assert re.findall(r"^m=\w+", sdp, re.MULTILINE) == sections
    # A viewer who may send is heard out, should they want to.
    assert f"a={'sendrecv' if how in ('sends, too', 'no direction') else 'sendonly'}\r\n" in sdp
    forms = r"^m=\w+ \d+ (\S+)"
    assert re.findall(forms, sdp, re.MULTILINE) == re.findall(forms, offered, re.MULTILINE)
    assert ("a=group:BUNDLE" in sdp) == (how != "no bundle")
    if how != "unknown section":  # which this viewer never offered
        await viewer.connection.setRemoteDescription(RTCSessionDescription(**answer.json()))
        await numbers(viewer, 3)
    await viewer.leave()


def test_a_browser_is_answered_to_the_letter():
    """The rejected section is not in the bundle (RFC 9143, 7.3.3), and holds nothing that would mean anything."""
    transport = (
        "a=ice-ufrag:u\r\na=ice-pwd:p\r\na=fingerprint:sha-256 " + PRINT + "\r\na=setup:actpass\r\na=rtcp-mux\r\n"
    )
    candidate = "a=candidate:1 1 udp 1 10.0.0.1 9 typ host\r\n"
    head = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0 1\r\n"
    audio = "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=mid:0\r\na=recvonly\r\n"
    video = "m=video 9 UDP/TLS/RTP/SAVPF 96\r\na=mid:1\r\na=recvonly\r\na=rtpmap:96 VP8/90000\r\n"
    made = "v=0\r\na=group:BUNDLE 1\r\nm=video 7 UDP/TLS/RTP/SAVPF 96\r\na=mid:1\r\na=ice-ufrag:s\r\n"
    offer = Offer(head + audio + transport + candidate + video + transport + candidate)
    assert offer.taken(local=False) == head.replace(" 0 1\r", " 1\r") + video + transport + candidate
    assert offer.answer(made) == (
        "v=0\r\na=group:BUNDLE 1\r\n"
        "m=audio 0 UDP/TLS/RTP/SAVPF 111\r\nc=IN IP4 0.0.0.0\r\na=inactive\r\na=mid:0\r\na=rtcp-mux\r\n"
        "m=video 7 UDP/TLS/RTP/SAVPF 96\r\na=mid:1\r\na=ice-ufrag:s\r\n"
    )
    # The transport of all stands in the first section alone: the video has the same, and the section is kept, inactive.
    offer = Offer(head + audio + transport + candidate + video.replace("video 9", "video 0") + "a=bundle-only\r\n")
    assert all(line in offer.taken(local=False) for line in (transport + candidate).splitlines())
    assert "a=group:BUNDLE 0 1\r\nm=audio 9 " in offer.answer(made) and "a=inactive" in offer.answer(made)


def test_spoilt_offers_are_read_or_refused():
    """Nothing but BadOffer comes out, and what is read can be answered."""
    head = "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0 1 2\r\n"
    same = "a=ice-ufrag:u\r\na=ice-pwd:p\r\na=fingerprint:sha-256 " + PRINT + "\r\na=setup:actpass\r\na=rtcp-mux\r\n"
    audio = "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=mid:0\r\na=recvonly\r\na=candidate:1 1 udp 1 10.0.0.1 9 typ host\r\n"
    video = "m=video 9 UDP/TLS/RTP/SAVPF 96\r\na=mid:1\r\na=recvonly\r\na=rtpmap:96 VP8/90000\r\n"
    data = "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\na=mid:2\r\n"
    good = (head + audio + same + video + same + data + same).split("\r\n")
    strange = [
        "",
        "m=",
        "m=video",
        "m=video 0",
        "a=mid:",
        "a=mid:1",
        "a=group:BUNDLE",
        "a=bundle-only",
        "a=inactive",
        "☂",
    ]
    dice, read = random.Random(0), 0
    for _ in range(3000):
        lines = list(good)
        for _ in range(dice.randint(1, 4)):
            i, j = (dice.randrange(len(lines)) for _ in range(2))
            match dice.randrange(5):
                case 0:
                    del lines[i]
                case 1:
                    lines.insert(i, lines[j])
                case 2:
                    lines[i], lines[j] = lines[j], lines[i]
                case 3:
                    lines[i] = lines[i][: dice.randrange(len(lines[i]) + 1)]
                case 4:
                    lines.insert(i, dice.choice(strange))
        try:
            offer = Offer("\r\n".join(lines))
        except BadOffer as error:
            assert str(error)
            continue
        taken = offer.taken(local=dice.random() < 0.5)
        sections = sum(line.startswith("m=") for line in lines)
        assert len(re.findall("^m=", offer.answer(taken), re.MULTILINE)) == sections
        read += 1
    assert 500 < read < 2500


@in_room()
async def test_offers_are_limited(room, http):
    codes = [(await http.post("/offer", json={"type": "offer", "sdp": ""})).status_code for _ in range(14)]
    assert codes[:10] == [400] * 10 and 429 in codes[10:]


@in_room()
async def test_a_browser_that_hides_its_addresses(room, http):
    """Its candidates are names that cannot be looked up, and it says that no more will come."""

    def hide(sdp: str) -> str:
        assert "127.0.0.1" in sdp and "a=end-of-candidates" in sdp
        return re.sub(r"(a=candidate:\S+ 1 udp \d+) \S+", r"\1 0d6e2c1a-hidden.local", sdp)

    viewer = await Viewer(http).join(rewrite=hide)
    await viewer.frame()
    await viewer.leave()


@pytest.mark.parametrize(
    ("settings", "addresses"),
    [
        ({}, ["127.0.0.1"]),
        ({"host": "::1"}, ["::1"]),
        ({"ice_addresses": ("10.0.0.7",)}, ["127.0.0.1", "10.0.0.7"]),
        ({"host": "0.0.0.0", "ice_addresses": ("10.0.0.7",)}, ["10.0.0.7"]),
        ({"host": "gpu.example"}, None),
    ],
)
def test_addresses_that_video_may_use(settings, addresses):
    usual = aioice.ice.get_host_addresses
    token = "correct horse battery" if settings.get("host", "::1") != "::1" else None
    with rtc.local_addresses(ServerSettings(**settings, token=token)):
        addresses = addresses or usual(use_ipv4=True, use_ipv6=True)
        assert aioice.ice.get_host_addresses(use_ipv4=True, use_ipv6=True) == addresses
    assert aioice.ice.get_host_addresses is usual


def test_one_task_may_use_other_addresses():
    usual = aioice.ice.get_host_addresses(use_ipv4=True, use_ipv6=True)

    def found() -> list[str]:
        return aioice.ice.get_host_addresses(use_ipv4=True, use_ipv6=True)

    async def publish(meanwhile: asyncio.Event) -> list[str]:
        with rtc.all_addresses(besides="127.0.0.1"):
            meanwhile.set()
            await asyncio.sleep(0.01)
            inside = await asyncio.create_task(asyncio.to_thread(found))
        assert found() == ["127.0.0.1"]
        return inside

    async def look() -> None:
        meanwhile = asyncio.Event()
        task = asyncio.create_task(publish(meanwhile))
        await meanwhile.wait()
        assert found() == ["127.0.0.1"]
        assert await task == ["127.0.0.1", *usual]

    with rtc.local_addresses(ServerSettings()):
        asyncio.run(look())


def test_no_server_is_asked_for_addresses_by_default():
    assert ServerSettings().ice_servers == ()
