#!/usr/bin/env bash
# A PNG that FFmpeg has written of a video's frame is darker in Chromium than the video beside it, though every pixel is the same.
#
# Versions: av 18.1.0 (FFmpeg 8.1.2) and imageio-ffmpeg 0.8.1 (FFmpeg 9.0.2) from PyPI, playwright 1.65.2; the Chromium that is installed (here 156).
# Who meets it: pages with posters, thumbnails or last frames in front of a video, and tests that compare a screenshot with a frame. FFmpeg
#   hands the video's tags on to the PNG (chunks cICP, gAMA and cHRM: BT.709's curve). Chromium takes them at their word in a picture, and for
#   sRGB in a video. FFmpeg's library also notes the video's range (16 to 235) of pixels that have the full one; its command does not.
# Guess: the same pixels are shown as the same colours.
# Seen (a tagged H.264 of four colours, and its first frame, saved by frame.save("still.png") and by ffmpeg's command, in a canvas):
#   the video:            20,20,20   64,64,64   128,128,128   201,60,33
#   PNG by PyAV:          11,11,11   62,62,62   129,129,129   200,55,23
#   PNG by ffmpeg:        6,6,6      54,54,54   121,121,121   196,47,17
#   PNG without its tags: 19,19,19   64,64,64   128,128,128   199,58,29
# What helps: a frame made anew of its pixels, VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"), format="rgb24").
# Without Chromium there is nothing to see, and the script says so. Exits non-zero if the behaviour changes.
set -euo pipefail
chromium=$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)
if [ -z "$chromium" ]; then
  echo "there is no Chromium: nothing to see"
  exit 0
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --only-binary :all: "av==18.1.0" "imageio-ffmpeg==0.8.1" "playwright==1.65.2" numpy
cd "$scratch"
"$scratch/venv/bin/python" - "$chromium" <<'PYTHON'
import base64
import subprocess
import sys
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
from playwright.sync_api import sync_playwright

COLOURS = (20, 20, 20), (64, 64, 64), (128, 128, 128), (200, 60, 30)
SHOW = """async ([kind, source]) => {
  const shown = document.createElement(kind);
  shown.muted = true; shown.src = source; document.body.append(shown);
  if (kind === "img") await shown.decode();
  else { const first = new Promise((done) => shown.requestVideoFrameCallback(done)); await shown.play(); await first; }
  const canvas = document.createElement("canvas");
  canvas.width = 256; canvas.height = 64;
  const drawn = canvas.getContext("2d");
  drawn.drawImage(shown, 0, 0);
  return [0, 1, 2, 3].map((n) => [...drawn.getImageData(64 * n + 32, 5, 1, 1).data].slice(0, 3));
}"""

picture = np.repeat(np.array([COLOURS], np.uint8), 64, 1).repeat(64, 0)
with av.open("video.mp4", "w") as container:
    stream = container.add_stream("libx264", rate=16, options={"crf": "1"})
    stream.width, stream.height, stream.pix_fmt = 256, 64, "yuv420p"
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1
    for _ in range(16):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=1, dst_color_range=1)))
    container.mux(stream.encode())


def first(path):
    with av.open(path) as container:
        return next(container.decode(video=0))


frame = first("video.mp4")
pixels = frame.to_ndarray(format="rgb24")
frame.save("pyav.png")
av.VideoFrame.from_ndarray(pixels, format="rgb24").save("plain.png")
ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
subprocess.run([ffmpeg, "-v", "error", "-i", "video.mp4", "-frames:v", "1", "-update", "1", "ffmpeg.png"], check=True)
for name in ("pyav.png", "plain.png", "ffmpeg.png"):
    assert np.array_equal(first(name).to_ndarray(format="rgb24"), pixels), name
shown = {
    "the video": ("video", "video/mp4", "video.mp4"),
    "PNG by PyAV": ("img", "image/png", "pyav.png"),
    "PNG by ffmpeg": ("img", "image/png", "ffmpeg.png"),
    "PNG without its tags": ("img", "image/png", "plain.png"),
}
with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=sys.argv[1], args=["--no-sandbox", "--disable-gpu"])
    print("Chromium", browser.version)
    page = browser.new_page()
    for name, (kind, media, path) in shown.items():
        source = f"data:{media};base64,{base64.b64encode(Path(path).read_bytes()).decode()}"
        shown[name] = page.evaluate(SHOW, [kind, source])
        print(f"{name + ':':21}", *("{},{},{}".format(*colour).ljust(11) for colour in shown[name]))
    browser.close()
off = {name: np.abs(np.array(colours) - COLOURS) for name, colours in shown.items()}
assert off["the video"].max() < 5 and off["PNG without its tags"].max() < 5, shown
assert off["PNG by PyAV"][0].min() > 5 and off["PNG by ffmpeg"][:3].min() > 5, shown
PYTHON
