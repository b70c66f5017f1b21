#!/usr/bin/env bash
# PyAV's conversion of a video's frame to RGBA leaves the last columns unwritten at some widths: they hold what was in memory before.
#
# Versions: av 17.1.0 and 18.1.0 from PyPI (FFmpeg 8.1.1, 8.1.2; x86-64, Linux, glibc); imageio-ffmpeg 0.8.1 (FFmpeg 9.0.2).
# Who meets it: who takes frame.to_ndarray(format="rgba"), "bgra" or "gbrp" of H.264, VP8 or lossy WebP with transparency whose width
#   is no multiple of 16: a stripe at the right edge that flickers, pictures that differ from run to run. Widths of a multiple of 16,
#   "rgb24" and to_image() are whole, so that it is easily overlooked. ComfyUI worked around its likes in gbrpf32le (pull request 14438).
# Guess: all columns, as for rgb24, or as FFmpeg's command, whose lines have more room at their end.
# Seen (of a frame of one colour in yuv420p, even widths from 18 to 256, glibc told to fill fresh memory):
#   rgba, bgra: the last 2 or 4 columns where the width is 2 or 4 above a multiple of 16, in 30 of 120 widths
#   gbrp: the last 2, 4, 6 or 8 columns where it is 2 to 8 above, in 60 of 120 widths; so with 854 and 1366
#   rgb24: none
#   ffmpeg -pix_fmt rgba, 66 wide: all columns
# What helps: reformat(format="yuv444p"), or "yuva444p", before.
# Exits non-zero if that changes.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
cat > columns.py <<'PYTHON'
import subprocess

import av
import imageio_ffmpeg
import numpy as np

SHOWN = 200, 60, 30


def unwritten(width, form, by_way_of=None):
    """How many columns at the right edge are not as the others."""
    frame = av.VideoFrame(width, 16, "yuv420p")
    for plane, value in zip(frame.planes, (101, 94, 192)):
        plane.update(bytes([value]) * plane.buffer_size)
    frame = frame.reformat(format=by_way_of) if by_way_of else frame
    colours = frame.to_ndarray(format=form)[8, :, :3].astype(int)
    wrong = np.nonzero(np.abs(colours - (SHOWN[::-1] if form == "bgra" else SHOWN)).max(1) > 4)[0]
    assert not len(wrong) or np.array_equal(wrong, np.arange(width - len(wrong), width)), wrong
    return len(wrong)


print("av", av.__version__)
WIDTHS = range(18, 257, 2)
for form, most in (("rgba", 4), ("bgra", 4), ("gbrp", 8), ("rgb24", 0)):
    found = {width: unwritten(width, form) for width in WIDTHS}
    print(f"{form}: columns {sorted(set(found.values()))}, in {sum(map(bool, found.values()))} of {len(WIDTHS)} widths")
    assert found == {width: width % 16 if width % 16 <= most else 0 for width in WIDTHS}, found
assert (unwritten(854, "gbrp"), unwritten(1366, "gbrp")) == (6, 6)
assert not any(unwritten(width, "rgba", "yuv444p") for width in WIDTHS)
made = "color=0xc83c1e:s=66x16:d=0.04,format=yuv420p"
command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", made, "-f", "rawvideo", "-pix_fmt", "rgba", "-"]
data = subprocess.run(command, check=True, capture_output=True).stdout
wrong = (np.abs(np.frombuffer(data, np.uint8).reshape(16, 66, 4)[8, :, :3].astype(int) - SHOWN).max(1) > 4).sum()
print("ffmpeg -pix_fmt rgba, 66 wide:", wrong, "columns")
assert wrong == 0
PYTHON
for version in 17.1.0 18.1.0; do
  python3 -m venv "venv-$version"
  "venv-$version/bin/pip" install --quiet --only-binary :all: "av==$version" "imageio-ffmpeg==0.8.1" numpy
  MALLOC_PERTURB_=170 "venv-$version/bin/python" columns.py
done
