#!/usr/bin/env bash
# A JPEG or lossy WebP that FFmpeg has written of a video in high definition shows its colours wrong in every program.
#
# Versions: av 18.1.0 (FFmpeg 8.1.2) and imageio-ffmpeg 0.8.1 (FFmpeg 9.0.2) from PyPI, Pillow 13.0.0.
# Who meets it: who makes thumbnails, previews or JPEG streams of frames, by PyAV's frame.save("still.jpg") or with ffmpeg's command. Values of
#   Y, Cb and Cr go into the file as they are, by BT.709's matrix; in these formats there is but one, BT.601's (JFIF; RFC 9649, WebP), and no
#   tag. FFmpeg brings the range into what JPEG wants, but not the matrix.
# Guess: converted, since the frame says what it is and the formats allow one matrix alone.
# Seen (of 200,60,30 and 30,180,60; Pillow reads the files):
#   the frame, frame.to_ndarray(format="rgb24"):   199,58,29  29,179,58
#   JPEG by PyAV, frame.save("still.jpg"):         187,47,32  42,205,62
#   JPEG by ffmpeg:                                187,47,32  42,205,62
#   WebP by PyAV, from yuv420p:                    188,47,33  42,204,63
#   JPEG by PyAV, reformat(dst_colorspace=ITU601): 198,59,28  27,180,56
# Exits non-zero if that changes.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --only-binary :all: "av==18.1.0" "imageio-ffmpeg==0.8.1" "pillow==13.0.0" numpy
cd "$scratch"
"$scratch/venv/bin/python" - <<'PYTHON'
import io
import subprocess
from fractions import Fraction

import av
import imageio_ffmpeg
import numpy as np
from av.video.reformatter import Colorspace
from PIL import Image

COLOURS = (200, 60, 30), (30, 180, 60)
picture = np.repeat(np.array([COLOURS], np.uint8), 640, 1).repeat(720, 0)
with av.open("video.mp4", "w") as container:
    stream = container.add_stream("libx264", rate=16, options={"crf": "5"})
    stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1  # BT.709, 16 to 235
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=1)))
    container.mux(stream.encode())


def still(codec, form, **how):
    encoder = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 1280, 720, form, Fraction(1, 16)
    converted = frame.reformat(format=form, **how)
    converted.pts = 0
    return io.BytesIO(b"".join(bytes(packet) for packet in [*encoder.encode(converted), *encoder.encode(None)]))


with av.open("video.mp4") as container:
    frame = next(container.decode(video=0))
ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
command = [ffmpeg, "-v", "error", "-i", "video.mp4", "-frames:v", "1", "-update", "1", "-q:v", "1", "ffmpeg.jpg"]
subprocess.run(command, check=True)
frame.save("still.jpg", qscale=1)
found = {
    'the frame, frame.to_ndarray(format="rgb24"):': frame.to_ndarray(format="rgb24"),
    'JPEG by PyAV, frame.save("still.jpg"):': Image.open("still.jpg"),
    "JPEG by ffmpeg:": Image.open("ffmpeg.jpg"),
    "WebP by PyAV, from yuv420p:": Image.open(still("libwebp", "yuv420p")),
    "JPEG by PyAV, reformat(dst_colorspace=ITU601):": Image.open(still("mjpeg", "yuvj420p", dst_colorspace=Colorspace.ITU601)),
}
for way, read in found.items():
    colours = np.asarray(read).astype(int)[360, [320, 960]]
    print(f"{way:46}", *("{},{},{}".format(*colour).ljust(10) for colour in colours))
    off = np.abs(colours - COLOURS).max()
    right = way.startswith("the frame") or "ITU601" in way
    assert off < 6 if right else 20 < off < 30, (way, colours)
PYTHON
