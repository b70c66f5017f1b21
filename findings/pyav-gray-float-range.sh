#!/usr/bin/env bash
# FFmpeg's float gray is in another range than its integer gray: black of a colour picture becomes 0.0625, and white 0.918.
#
# Versions: av 16.1.0, 17.1.0 and 18.1.0 from PyPI (FFmpeg 8.0.1, 8.1.1, 8.1.2), numpy 2.3.5.
# Who meets it: who takes masks, depth or other control pictures out of a video as floats, frame.to_ndarray(format="grayf32le"), instead of
#   dividing bytes by 255: no mask is ever 0 or 1, so that nothing is kept and nothing is made new. On the way back depth that is written to a
#   video is not brought into the range of video: decoders cut off what is below 16 and above 235.
# Guess: 0 to 1 for 0 to 255, as gray and gray16le have it, since FFmpeg counts all gray as full range.
# Seen (of values 0, 128 and 255):
#   rgb24 to gray, over 255:         0.0000 0.5020 1.0000
#   rgb24 to gray16le, over 65535:   0.0000 0.5019 1.0000
#   rgb24 to grayf32le:              0.0625 0.4919 0.9180
#   rgb24 to gray to grayf32le:      0.0000 0.5020 1.0000
#   gray to yuv420p:                 16 126 235
#   grayf32le to yuv420p:            0 129 255
#   dst_color_range changes neither; frames of a video, in yuv420p, become floats as rgb24 does.
# Exits non-zero if that changes.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
cat > gray.py <<'PYTHON'
import av
import numpy as np

LEVELS = 0, 128, 255


def colour(level):
    return av.VideoFrame.from_ndarray(np.full((64, 64, 3), level, np.uint8), format="rgb24")


def gray(level, form="gray"):
    values = np.full((64, 64), level, np.uint8) if form == "gray" else np.full((64, 64), level / 255, np.float32)
    return av.VideoFrame.from_ndarray(values, format=form)


def luma(frame):
    (value,) = {bytes(frame.reformat(format="yuv420p", **how).planes[0])[0] for how in ({}, {"dst_color_range": 1})}
    return value


seen = {
    "rgb24 to gray, over 255:": [colour(n).to_ndarray(format="gray")[0, 0] / 255 for n in LEVELS],
    "rgb24 to gray16le, over 65535:": [colour(n).to_ndarray(format="gray16le")[0, 0] / 65535 for n in LEVELS],
    "rgb24 to grayf32le:": [colour(n).to_ndarray(format="grayf32le")[0, 0] for n in LEVELS],
    "rgb24 to gray to grayf32le:": [colour(n).reformat(format="gray").to_ndarray(format="grayf32le")[0, 0] for n in LEVELS],
}
for form in ("rgb24", "yuv420p"):
    white = colour(255).reformat(format=form)
    floats = {float(white.reformat(format="grayf32le", dst_color_range=n).to_ndarray()[0, 0]) for n in (1, 2)}
    assert np.allclose(list(floats), 0.918, atol=5e-4), floats
print("av", av.__version__)
for way, values in seen.items():
    print(f"{way:32}", *(f"{value:.4f}" for value in values))
    wanted = (0.0625, 0.4919, 0.918) if way == "rgb24 to grayf32le:" else (0, 128 / 255, 1)
    assert np.allclose(values, wanted, atol=5e-4), values
written = {form: [luma(gray(n, form)) for n in LEVELS] for form in ("gray", "grayf32le")}
print("gray to yuv420p:                ", *written["gray"])
print("grayf32le to yuv420p:           ", *written["grayf32le"])
assert written == {"gray": [16, 126, 235], "grayf32le": [0, 129, 255]}, written
PYTHON
for version in 16.1.0 17.1.0 18.1.0; do
  python3 -m venv "venv-$version"
  "venv-$version/bin/pip" install --quiet --only-binary :all: "av==$version" numpy==2.3.5
  "venv-$version/bin/python" gray.py
done
