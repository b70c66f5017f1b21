"""What viewers cost the server: ``python tests/measure/janus.py``, with Janus's own program, which has to be installed.

A process of its own serves a stream of painted, moving pictures and publishes it to a room of Janus. Viewers, in this
process, are Janus's, or for comparison the server's own. What counts is the processor time of the server's process
alone, for each frame that it shows; settings take turns. One viewer decodes what it gets, and must see the picture
move; of the others packets are counted. Exits with 1 where many of Janus's cost more than 1.2 times what one costs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import numpy as np
import torch
from aiortc import rtcrtpreceiver

sys.path.insert(0, str(Path(__file__).parents[1]))

from longlive_optimized.demo.scope_integration import ScopeOptimizationConfig
from longlive_optimized.demo.server.rtc import all_addresses
from longlive_optimized.demo.server.settings import ServerSettings
from support.janus_server import JanusServer, janus, subscribers
from support.painted import PaintedPipeline, PaintedSource, numbered, read_number
from support.server_peer import Viewer

ROOM = 1
MOST = 1.2  # times what one viewer costs
SETTLE = 6.0  # seconds until Janus has said what rate it takes, and newcomers have their key frames
PICTURES = 50  # that are different


class MovingPipeline(PaintedPipeline):
    """Pictures whose numbers stand on a texture that moves, all of them made beforehand."""

    def __init__(self, config: ScopeOptimizationConfig, block_seconds: float):
        super().__init__(config, block_seconds)
        height, width = config.size
        coarse = np.random.default_rng(0).integers(40, 200, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
        texture = coarse.repeat(8, 0).repeat(8, 1)[:height, :width]
        self._textures = [np.roll(texture, 3 * i, axis=1) for i in range(PICTURES)]

    def _paint(self, number: int, prompt: str) -> torch.Tensor:
        picture = self._textures[number % PICTURES].copy()
        picture[:32, :128] = numbered(number % 2**16, 32, 128, 90)
        return torch.from_numpy(picture)


class MovingSource(PaintedSource):
    """Streams of such pictures."""

    def open(self, config: ScopeOptimizationConfig) -> MovingPipeline:
        pipeline = MovingPipeline(config, self.block_seconds)
        pipeline.engine = self.engine
        self.opened.append(pipeline)
        return pipeline


def serve(port: int, address: str, secret: str, height: int, width: int) -> None:
    """The server's process."""
    import uvicorn

    from longlive_optimized.demo.server.app import create_app
    from longlive_optimized.demo.server.janus import JanusRoom, JanusSecrets, read_address
    from longlive_optimized.demo.server.sessions import Sessions

    settings = ServerSettings(max_viewers=100, record_seconds=0)
    config = ScopeOptimizationConfig.preset_balanced(height=height, width=width)
    outlet = JanusRoom(read_address(address), settings, JanusSecrets(secret))
    sessions = Sessions(lambda progress: MovingSource(config, 0.1), "a fox", settings, outlet=outlet)
    uvicorn.run(create_app(sessions), port=port, log_level="warning", ws="none")


