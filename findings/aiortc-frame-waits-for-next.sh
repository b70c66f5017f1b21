#!/usr/bin/env bash
# aiortc's receiver keeps each frame until the next one begins to arrive: it is always a frame late, and the last before a pause never comes.
#
# Versions: aiortc 1.16.0, aioice 0.13.0, av 18.1.0, Python 3.11.
# Who meets it: who works on what a browser sends: a webcam at 15 frames a second is 67 ms later than it need be, and of a shared screen that
#   is at rest, or a track that is muted or held, the last picture is not seen until something moves.
# Guess: a frame is complete with the packet that has the marker bit, which ends a frame of VP8 and H.264 (RFC 7741, section 4.1; RFC 6184,
#   section 5.1), and which aiortc itself sets. The jitter buffer looks for a packet of another timestamp alone.
# Seen (from the sender's recv() to the receiver's, one process, 64x64):
#   VP8, 4 frames a second: 5 sent, 4 received, 253 ms each
#   VP8, 16 frames a second: 5 sent, 4 received, 65 ms each
#   H264, 4 frames a second: 5 sent, 4 received, 254 ms each
#   H264, 16 frames a second: 5 sent, 4 received, 66 ms each
# Exits non-zero if that changes.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet "aiortc==1.16.0" "aioice==0.13.0" "av==18.1.0"
cd "$scratch"
"$scratch/venv/bin/python" - 2>"$scratch/log" <<'PYTHON' || { cat "$scratch/log" >&2; exit 1; }
import asyncio
import statistics
import time
from fractions import Fraction

import aioice.ice
import av
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpSender
from aiortc.mediastreams import MediaStreamTrack

aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"]  # which it leaves out; nothing else is needed
COUNT = 5


class Few(MediaStreamTrack):
    """COUNT frames, then a pause."""

    kind = "video"

    def __init__(self, rate):
        super().__init__()
        self.rate, self.sent = rate, []

    async def recv(self):
        await asyncio.sleep(1 / self.rate if len(self.sent) < COUNT else 3600)
        frame = av.VideoFrame(64, 64, "yuv420p")
        for plane in frame.planes:
            plane.update(bytes([50 + 20 * len(self.sent)]) * plane.buffer_size)
        frame.pts, frame.time_base = len(self.sent), Fraction(1, self.rate)
        self.sent.append(time.monotonic())
        return frame


async def delays(codec, rate):
    nothing = RTCConfiguration(iceServers=[])
    sender, receiver = RTCPeerConnection(nothing), RTCPeerConnection(nothing)
    arrived, track, seen = [], Few(rate), []
    receiver.on("track", arrived.append)
    sender.addTrack(track)
    codecs = [known for known in RTCRtpSender.getCapabilities("video").codecs if known.mimeType == f"video/{codec}"]
    sender.getTransceivers()[0].setCodecPreferences(codecs)
    await sender.setLocalDescription(await sender.createOffer())
    await receiver.setRemoteDescription(sender.localDescription)
    await receiver.setLocalDescription(await receiver.createAnswer())
    await sender.setRemoteDescription(receiver.localDescription)
    try:
        while True:
            await asyncio.wait_for(arrived[0].recv(), 3)
            seen.append(time.monotonic())
    except TimeoutError:
        pass
    await asyncio.gather(sender.close(), receiver.close())
    return len(track.sent), [then - now for now, then in zip(track.sent, seen)]


for codec in ("VP8", "H264"):
    for rate in (4, 16):
        sent, late = asyncio.run(delays(codec, rate))
        typical = statistics.median(late)
        print(f"{codec}, {rate} frames a second: {sent} sent, {len(late)} received, {1000 * typical:.0f} ms each")
        assert (sent, len(late)) == (COUNT, COUNT - 1) and typical >= 1 / rate, (sent, late)
PYTHON
