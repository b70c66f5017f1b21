"""A server under people: ``python tests/measure/server_soak.py --minutes 30``. Exits with 1 if something is wrong.

One viewer watches all the time. Others come, talk and go, also to streams of their own, some without a word: they are
processes that are killed.
Random and malformed messages, offers and half-finished requests arrive all along. At the end all that the server holds
must be what it was when only the watcher was there, and the video must still follow a prompt.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import signal
import string
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from longlive_optimized.config import PRESETS
from longlive_optimized.demo.server.rtc import local_addresses
from longlive_optimized.demo.server.settings import ServerSettings
from support.server_peer import Viewer

CONSENT = 45  # seconds after which someone who vanished is noticed at the latest
SAMPLE = 5.0
FIGURES = (
    "process_resident_memory_bytes",
    "process_open_fds",
    "longlive_event_loop_tasks",
    "longlive_viewers",
    "longlive_sessions_open",
)
STREAMS = "", "", "/s/one", "/s/two", "/s/three"  # that guests watch: the shared one, and some of their own


class Server:
    """The command in a process of its own."""

    def __init__(self) -> None:
        code = "from longlive_optimized.cli import main; main()"
        options = ["serve", "--height", "32", "--width", "48", "--port", "0", "--viewers", "6"]
        options += ["--sessions", "3", "--sessions-per-client", "9", "--keep", "1"]
        # glibc keeps freed memory in lumps of up to 60 MiB: told to give it back, resident memory is what is in use.
        malloc = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}
        environment = {**os.environ, **malloc, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        self._log = tempfile.NamedTemporaryFile("r", prefix="server_soak-")  # a pipe that nobody reads would fill up
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *options], stderr=open(self._log.name, "w"), env=environment
        )
        while "ready" not in self.said():
            assert self.process.poll() is None, self.said()
            time.sleep(0.1)
        self.address = re.search(r"http://[\d.:]+", self.said()).group()

    def said(self) -> str:
        """All that it has written to stderr."""
        return Path(self._log.name).read_text()

    async def sample(self, http: httpx.AsyncClient) -> dict[str, float]:
        """What it holds now."""
        text = (await http.get("/metrics")).text
        found = {name: float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE).group(1)) for name in FIGURES}
        with open(f"/proc/{self.process.pid}/status") as file:
            return found | {"threads": int(re.search(r"Threads:\s+(\d+)", file.read()).group(1))}

    def end(self) -> tuple[float, int, str]:
        """Seconds that Ctrl-C took, the exit code, what was said."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)
        return time.monotonic() - started, self.process.returncode, self.said()


class Watcher:
    """Watches all the time and notes the longest time without a picture."""

    def __init__(self, http: httpx.AsyncClient):
        self.viewer, self.frames, self.longest = Viewer(http), 0, 0.0

    async def run(self) -> None:
        last = time.monotonic()
        while True:
            await self.viewer.frame(timeout=60)
            now = time.monotonic()
            self.frames, self.longest, last = self.frames + 1, max(self.longest, now - last), now
            del self.viewer.heard[:-20]


def nonsense(dice: random.Random):
    """A message: a good one, a spoilt one, or none at all."""
    good = [
        {
            "type": "switch_prompt",
            "prompt": "".join(dice.choices(string.ascii_letters + " ☂狐", k=dice.randint(1, 80))) + "x",
        },
        {"type": "switch_prompt", "prompt": "a fox", "transition_blocks": dice.randint(1, 8)},
        {"type": "set_optimization_preset", "preset": dice.choice([*PRESETS])},
        {"type": "set_transition", "blocks": dice.randint(1, 8), "blend": dice.choice(["linear", "slerp"])},
        {"type": "set_overlay", "enabled": dice.random() < 0.5},
        {"type": "set_paused", "paused": False},
        {"type": "get_latency_stats", "id": dice.randint(0, 9)},
    ]
    if dice.random() < 0.02:
        good.append({"type": "reset"})
    message = dice.choice(good)
    match dice.randint(0, 7):
        case 0:
            return bytes(dice.getrandbits(8) for _ in range(dice.randint(0, 400)))
        case 1:
            return "".join(chr(dice.randint(1, 0xD7FF)) for _ in range(dice.randint(1, 3000)))
        case 2:
            text = json.dumps(message)
            return text[: dice.randrange(len(text))] or "{"
        case 3:
            return json.dumps(
                message | {dice.choice([*message, "extra"]): dice.choice([None, -1, 1e300, [], {}, "x" * 3000])}
            )
        case 4:
            return "[" * dice.randint(1, 18_000)
    return message


