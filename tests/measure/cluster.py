"""Sessions of a cluster on this machine while a replica is killed: how long each stood still.

    python tests/measure/cluster.py [--replicas 3] [--seats 6] [--sessions 12] [--speed 0.5] [--json FILE]

Viewers are real connections, decoded here: on a small machine they, and not the replicas, take most of the time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.cluster import Watcher, cluster, kill, place, until


async def measure(arguments: argparse.Namespace) -> dict:
    """Longest time without a new picture of each session: before, and from the kill on."""
    config = {"seats": arguments.seats, "replicas": arguments.replicas, "playback_speed": arguments.speed}
    async with cluster(**config, preset=arguments.preset) as http:
        watchers = [Watcher(http, f"s{i}") for i in range(arguments.sessions)]
        await until(lambda: all(len(one.new) > 32 * arguments.speed for one in watchers), 180)
        started = time.monotonic()
        await asyncio.sleep(arguments.seconds)
        places = await place(http)
        killed = time.monotonic()
        kill(places[watchers[0].name])
        await asyncio.sleep(arguments.seconds)
        rows = [
            {
                "session": one.name,
                "lost": places[one.name] == places[watchers[0].name],
                "gap_before_s": round(one.gap(started, killed), 2),
                "gap_after_s": round(one.gap(killed), 2),
                "next_new_frame_s": round(one.after(killed + 0.5) + 0.5, 2),
                "connections": one.connected,
                "resumed": one.resumed,
                "pictures": len(one.new),
            }
            for one in watchers
        ]
        await asyncio.gather(*(one.leave() for one in watchers))
    return vars(arguments) | {"sessions": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--seats", type=int, default=6)
    parser.add_argument("--sessions", type=int, default=12)
    parser.add_argument("--speed", type=float, default=0.5)
    parser.add_argument("--preset", default="ultra")
    parser.add_argument("--seconds", type=float, default=20, help="before the kill, and after it")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = asyncio.run(measure(arguments))
    for row in found["sessions"]:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2, default=str))


if __name__ == "__main__":
    main()
