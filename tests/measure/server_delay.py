"""How late the picture is: ``python tests/measure/server_delay.py``, on loopback, with a pipeline that paints numbers.

made -> decoded: from when a frame's block is finished until the peer has decoded it; it waits for its turn in between.
shown -> decoded: from when its turn has come. aiortc's receiver gives a frame out when the next one begins to arrive,
    so an interval is in it that a browser does not add.
prompt -> decoded: from the message to the first frame of a new prompt.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.painted import level, painted, read_level, read_number
from support.server_peer import Viewer, visit


async def measure(block_seconds: float, height: int, width: int, prompts: int) -> dict:
    """Milliseconds, as medians and 99th percentiles."""
    made, shown, switched = [], [], []
    async with visit(painted(block_seconds, height=height, width=width)) as (room, http):
        due: dict[int, float] = {}
        show = room._broadcast._show

        def note(picture, at) -> None:  # the rows of Y are like those of the picture
            due.setdefault(read_number(picture[:height, :, None].repeat(3, axis=2)), time.monotonic())
            show(picture, at)

        room._broadcast._show = note
        viewer = await Viewer(http).join()
        for _ in range(75):
            await viewer.frame()
        for turn in range(prompts):
            prompt = f"prompt {turn}"
            if level(prompt) == level(room.feed.prompt.prompt):
                continue
            asked = time.monotonic()
            viewer.say({"type": "switch_prompt", "prompt": prompt})
            waiting = True
            for _ in range(random.randint(50, 75)):
                picture = await viewer.picture()
                now, number = time.monotonic(), read_number(picture)
                made.append(now - room.feed.pipeline.painted[number])
                shown.append(now - due.get(number, now))
                if waiting and read_level(picture) == level(prompt):
                    switched.append(now - asked)
                    waiting = False
        await viewer.leave()
    named = {"made -> decoded": made, "shown -> decoded": shown, "prompt -> decoded": switched}
    return {name: summary(values) for name, values in named.items()}


def summary(seconds: list[float]) -> dict:
    ordered = sorted(1e3 * value for value in seconds)
    highest = ordered[round(0.99 * (len(ordered) - 1))]
    return {"median_ms": round(statistics.median(ordered), 1), "p99_ms": round(highest, 1), "count": len(ordered)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--block-ms", type=float, default=300)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=832)
    parser.add_argument("--prompts", type=int, default=20)
    given = parser.parse_args()
    result = asyncio.run(measure(given.block_ms / 1e3, given.height, given.width, given.prompts))
    print(json.dumps(vars(given) | result, indent=2))