async def chatter(http: httpx.AsyncClient, messages: int, seconds: float, dice: random.Random) -> int:
    """Say so much in so long, evenly but for bursts; how much was said."""
    said, end, viewer = 0, time.monotonic() + seconds, None
    while time.monotonic() < end or said < messages:
        with contextlib.suppress(Exception):  # a connection may end: that is what this is about
            viewer = viewer or await Viewer(http).join()
            for _ in range(100 if dice.random() < 0.01 else 1):
                viewer.say(nonsense(dice))
                said += 1
            del viewer.heard[:]
            await asyncio.sleep(max(0.01, dice.uniform(0, 2) * (end - time.monotonic()) / max(1, messages - said)))
            if dice.random() < 0.002 or viewer.channel.readyState != "open":
                await viewer.leave()
                viewer = None
            continue
        viewer = None
        await asyncio.sleep(1)
    if viewer:
        await viewer.leave()
    return said


async def guests(http: httpx.AsyncClient, end: float, dice: random.Random) -> int:
    """Come, watch a little, and go with a good-bye; how many there were."""
    count = 0
    while time.monotonic() < end:
        viewer = Viewer(http, stream=dice.choice(STREAMS))
        with contextlib.suppress(httpx.HTTPStatusError, TimeoutError):
            await viewer.join()
            count += 1
            leaves = min(end, time.monotonic() + dice.uniform(0, 4))
            while time.monotonic() < leaves:
                await viewer.frame()
        await viewer.leave()
        await asyncio.sleep(dice.uniform(0, 2))
    return count


async def victims(address: str, end: float, dice: random.Random) -> int:
    """Processes that watch until they are killed; how many there were."""
    count = 0
    while time.monotonic() < end:
        process = await asyncio.create_subprocess_exec(
            sys.executable, __file__, "--watch", address, stderr=asyncio.subprocess.DEVNULL
        )
        await asyncio.sleep(dice.uniform(3, 12))
        if process.returncode is None:  # or there was no seat
            process.kill()
            count += 1
        await process.wait()
        await asyncio.sleep(dice.uniform(5, 30))  # each keeps a seat until its silence is noticed
    return count


async def rude(address: str, http: httpx.AsyncClient, end: float, dice: random.Random) -> int:
    """Requests that are wrong, too long, or never finished; how many there were."""
    host, port = address.removeprefix("http://").split(":")
    count = 0
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError, OSError):
            match dice.randint(0, 3):
                case 0:
                    await http.post("/offer", content=bytes(dice.getrandbits(8) for _ in range(dice.randint(0, 2000))))
                case 1:
                    await http.post(
                        "/offer",
                        json={"type": "offer", "sdp": "v=0\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\n" * dice.randint(1, 2)},
                    )
                case 2:
                    await http.get(f"/recording.mp4?seconds={dice.choice([1, 30, -1, 'x'])}")
                case 3:
                    _, writer = await asyncio.open_connection(host, int(port))
                    writer.write(b"POST /offer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n{")
                    await writer.drain()
                    await asyncio.sleep(dice.uniform(0, 1))
                    writer.close()
            count += 1
        await asyncio.sleep(dice.uniform(0.2, 2))
    return count


async def soak(seconds: float, messages: int, kill: bool = True, seed: int = 0) -> dict:
    """Run it all for so long; the report, whose ``wrong`` lists what must not be."""
    dice = random.Random(seed)
    server = await asyncio.to_thread(Server)
    try:
        with local_addresses(ServerSettings()):
            async with httpx.AsyncClient(base_url=server.address, timeout=30) as http:
                report = await _scene(server, http, dice, seconds, messages, kill)
        shutdown, code, said = await asyncio.to_thread(server.end)
    finally:
        server.process.kill()
    report |= {"shutdown_seconds": round(shutdown, 2), "exit_code": code, "server_said": said}
    return report | {"wrong": _wrong(report)}


