"""How late a viewer's video is taken, and what is lost of it: ``python tests/measure/intake_delay.py --loss 0.02``.

A peer of aiortc sends numbered pictures over loopback to two receivers at once: one as the server has it, one with
aiortc's own buffer, which ends a frame where the next one begins. From the sender's ``recv`` to the server's ``take``,
with encoding and decoding. Packets are lost both ways, those of RTCP too; ``--way`` is the time of each on its way.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import aioice.ice
import numpy as np
from aiortc import RTCConfiguration, RTCPeerConnection
from aiortc.jitterbuffer import JitterBuffer

from longlive_optimized.demo.server.intake import BUFFER, Intake
from support.one_way import join
from support.painted import numbered, read_number
from support.sent import Sent

aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"]


class AsBefore(Intake):
    """With aiortc's own buffer."""

    def __init__(self, *args):
        super().__init__(*args)
        self._ends_frames = False
        self._make_buffer()
        assert type(vars(self._receiver)[BUFFER]) is JitterBuffer


class Timed(Sent):
    """Notes when it gives a picture; after so many it pauses."""

    def __init__(self, count: int, fps: float, height: int, width: int):
        super().__init__(self._picture, fps)
        self.count, self.given = count, []
        self._noise = np.random.default_rng(0).integers(60, 120, (height, width, 3), dtype=np.uint8)

    def _picture(self, number: int) -> np.ndarray:
        """Its number above noise that moves, so that a frame has several packets."""
        picture = numbered(number, *self._noise.shape[:2], 90)
        picture[64:] = np.roll(self._noise, 8 * number, 1)[64:]
        return picture

    async def recv(self):
        if self.sent == self.count:
            await asyncio.sleep(3600)
        frame = await super().recv()
        self.given.append(asyncio.get_running_loop().time())
        return frame


def hinder(peer: RTCPeerConnection, loss: float, way: float, rng: random.Random) -> None:
    """Lose packets that a peer sends, and delay the others."""
    transport = peer.getTransceivers()[0].sender.transport
    send, loop = transport._send_rtp, asyncio.get_running_loop()

    async def late(data: bytes) -> None:
        try:
            await send(data)
        except ConnectionError:  # closed meanwhile
            pass

    async def lossy(data: bytes) -> None:
        if rng.random() < loss:
            return
        if way:
            loop.call_later(way, lambda: asyncio.ensure_future(late(data)))
        else:
            await send(data)

    transport._send_rtp = lossy


async def measure(kind: type[Intake], codec: str, fps: int, args: argparse.Namespace) -> dict:
    nothing = RTCConfiguration(iceServers=[])
    sender, receiver = RTCPeerConnection(nothing), RTCPeerConnection(nothing)
    track, taken = Timed(round(args.seconds * fps), fps, *args.size), []
    now = asyncio.get_running_loop().time

    def take(frame) -> None:
        at = now()
        taken.append((read_number(frame.to_ndarray(format="rgb24")), at))

    intake = kind(receiver.addTransceiver("video", "recvonly"), take)
    receiver.on("track", intake.follow)
    intake.want(True)
    await join(sender, receiver, track, codec)
    for i, peer in enumerate((sender, receiver)):
        hinder(peer, args.loss, args.way / 1000, random.Random(args.seed + i))
    while track.sent < track.count:
        await asyncio.sleep(0.1)
    await asyncio.sleep(3)
    intake.close()
    await asyncio.gather(sender.close(), receiver.close())
    late = sorted(1000 * (at - track.given[number]) for number, at in taken)
    order = [number for number, _ in taken]
    return {
        **{"sent": track.count, "lost": track.count - len({*order}), "last came": track.count - 1 in order},
        **{"in order, once": order == sorted({*order}), "median ms": round(statistics.median(late), 1)},
        "p95 ms": round(late[int(0.95 * len(late))], 1),
    }


async def main(args: argparse.Namespace) -> None:
    for codec in args.codecs:
        for fps in args.fps:
            both = await asyncio.gather(*(measure(kind, codec, fps, args) for kind in (AsBefore, Intake)))
            for name, result in zip(("before", "after"), both, strict=True):
                print(codec, fps, name, json.dumps(result), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--codecs", nargs="+", default=["VP8", "H264"])
    parser.add_argument("--fps", nargs="+", type=int, default=[4, 15, 30])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--size", nargs=2, type=int, default=[240, 320], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--loss", type=float, default=0.0, help="share of packets")
    parser.add_argument("--way", type=float, default=0.0, help="milliseconds")
    parser.add_argument("--seed", type=int, default=0)
    asyncio.run(main(parser.parse_args()))
