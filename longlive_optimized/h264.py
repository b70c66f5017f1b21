"""H.264 of RGB pictures, in the colours that players expect of a picture's size, and tagged as that."""

from __future__ import annotations

from collections.abc import Mapping

import av
import numpy as np

LIMITED = 1  # MPEG's range of values, 16 to 235
BT709, BT601 = 1, 6  # colour spaces, primaries and curves have the same numbers (ITU-T H.273)
MATRIX = {BT709: 1, BT601: 5}  # swscale's numbers
INTERPOLATION = "BICUBIC"


def add_stream(container, height: int, width: int, fps: int, options: Mapping[str, str]):
    """A tagged stream of an av container, whose bytes depend on nothing but the pictures and the options."""
    # With AVX-512 x264's macroblock tree depends on what lies in fresh memory (findings/x264-avx512-heap.sh).
    own = {"x264-params": "cpu-independent=1"}
    stream = container.add_stream("libx264", rate=fps, options={**options, **own})
    stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = colours(height, width)
    context.color_range = LIMITED
    return stream


def as_frame(picture: np.ndarray, height: int, width: int) -> av.VideoFrame:
    """An RGB picture, uint8 [H, W, 3], as a frame of such a stream, scaled to its size."""
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    target = {"height": height, "width": width, "format": "yuv420p", "dst_colorspace": MATRIX[colours(height, width)]}
    return frame.reformat(**target, dst_color_range=LIMITED, interpolation=INTERPOLATION)


def colours(height: int, width: int) -> int:
    """BT.709 for HD and BT.601 below, where players that see no tag draw the line."""
    return BT709 if height > 576 or width >= 1280 else BT601
