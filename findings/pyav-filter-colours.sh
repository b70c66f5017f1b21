#!/usr/bin/env bash
# A scale filter in PyAV's graph turns a video in high definition into standard definition's colours, and takes its label off.
#
# Versions: av 17.1.0 and 18.1.0 from PyPI (FFmpeg 8.1.1, 8.1.2); imageio-ffmpeg 0.8.1 (FFmpeg 9.0.2).
# Who meets it: who scales a video with av.filter.Graph and encodes what comes out. Its values of Y, Cb and Cr are converted to BT.601's, and the
#   frame says nothing about that, so the file does not; players take high definition without a label for BT.709: reds and greens are off
#   by ten and more. It needs no conversion in the graph's text, and with add_buffer(template=stream) it is the same: the graph is not told
#   the colours that it starts from. Filters that do not scale keep values and label.
# Guess: as FFmpeg's command, which scales the same video and leaves its colours alone.
# Seen (a BT.709 video of 200,60,30 in 1920x1080 made 1280x720; Y, Cb, Cr and colour space, 1 is BT.709 and 2 unknown):
#   the video:              91 101 191  1
#   crop=1280:720 by PyAV:  91 101 191  1
#   scale=1280:720 by PyAV: 99 94 192   2, which a player shows as 210,68,24
#   scale by ffmpeg:        91 101 191  1
# What helps: frame.reformat(width, height), which keeps both.
# Exits non-zero if that changes.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
cat > scale.py <<'PYTHON'
import subprocess

import av
import av.filter
import imageio_ffmpeg
import numpy as np

BT709 = 1


def picture():
    frame = av.VideoFrame.from_ndarray(np.full((1080, 1920, 3), (200, 60, 30), np.uint8), format="rgb24")
    return frame.reformat(format="yuv420p", dst_colorspace=BT709, dst_color_range=1)


def filtered(name, arguments):
    with av.open("video.mp4") as file:
        graph = av.filter.Graph()
        chain = graph.add_buffer(template=file.streams.video[0]), graph.add(name, arguments), graph.add("buffersink")
        graph.link_nodes(*chain).configure()
        graph.push(next(file.decode(video=0)))
        graph.push(None)
        return graph.pull()


def first(path):
    with av.open(path) as file:
        return next(file.decode(video=0))


def colours(frame):
    return *(bytes(plane)[4 * plane.line_size + 40] for plane in frame.planes), int(frame.colorspace)


with av.open("video.mp4", "w") as container:
    stream = container.add_stream("libx264", rate=16, options={"crf": "5"})
    stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = context.color_range = BT709  # 1 of each
    container.mux(stream.encode(picture()))
    container.mux(stream.encode())
ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-i", "video.mp4", "-vf", "scale=1280:720", "-crf", "5", "scaled.mp4"]
subprocess.run(ffmpeg, check=True)
scaled = filtered("scale", "1280:720")
found = {
    "the video:": colours(first("video.mp4")),
    "crop=1280:720 by PyAV:": colours(filtered("crop", "1280:720")),
    "scale=1280:720 by PyAV:": colours(scaled),
    "scale by ffmpeg:": colours(first("scaled.mp4")),
    "reformat by PyAV:": colours(first("video.mp4").reformat(width=1280, height=720)),
}
print("av", av.__version__)
for way, (y, cb, cr, space) in found.items():
    print(f"{way:24}", y, cb, cr, "", space)
shown = scaled.reformat(format="rgb24", src_colorspace=BT709).to_ndarray()[4, 40]
print("the scaled one, shown as BT.709:", *shown)
video = found.pop("the video:")
assert np.abs(np.subtract(video, (91, 101, 191, BT709))).max() <= 2 and video[3] == BT709, video
y, cb, cr, space = found.pop("scale=1280:720 by PyAV:")
assert y - video[0] > 5 and cb - video[1] < -4 and space == 2 and shown[0] > 205 and shown[1] > 64, (y, cb, cr, space, shown)
for colour in found.values():
    assert np.abs(np.subtract(colour, video)).max() <= 1 and colour[3] == BT709, found
PYTHON
for version in 17.1.0 18.1.0; do
  python3 -m venv "venv-$version"
  "venv-$version/bin/pip" install --quiet --only-binary :all: "av==$version" "imageio-ffmpeg==0.8.1" numpy
  "venv-$version/bin/python" scale.py
done