class Server:
    """That process, and what it has used."""

    def __init__(self, running: JanusServer, height: int, width: int):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        room = f"janus://127.0.0.1:{running.port}/{ROOM}"
        options = ["--serve", str(port), room, "--height", str(height), "--width", str(width)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "JANUS_SECRET": running.secret}
        self._log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen([sys.executable, __file__, *options], env=environment, stderr=self._log)

    async def wait(self, http: httpx.AsyncClient) -> None:
        """Until it publishes."""
        while True:
            assert self.process.poll() is None, self.said()
            with contextlib.suppress(httpx.TransportError):
                status = (await http.get("/status")).json()
                if (status["publish"] or {}).get("phase") == "publishing":
                    return
            await asyncio.sleep(0.2)

    def said(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def cpu(self) -> float:
        """Seconds of processor time so far, of all its threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def value(figures: str, name: str) -> float:
    return float(next(line for line in figures.splitlines() if line.startswith(name + " ")).split()[1])


class Deaf:
    """A decoder that gives nothing out."""

    def decode(self, encoded) -> list:
        return []


@contextlib.contextmanager
def deaf():
    """Within it, viewers that come decode nothing."""
    before, rtcrtpreceiver.get_decoder = rtcrtpreceiver.get_decoder, lambda codec: Deaf()
    try:
        yield
    finally:
        rtcrtpreceiver.get_decoder = before


@contextlib.asynccontextmanager
async def own_viewers(http: httpx.AsyncClient, count: int) -> AsyncIterator[list[Viewer]]:
    """So many viewers of the server itself."""
    watching = [Viewer(http) for _ in range(count)]
    try:
        for one in watching:
            with all_addresses(besides="127.0.0.1"):
                await one.join()
            await asyncio.sleep(0.6)  # as many offers as it takes
        yield watching
    finally:
        await asyncio.gather(*(one.leave() for one in watching))


async def encoded(http: httpx.AsyncClient) -> float:
    """Frames so far."""
    text = (await http.get("/metrics")).text
    return float(
        next(line for line in text.splitlines() if line.startswith("longlive_frames_encoded_total")).split()[1]
    )


async def packets(connections: list) -> list[int]:
    """That have come to each."""
    stats = [await one.getStats() for one in connections]
    return [sum(s.packetsReceived for s in each.values() if s.type == "transport") for each in stats]


class Watcher:
    """Looks at what a viewer sees, all the time: ``seen`` has the numbers of pictures, and when they came."""

    def __init__(self, viewer):
        self._viewer, self.seen = viewer, []
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            self.seen.append((time.monotonic(), read_number(await self._viewer.picture())))

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def run(server: Server, running: JanusServer, http, where: str, count: int, seconds: float) -> dict:
    """A row: what the server's process uses while so many watch there."""

    def arrive(more: int):
        return subscribers(running, ROOM, more) if where == "janus" else own_viewers(http, more)

    async with arrive(1) as (first,), contextlib.AsyncExitStack() as stack:
        await first.picture()  # its decoder is made by then
        watcher, others = Watcher(first), []
        stack.push_async_callback(watcher.end)
        with deaf():
            if count > 1:
                others = await stack.enter_async_context(arrive(count - 1))
            await asyncio.sleep(SETTLE)
        connections = [one.connection if where == "server" else one.pc for one in others]
        got = await packets(connections)
        began, cpu, frames = time.monotonic(), server.cpu(), await encoded(http)
        await asyncio.sleep(seconds)
        took, cpu, frames = time.monotonic() - began, server.cpu() - cpu, await encoded(http) - frames
        got = [after - before for after, before in zip(await packets(connections), got, strict=True)]
        seen = len({number for when, number in watcher.seen if began <= when <= began + took})
    return {
        "viewers": count,
        "of": where,
        "cpu_ms_per_frame": round(1e3 * cpu / frames, 2),
        "cores": round(cpu / took, 3),
        "fps": round(frames / took, 1),
        "pictures_seen": seen,
        "fewest_packets_per_frame": round(min(got) / frames, 2) if got else None,
    }


async def measure(viewers: int, seconds: float, rounds: int, height: int, width: int) -> dict:
    """Rows, and what many cost by what one costs."""
    rows = []
    with janus({ROOM: ""}) as running:
        server = Server(running, height, width)
        try:
            async with httpx.AsyncClient(base_url=server.url) as http:
                await server.wait(http)
                for _ in range(rounds):
                    for where, count in (("janus", 1), ("janus", viewers), ("server", viewers)):
                        rows.append(await run(server, running, http, where, count, seconds))
                        print(json.dumps(rows[-1]), flush=True)
        finally:
            server.process.kill()
            server.process.wait()

    def cost(where: str, count: int) -> float:
        return statistics.median(r["cpu_ms_per_frame"] for r in rows if (r["of"], r["viewers"]) == (where, count))

    one = cost("janus", 1)
    ratios = {f"{viewers} of {where}": round(cost(where, viewers) / one, 3) for where in ("janus", "server")}
    return {"size": f"{height}×{width}", "by_one_of_janus": ratios, "rows": rows}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--viewers", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--height", type=int, default=320)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--serve", nargs=2, metavar=("PORT", "ROOM"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    logging.disable(logging.INFO)
    if given.serve:
        serve(int(given.serve[0]), given.serve[1], os.environ["JANUS_SECRET"], given.height, given.width)
        sys.exit()
    report = asyncio.run(measure(given.viewers, given.seconds, given.rounds, given.height, given.width))
    print(json.dumps({name: report[name] for name in report if name != "rows"}, indent=2, ensure_ascii=False))
    if given.json:
        given.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    sys.exit(report["by_one_of_janus"][f"{given.viewers} of janus"] > MOST)
