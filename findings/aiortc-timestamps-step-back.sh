#!/usr/bin/env bash
# aiortc's receiver takes each RTP timestamp below the one before for a wrap of 2^32: the frame, and all after it, are 13 hours later.
#
# Versions: aiortc 1.16.0, aioice 0.13.0, av 18.1.0, Python 3.11.
# Who meets it: who records or paces what aiortc receives. Timestamps step back whenever a sender goes over to another track (aiortc's
#   own replaceTrack sends the new track's times as they are, which begin at 0), and at every frame of a video with B-frames, which is
#   sent in the order of decoding (MediaPlayer(file, decode=False) does so). A recording of a minute is then one of days.
# Guess: the nearer way counts, forward or back, as RFC 3550 (appendix A.1) has it for sequence numbers: 2^31 ticks are half a day.
# Seen (seconds, by frame.time of what is received):
#   replaceTrack after a second: 1.0 1.062 47721.859 47721.921
#   a file with B-frames, its first six: 0.0 47721.921 47721.984 0.188 95443.968 95444.03
# Exits non-zero if that changes.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet "aiortc==1.16.0" "aioice==0.13.0" "av==18.1.0" numpy
cd "$scratch"
"$scratch/venv/bin/python" - 2>"$scratch/log" <<'PYTHON' || { cat "$scratch/log" >&2; exit 1; }
import asyncio
import itertools
from fractions import Fraction

import aioice.ice
import av
import numpy as np
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpSender
from aiortc.contrib.media import MediaPlayer
from aiortc.mediastreams import MediaStreamTrack

aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"]  # which it leaves out; nothing else is needed


class Clock(MediaStreamTrack):
    """16 frames a second, from 0 on."""

    kind = "video"
    count = 0

    async def recv(self):
        await asyncio.sleep(1 / 16)
        frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 8 * self.count % 256, np.uint8), format="rgb24")
        frame.pts, frame.time_base = self.count, Fraction(1, 16)
        self.count += 1
        return frame


async def received(track, codec, change=None):
    """The times of 24 frames that arrive; after 16 the sender may be changed."""
    nothing = RTCConfiguration(iceServers=[])
    sender, receiver = RTCPeerConnection(nothing), RTCPeerConnection(nothing)
    arrived = []
    receiver.on("track", arrived.append)
    sends = sender.addTrack(track)
    codecs = [known for known in RTCRtpSender.getCapabilities("video").codecs if known.mimeType == codec]
    sender.getTransceivers()[0].setCodecPreferences(codecs)
    await sender.setLocalDescription(await sender.createOffer())
    await receiver.setRemoteDescription(sender.localDescription)
    await receiver.setLocalDescription(await receiver.createAnswer())
    await sender.setRemoteDescription(receiver.localDescription)
    times = []
    while len(times) < 24:
        if change and len(times) == 16:
            sends.replaceTrack(change)
            change = None
        times.append(round((await asyncio.wait_for(arrived[0].recv(), 20)).time, 3))
    await asyncio.gather(sender.close(), receiver.close())
    return times


def write(path):
    """A moving bar, with B-frames."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=16, options={"bf": "2", "profile": "main"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for i in range(96):
            picture = np.full((64, 64, 3), 100, np.uint8)
            picture[:, 2 * i % 56 : 2 * i % 56 + 8] = 250
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


WRAP = 2**32 / 90000
times = asyncio.run(received(Clock(), "video/VP8", Clock()))
at = next(i for i, (now, then) in enumerate(itertools.pairwise(times), 1) if then - now > 1)
print("replaceTrack after a second:", *times[at - 2 : at + 2])
assert times[at - 1] < 2 and abs(times[at] - WRAP) < 1, times

write("b.ts")
times = asyncio.run(received(MediaPlayer("b.ts", decode=False).video, "video/H264"))
print("a file with B-frames, its first six:", *times[:6])
assert times[0] == 0 and sum(then - now > WRAP / 2 for now, then in itertools.pairwise(times)) > 2 and max(times) > 2 * WRAP, times
PYTHON