async def _scene(server: Server, http: httpx.AsyncClient, dice: random.Random, seconds, messages, kill) -> dict:
    watcher = Watcher(http)
    await watcher.viewer.join()
    watching = asyncio.create_task(watcher.run())
    await asyncio.sleep(1)
    alone, end, samples = await server.sample(http), time.monotonic() + seconds, []

    async def measure() -> None:
        while time.monotonic() < end:
            await asyncio.sleep(SAMPLE)
            samples.append(await server.sample(http))
            if len(samples) % 12 == 0:
                print(
                    f"{len(samples) * SAMPLE / 60:.0f} min, {samples[-1]}, longest gap {watcher.longest:.2f} s",
                    flush=True,
                )

    said, came, killed, rudeness, _ = await asyncio.gather(
        chatter(http, messages, seconds, dice),
        guests(http, end, dice),
        victims(server.address, end, dice) if kill else asyncio.sleep(0, 0),
        rude(server.address, http, end, dice),
        measure(),
    )
    await asyncio.sleep(CONSENT if kill else 3)
    left = await server.sample(http)
    assert not watching.done(), watching.exception()
    longest = watcher.longest
    usable = await _follows_a_prompt(watcher.viewer)
    watching.cancel()
    await watcher.viewer.leave()
    # What is held for a moment does not count.
    floors = [min(s["process_resident_memory_bytes"] for s in quarter) / 2**20 for quarter in _quarters(samples)]
    peak = {name: max(sample[name] for sample in samples) for name in samples[0]}
    return {
        "seconds": seconds,
        "messages": said,
        "guests": came,
        "killed": killed,
        "rude_requests": rudeness,
        "frames_of_the_watcher": watcher.frames,
        "longest_gap_seconds": round(longest, 2),
        "follows_a_prompt": usable,
        "alone": alone,
        "peak": peak,
        "left": left,
        "least_mib_by_quarter": [round(floor, 1) for floor in floors],
    }


def _quarters(samples: list) -> list[list]:
    """Four parts in a row; fewer where there are fewer samples."""
    size = max(1, -(-len(samples) // 4))
    return [samples[i : i + size] for i in range(0, len(samples), size)]


async def _follows_a_prompt(viewer: Viewer) -> bool:
    """Whether a new prompt is reported as switched to."""
    await viewer.ask("set_paused", paused=False)
    before = (await viewer.ask("get_latency_stats"))["stats"]
    await viewer.ask("switch_prompt", prompt="is anyone still there?", transition_blocks=1)
    for _ in range(100):
        await asyncio.sleep(0.2)
        now = (await viewer.ask("get_latency_stats"))["stats"]
        if now["prompt_switch_ms"] != before["prompt_switch_ms"] and now["frame_count"] > before["frame_count"]:
            return True
    return False


def _wrong(report: dict) -> list[str]:
    alone, left, floors = report["alone"], report["left"], report["least_mib_by_quarter"]
    return [
        what
        for what, is_wrong in {
            "viewers are left": left["longlive_viewers"] != 1,
            "streams are left": left["longlive_sessions_open"] != 1,
            "tasks are left": left["longlive_event_loop_tasks"] > alone["longlive_event_loop_tasks"] + 1,
            "sockets or files are left": left["process_open_fds"] > alone["process_open_fds"] + 1,
            "memory grew": report["seconds"] >= 600 and floors[3] > 1.02 * floors[1] + 10,
            "the video stood still": report["longest_gap_seconds"] > 10,
            "it does not follow a prompt": not report["follows_a_prompt"],
            "it took long to end": report["seconds"] >= 600 and report["shutdown_seconds"] > 2,
            "it did not end well": report["exit_code"] != 0 or "Traceback" in report["server_said"],
        }.items()
        if is_wrong
    ]


async def watch(address: str) -> None:
    """Watch until killed."""
    with local_addresses(ServerSettings()):
        async with httpx.AsyncClient(base_url=address, timeout=30) as http:
            viewer = await Viewer(http).join()
            while True:
                await viewer.frame()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--watch", metavar="ADDRESS")
    arguments = parser.parse_args()
    if arguments.watch:
        asyncio.run(watch(arguments.watch))
    else:
        result = asyncio.run(soak(60 * arguments.minutes, arguments.messages))
        print(json.dumps(result, indent=2))
        sys.exit(bool(result["wrong"]))
