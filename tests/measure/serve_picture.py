"""Take docs/serve.png anew: the page in Chromium, where the built-in model on a CPU follows a file of silhouettes.

python tests/measure/serve_picture.py docs/serve.png

Needs the extra ``serve``, Playwright and Chromium, as tests/demo/test_server_page.py does.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import torch
from playwright.sync_api import Page, sync_playwright

from longlive_optimized.tinyworld.render import NATIVE, render
from longlive_optimized.tinyworld.world import Scene, Shape

SIZE = {"width": 1040, "height": 856}
FRAMES, RATE = 32, 16  # of the silhouettes
SEEN = 60  # seconds, until the chart is full
PROMPT = "a yellow circle rests on a blue sea"
FLAGS = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update"


def silhouettes(file: Path) -> None:
    """A disc that rests, as a video that Chromium plays: it looks alike however busy the machine is."""
    scene, centres = Scene((Shape("yellow", "circle"),), "blue", "still"), torch.tensor([[[32.0, 48.0]] * 3])
    frames = render([(scene,)], centres, FRAMES, *NATIVE, silhouettes=True)[0]
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libvpx", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = *NATIVE, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.numpy(), "rgb24")))
        container.mux(stream.encode())


@contextmanager
def served() -> Iterator[str]:
    """The address of ``serve`` with control."""
    code = "from longlive_optimized.cli import main; main()"
    options = ["serve", "--model", "tiny", "--control", "--preset", "quality_stream", "--port", "0", "--prompt", PROMPT]
    server = subprocess.Popen([sys.executable, "-c", code, *options], stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        found = re.search(r"http://\S+", server.stderr.readline())
        assert found is not None
        yield found.group()
    finally:
        server.kill()
        server.wait()


def take(page: Page, address: str, clip: Path, file: Path) -> None:
    page.goto(address)
    page.locator("#pill").filter(has_text="live").wait_for(timeout=120_000)
    page.get_by_role("radio", name="Follow it").click()
    page.set_input_files("#video-file", clip)
    page.wait_for_timeout(1000 * SEEN)
    page.screenshot(path=file)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path)
    file = parser.parse_args().file
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as folder, served() as address, sync_playwright() as playwright:
        clip = Path(folder, "silhouettes.webm")
        silhouettes(clip)
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS.split())
        take(browser.new_page(viewport=SIZE, color_scheme="dark"), address, clip, file)
        browser.close()


if __name__ == "__main__":
    main()
