"""Files of video whose frames say which they are."""

from fractions import Fraction

import av
import numpy as np

LEVELS = 2  # between one frame and the next


def lossless(path, frames, rate=16, codec=None, pix_fmt="rgb24", times=None):
    """Write RGB frames [T, H, W, 3] to an mkv, mov or png; times: of each, in milliseconds."""
    if codec is None:
        codec, pix_fmt = ("ffv1", "bgr0") if path.suffix == ".mkv" else ("png", "rgb24")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(rate))
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pix_fmt
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = (times[i], Fraction(1, 1000)) if times else (i, 1 / Fraction(rate))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def ramp(count, height=32, width=48):
    """Grey frames, each brighter than the one before."""
    return [np.full((height, width, 3), LEVELS * i, np.uint8) for i in range(count)]


def numbers(pictures):
    return [int(picture[0, 0, 0]) // LEVELS for picture in pictures]


def random_picture(height, width, seed=0):
    """Patches of 8 pixels."""
    some = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return some.repeat(8, 0).repeat(8, 1)


def encoded(picture, codec, pix_fmt):
    """The bytes of a picture file of RGB or RGBA pixels [H, W, C]."""
    frame = av.VideoFrame.from_ndarray(picture, format="rgba" if picture.shape[2] == 4 else "rgb24")
    encoder = av.CodecContext.create(codec, "w")
    encoder.height, encoder.width, encoder.pix_fmt = *picture.shape[:2], pix_fmt
    encoder.time_base = Fraction(1, 1)
    packets = [*encoder.encode(frame.reformat(format=pix_fmt)), *encoder.encode(None)]
    return b"".join(bytes(packet) for packet in packets)
