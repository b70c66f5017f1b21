#!/usr/bin/env bash
# After a few seconds aiortc's replaceTrack ends the video for good, where VP8 is sent and the new track counts its time from 0.
#
# Versions: aiortc 1.16.0, aioice 0.13.0, av 18.1.0, Python 3.11.
# Who meets it: who changes what a connection shows (another camera, another stream, a file) by RTCRtpSender.replaceTrack. Each
#   VideoStreamTrack and MediaPlayer counts from 0, as their own recv() and next_timestamp() do. aiortc gives these times to its encoder as
#   they are; libvpx refuses one that lies before the last ("Invalid data found when processing input"), and the sender's task ends with a
#   warning in the log. Both connections stay "connected", the sender has no track any more, the receiver's track is "live", and no
#   event is sent. With H.264 it goes on, at another time (aiortc-timestamps-step-back.sh).
# Guess: the other track's frames, without a gap, as in a browser.
# Seen (12 s of the first track, then 3 s of the second at 16 frames a second):
#   VP8, times from 0: 1 frames arrive, connected, sender's track None
#   VP8, times that go on: 45 frames arrive, connected, sender's track live
#   H264, times from 0: 47 frames arrive, connected, sender's track live
# What helps: a track that adds to each frame's pts where the one before it ended.
# Exits non-zero if that changes.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet "aiortc==1.16.0" "aioice==0.13.0" "av==18.1.0" numpy
cd "$scratch"
"$scratch/venv/bin/python" - 2>"$scratch/log" <<'PYTHON' || { cat "$scratch/log" >&2; exit 1; }
import asyncio
from fractions import Fraction

import aioice.ice
import av
import numpy as np
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpSender
from aiortc.mediastreams import MediaStreamTrack

aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"]  # which it leaves out; nothing else is needed
RATE = 16


class Clock(MediaStreamTrack):
    """RATE frames a second, counted from ``first`` on."""

    kind = "video"

    def __init__(self, first=0):
        super().__init__()
        self.count = first

    async def recv(self):
        await asyncio.sleep(1 / RATE)
        frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 8 * self.count % 256, np.uint8), format="rgb24")
        frame.pts, frame.time_base = self.count, Fraction(1, RATE)
        self.count += 1
        return frame


async def replaced(codec, goes_on):
    """How many frames arrive after the change, and what is left then."""
    nothing = RTCConfiguration(iceServers=[])
    sender, receiver = RTCPeerConnection(nothing), RTCPeerConnection(nothing)
    arrived, frames, first = [], [], Clock()
    receiver.on("track", arrived.append)
    sends = sender.addTrack(first)
    codecs = [known for known in RTCRtpSender.getCapabilities("video").codecs if known.mimeType == f"video/{codec}"]
    sender.getTransceivers()[0].setCodecPreferences(codecs)
    await sender.setLocalDescription(await sender.createOffer())
    await receiver.setRemoteDescription(sender.localDescription)
    await receiver.setLocalDescription(await receiver.createAnswer())
    await sender.setRemoteDescription(receiver.localDescription)

    async def take():
        while True:
            frames.append(await arrived[0].recv())

    taking = asyncio.create_task(take())
    await asyncio.sleep(12)
    before = len(frames)
    sends.replaceTrack(Clock(first.count + 1 if goes_on else 0))
    await asyncio.sleep(3)
    taking.cancel()
    left = sender.connectionState, receiver.connectionState, sends.track and sends.track.readyState, arrived[0].readyState
    await asyncio.gather(sender.close(), receiver.close())
    return before, len(frames) - before, left


async def main():
    cases = ("VP8", False), ("VP8", True), ("H264", False)
    for (codec, goes_on), (before, after, left) in zip(cases, await asyncio.gather(*(replaced(*case) for case in cases))):
        times = "times that go on" if goes_on else "times from 0"
        print(f"{codec}, {times}: {after} frames arrive, {left[0]}, sender's track {left[2]}")
        assert before > 9 * RATE and left[:2] == ("connected", "connected") and left[3] == "live", (before, left)
        ends = (codec, goes_on) == ("VP8", False)
        assert (after < 4 and left[2] is None) if ends else (after > 2 * RATE and left[2] == "live"), (after, left)


asyncio.run(main())
PYTHON
