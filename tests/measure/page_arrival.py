"""From Enter to a prompt's first picture on the screen, as the page has it: ``python tests/measure/page_arrival.py``.

The page in Chromium, headless, against ``serve`` on this machine. Beside what the page says, and the engine's own time,
is what a look at each picture finds: when the ground first has another colour than before Enter. Prompts come at random
within a block. Seconds, medians and the largest; ``off`` is the page less the look.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.chromium import live_page, show
from support.looks import LOOK

GROUNDS = "a yellow triangle rests on a brown desert", "a yellow triangle rests on a black night"
SAID = re.compile(r"Seen ([\d.]+) s after Enter · the engine took ([\d.]+) s")


def measure(page, prompts: int) -> list[tuple[float, float, float]]:
    """Of each prompt: what the page says, the engine's own, and what is seen."""
    found, chance = [], random.Random(0)
    show(page, GROUNDS[-1])
    for i in range(prompts):
        page.wait_for_timeout(3000 + 750 * chance.random())
        page.evaluate(LOOK)
        page.wait_for_timeout(300)
        show(page, GROUNDS[i % 2])
        for _ in range(100):
            if page.evaluate("window.looked.changed"):
                break
            page.wait_for_timeout(50)
        said = SAID.fullmatch(page.locator("#arrival-words").inner_text())
        seen = page.evaluate("(window.looked.changed - window.looked.entered) / 1e3")
        if said:
            found.append((float(said[1]), float(said[2]), seen))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", default="balanced")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    options = "--model", "tiny", "--preset", arguments.preset
    with live_page(*options, viewport={"width": 960, "height": 640}) as page:
        found = measure(page, arguments.prompts)
    columns = {
        "page": [row[0] for row in found],
        "engine": [row[1] for row in found],
        "look": [row[2] for row in found],
    }
    columns["off"] = [row[0] - row[2] for row in found]
    report = {
        name: {"median": statistics.median(column), "max": max(column, key=abs)} for name, column in columns.items()
    }
    report = {"prompts": len(found), **report}
    print(json.dumps(report, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
