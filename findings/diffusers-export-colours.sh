#!/usr/bin/env bash
# A video that diffusers exports in 720p has other colours in a browser than the same one in 480p.
#
# Versions: diffusers 0.42.1, imageio 2.38.1, imageio-ffmpeg 0.8.1 (FFmpeg 9.0.2), av 18.1.0, playwright 1.65.2; the Chromium that is installed
#   (here 156).
# Who meets it: who publishes what a model of 1280x720 made, compares it with one of 832x480, or trains on exported videos. export_to_video
#   writes by imageio: FFmpeg is given RGB and asked for yuv420p, converts by BT.601 whatever the size, and notes nothing. Players and
#   browsers take what says nothing for BT.601 in standard and BT.709 in high definition.
# Guess: the same colours in both, those of the frames.
# Seen (frames of 200,60,30 and 30,180,60):
#   832x480:  colour space not given; Chromium shows 201,60,31 and 29,180,59
#   1280x720: colour space not given; Chromium shows 214,72,31 and 17,159,59
# What helps: imageio.get_writer(..., output_params=["-vf", "scale=out_color_matrix=bt709", "-colorspace", "bt709", "-color_primaries", "bt709",
#   "-color_trc", "bt709", "-color_range", "tv"]): 201,60,33 and 30,180,64 here.
# Without Chromium only the file is looked at. Exits non-zero if the behaviour changes.
set -euo pipefail
chromium=$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet "diffusers==0.42.1" "imageio==2.38.1" "imageio-ffmpeg==0.8.1" "av==18.1.0" "playwright==1.65.2"
cd "$scratch"
HF_HUB_OFFLINE=1 "$scratch/venv/bin/python" -W ignore - "$chromium" 2>"$scratch/log" <<'PYTHON' || { cat "$scratch/log" >&2; exit 1; }
import base64
import sys
from pathlib import Path

import av
import imageio
import numpy as np
from diffusers.utils import export_to_video
from playwright.sync_api import sync_playwright

COLOURS = np.array(((200, 60, 30), (30, 180, 60)))
UNKNOWN = 2
SHOW = """async (source) => {
  const video = document.createElement("video");
  video.muted = true; video.src = source; document.body.append(video);
  const first = new Promise((done) => video.requestVideoFrameCallback(done));
  await video.play(); await first;
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth; canvas.height = video.videoHeight;
  const drawn = canvas.getContext("2d");
  drawn.drawImage(video, 0, 0);
  return [0.25, 0.75].map((x) => [...drawn.getImageData(x * canvas.width, 99, 1, 1).data].slice(0, 3));
}"""
LABEL = "-vf scale=out_color_matrix=bt709 -colorspace bt709 -color_primaries bt709 -color_trc bt709 -color_range tv".split()


def frames(height, width):
    return [COLOURS.repeat(width // 2, 0)[None].repeat(height, 0) / 255] * 16


def shown(path):
    """The colours as Chromium has them, None without it."""
    if not sys.argv[1]:
        return None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=sys.argv[1], args=["--no-sandbox", "--disable-gpu"])
        found = browser.new_page().evaluate(SHOW, "data:video/mp4;base64," + base64.b64encode(Path(path).read_bytes()).decode())
        browser.close()
    return np.array(found)


def first(path):
    with av.open(path) as file:
        return next(file.decode(video=0))


def says(path):
    colours = shown(path)
    words = "there is no Chromium" if colours is None else "Chromium shows {},{},{} and {},{},{}".format(*colours.ravel())
    return colours, words


for height, width in ((480, 832), (720, 1280)):
    export_to_video(frames(height, width), "exported.mp4", fps=16)
    frame = first("exported.mp4")
    colours, words = says("exported.mp4")
    print(f"{width}x{height}: colour space {'not given' if frame.colorspace == UNKNOWN else frame.colorspace}; {words}")
    by_bt601 = frame.to_ndarray(format="rgb24", src_colorspace="ITU601")[99, [width // 4, 3 * width // 4]]
    assert frame.colorspace == UNKNOWN and np.abs(by_bt601.astype(int) - COLOURS).max() < 6, (frame.colorspace, by_bt601)
    if colours is not None:
        off = np.abs(colours - COLOURS).max()
        assert off < 6 if height == 480 else off > 12, colours
with imageio.get_writer("labelled.mp4", fps=16, quality=10, output_params=LABEL) as writer:
    for picture in frames(720, 1280):
        writer.append_data((picture * 255).round().astype(np.uint8))
colours, words = says("labelled.mp4")
print(f"1280x720 by imageio, labelled: colour space {int(first('labelled.mp4').colorspace)}; {words}")
assert first("labelled.mp4").colorspace == 1 and (colours is None or np.abs(colours - COLOURS).max() < 6), colours
PYTHON
