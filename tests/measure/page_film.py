"""Film the page for docs/loop.webp: in Chromium, with the built-in model, eight seconds in which two prompts are typed.

python tests/measure/page_film.py docs/loop.webp

Needs what serve_picture.py needs, and a machine that does nothing else. It ends with the prompt that it begins with.
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
import time
from pathlib import Path

import av
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from longlive_optimized import Video
from support.chromium import live_page, show

SIZE = {"width": 760, "height": 580}
SHOWN = (608, 464)
SECONDS, RATE = 8, 12
PROMPTS = (
    "a white cross and a yellow triangle drift to the right over a blue sea",
    "a red circle rests on a black night",
)
TYPED_AT = (0.8, 4.6)  # seconds
KEY = 28  # ms between keys


class Film:
    """What the page shows, each picture with its time."""

    def __init__(self, page):
        self.pictures: list[tuple[float, bytes]] = []
        self._session = page.context.new_cdp_session(page)
        self._session.on("Page.screencastFrame", self._keep)
        self._session.send("Page.startScreencast", {"format": "jpeg", "quality": 92})

    def _keep(self, event: dict) -> None:
        self.pictures.append((event["metadata"]["timestamp"], base64.b64decode(event["data"])))
        self._session.send("Page.screencastFrameAck", {"sessionId": event["sessionId"]})

    def end(self) -> None:
        self._session.send("Page.stopScreencast")
        self._session.detach()

    def at(self, moments: list[float]) -> np.ndarray:
        """The picture that was shown at each moment, in seconds since the epoch; RGB [T, H, W, 3]."""
        first = self.pictures[0][0]
        return np.stack([_decoded(max(p for p in self.pictures if p[0] <= max(at, first))[1]) for at in moments])


def _decoded(data: bytes) -> np.ndarray:
    picture = next(av.open(io.BytesIO(data)).decode(video=0))
    return picture.reformat(*SHOWN, format="rgb24", interpolation="AREA").to_ndarray()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path)
    file = parser.parse_args().file
    options = "--model", "tiny", "--preset", "balanced"
    with live_page(*options, viewport=SIZE, color_scheme="dark") as page:
        show(page, PROMPTS[1])
        page.wait_for_timeout(6000)
        film, begun = Film(page), time.time()
        for prompt, at in zip(PROMPTS, TYPED_AT, strict=True):
            page.wait_for_timeout(max(0.0, 1000 * (begun + at - time.time())))
            page.keyboard.type(prompt, delay=KEY)
            page.keyboard.press("Enter")
        page.wait_for_timeout(max(0.0, 1000 * (begun + SECONDS - time.time())))
        film.end()
        Video(film.at([begun + i / RATE for i in range(SECONDS * RATE)]), fps=RATE).save(file)
    print(f"{file}: {file.stat().st_size / 1e6:.2f} MB, {len(film.pictures)} pictures taken")


if __name__ == "__main__":
    main()
