#!/usr/bin/env bash
# PyAV reads one tile of a photo that a phone has taken, the one at its top left, and nothing says that it is not the whole picture.
#
# Versions: av 16.1.0, 17.1.0 and 18.1.0 from PyPI (FFmpeg 8.0.1, 8.1.1, 8.1.2); imageio 2.38.1; pillow-heif 1.8.1 writes and Pillow 13.0.0 reads the file.
# Who meets it: who reads pictures of users with PyAV, or with imageio's plugin for it. Phones write HEIC as a grid of tiles of 512x512. FFmpeg's
#   library gives each tile as a stream and the grid as a group of streams, of which PyAV has none; FFmpeg's command puts them together.
# Guess: the picture, as of a HEIC without tiles, and turned as its file says; or an error.
# Seen (a picture of 1600x1200, to be shown turned by a quarter):
#   Pillow: 1200x1600
#   av 18.1.0: 512x512, turned by 0, from the first of 12 streams; streams.best("video") is that stream too
#   imageio by PyAV: 512x512
# What helps: such a stream has the disposition "dependent". What is not tiled has not.
# Exits non-zero if that changes.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
python3 -m venv writer
writer/bin/pip install --quiet --only-binary :all: "pillow-heif==1.8.1" "pillow==13.0.0" numpy
writer/bin/python - <<'PYTHON'
import numpy as np
import pillow_heif
from PIL import Image, ImageOps

pillow_heif.register_heif_opener()
exif = Image.Exif()
exif[0x112] = 6
picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8)).resize((1600, 1200))
picture.save("tiled.heic", tile_size=512, exif=exif.tobytes())
picture.save("whole.heic", exif=exif.tobytes())
size = ImageOps.exif_transpose(Image.open("tiled.heic")).size
print("Pillow: {}x{}".format(*size))
assert size == (1200, 1600), size
PYTHON
cat > read.py <<'PYTHON'
import av
import imageio.v3
from av.stream import Disposition

seen = {}
for name in ("tiled", "whole"):
    with av.open(f"{name}.heic") as file:
        streams = file.streams.video
        marked, best = bool(streams[0].disposition & Disposition.dependent), file.streams.best("video").index
        (frame,) = file.decode(video=0)
        seen[name] = frame.width, frame.height, frame.rotation, len(streams), best, marked
width, height, turned, count, best, _ = seen["tiled"]
print(f"av {av.__version__}: {width}x{height}, turned by {turned}, from the first of {count} streams; streams.best is number {best}")
assert seen["tiled"] == (512, 512, 0, 12, 0, True), seen
assert seen["whole"][:2] == (1600, 1200) and seen["whole"][3:] == (1, 0, False), seen
shape = imageio.v3.imread("tiled.heic", plugin="pyav").shape
print("imageio by PyAV: {2}x{1}".format(*shape))
assert shape == (1, 512, 512, 3), shape
PYTHON
for version in 16.1.0 17.1.0 18.1.0; do
  python3 -m venv "venv-$version"
  "venv-$version/bin/pip" install --quiet --only-binary :all: "av==$version" "imageio==2.38.1" numpy
  "venv-$version/bin/python" read.py
done
