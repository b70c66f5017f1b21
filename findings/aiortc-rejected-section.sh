#!/usr/bin/env bash
# aiortc as the offerer takes no answer that rejects a section: a client that asks for audio and video cannot use a server of video.
#
# Versions: aiortc 1.16.0, aioice 0.13.0, Python 3.11.
# Who meets it: a client written with aiortc that offers audio and video to a server that has one of them. The standard's answer is
#   port 0 for the other section (RFC 3264, section 6), which needs no more than its mid and stays out of the bundle (RFC 9143, 7.3.3):
#   browsers take it. aiortc looks at no port, wants ICE and DTLS for every section, and waits for a connection of each.
# Seen:
#   answer to the standard: ValueError: ICE username fragment or password is missing
#   the same with the transport's lines in the rejected section: the client is failed, the server connected
#   that and a place in the bundle, which the standard forbids: connected
# Exits non-zero if that changes.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet "aiortc==1.16.0" "aioice==0.13.0"
cd "$scratch"
"$scratch/venv/bin/python" - 2>"$scratch/log" <<'PYTHON' || { cat "$scratch/log" >&2; exit 1; }
import asyncio
import re

import aioice.ice
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import VideoStreamTrack

aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"]  # which it leaves out; nothing else is needed


async def meet(transport, bundled):
    """What a client that offers video and audio makes of an answer with the video alone, and the server's state."""
    nothing = RTCConfiguration(iceServers=[])
    client, server = RTCPeerConnection(nothing), RTCPeerConnection(nothing)
    client.addTransceiver("video", direction="recvonly")
    client.addTransceiver("audio", direction="recvonly")
    await client.setLocalDescription(await client.createOffer())
    head, video, audio = re.split(r"^(?=m=)", client.localDescription.sdp, flags=re.MULTILINE)
    first, second = (re.search(r"a=mid:(\S+)", section)[1] for section in (video, audio))
    # The server is shown the video alone, as aiortc cannot reject a section either.
    server.addTransceiver(VideoStreamTrack(), direction="sendonly")
    shown = head.replace(f"BUNDLE {first} {second}", f"BUNDLE {first}") + video
    await server.setRemoteDescription(RTCSessionDescription(shown, "offer"))
    await server.setLocalDescription(await server.createAnswer())
    answer = server.localDescription.sdp
    lines = [re.sub(r"^m=audio \d+", "m=audio 0", audio.splitlines()[0]), "c=IN IP4 0.0.0.0", "a=inactive", f"a=mid:{second}"]
    if transport:
        lines += ["a=rtcp:9 IN IP4 0.0.0.0", "a=rtcp-mux", "a=end-of-candidates"]
        lines += re.findall(r"^a=rtpmap:.*(?=\r)", audio, re.MULTILINE)
        lines += re.findall(r"^a=(?:ice-ufrag|ice-pwd|fingerprint|setup):.*(?=\r)", answer, re.MULTILINE)
    if bundled:
        answer = answer.replace(f"BUNDLE {first}", f"BUNDLE {first} {second}")
    answer += "".join(f"{line}\r\n" for line in lines)
    try:
        await client.setRemoteDescription(RTCSessionDescription(answer, "answer"))
    except ValueError as error:
        return f"ValueError: {error}"
    else:
        await asyncio.sleep(3)
        return client.connectionState, server.connectionState
    finally:
        await asyncio.gather(client.close(), server.close())


strict = asyncio.run(meet(False, False))
print("answer to the standard:", strict)
assert strict == "ValueError: ICE username fragment or password is missing"
states = asyncio.run(meet(True, False))
print(f"the same with the transport's lines in the rejected section: the client is {states[0]}, the server {states[1]}")
assert states == ("failed", "connected"), states
states = asyncio.run(meet(True, True))
print(f"that and a place in the bundle, which the standard forbids: {states[0]}")
assert states == ("connected", "connected"), states
PYTHON
