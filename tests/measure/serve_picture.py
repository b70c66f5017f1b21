"""Take docs/serve.png anew: the page in Chromium, with the built-in model on a CPU, after a few prompts.

python tests/measure/serve_picture.py docs/serve.png

Needs the extra ``serve``, Playwright and Chromium, as tests/demo/test_server_page.py does.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.chromium import live_page, show, tab

SIZE = {"width": 1280, "height": 760}
SEEN = 1500  # ms until a prompt's picture is kept
RESTS = 7000  # ms until what was typed into is no more marked, and the shapes stand well
PROMPTS = (
    "a white cross, a red disc and a green box glide right across a grey road",
    "a purple square rests on a blue sea",
    "a green circle and a white triangle slide down over a brown desert",
    "a yellow circle and a red triangle stay in place over a black night",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path)
    file = parser.parse_args().file
    options = "--model", "tiny", "--preset", "quality_stream"
    with live_page(*options, viewport=SIZE, color_scheme="dark") as page:
        for prompt in PROMPTS:
            show(page, prompt)
            page.wait_for_timeout(SEEN)
        page.keyboard.press("Alt+KeyO")
        tab(page, "Prompts")
        page.wait_for_timeout(RESTS)
        page.screenshot(path=file)


if __name__ == "__main__":
    main()
