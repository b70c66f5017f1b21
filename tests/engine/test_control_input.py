"""Control contexts against an independent restatement of docs/model.md 14.3, in NumPy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from longlive_optimized import Control
from longlive_optimized.engine.control_input import ControlInput, Grey, cover, mask_channels, prepare_masks, steer
from longlive_optimized.vae.backends import codec_for
from longlive_optimized.vae.stream import EncoderStream
from longlive_optimized.weights.load import load_vae
from longlive_optimized.weights.locate import locate

H, W = 32, 48
LIKE = torch.zeros(16, H // 8, W // 8)


@pytest.fixture(scope="module")
def codec():
    return codec_for(load_vae(locate("tiny"), "cpu", torch.float32))


def pictures(seed, count=12, shape=(H, W, 3)):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def boxes(seed, count=12):
    """Masks of moving boxes, white on black, with grey edges."""
    masks = np.zeros((count, H, W), np.uint8)
    for t in range(count):
        masks[t, 4 : 20 + seed, 8 + t : 30 + t] = 255
        masks[t, 3, 8 + t : 30 + t] = 100
        masks[t, 2, 8 + t : 30 + t] = 200
    return masks


def picked(count, wanted):
    """Frames at rounded points of equal steps."""
    return [int(np.rint(np.float32(i * (count - 1)) / np.float32(wanted - 1))) for i in range(wanted)]


class Restated:
    """One stream's contexts by the text: own states, everything encoded."""

    def __init__(self, codec):
        self.codec, self.inactive, self.reactive = codec, EncoderStream(codec), EncoderStream(codec)

    def encode(self, encoder, frames):
        return encoder.encode(torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))).numpy()

    def masked(self, frames, masks):
        """frames [T, H, W, 3] in [-1, 1], masks [T, H, W] in [0, 1] to [F, 96, h, w]."""
        b = (masks > 0.5).astype(np.float32)[..., None]
        z_i = self.encode(self.inactive, frames * (1 - b))
        z_r = self.encode(self.reactive, frames * b)
        count, latents = len(masks), len(z_i)
        m = np.zeros((latents, 64, H // 8, W // 8), np.float32)
        for f in range(latents):
            at = int(np.floor((f + 0.5) * count / latents))
            for a in range(8):
                for b in range(8):
                    m[f, 8 * a + b] = masks[at, a::8, b::8]
        return np.concatenate((z_i, z_r, m), 1)

    def alone(self, picture):
        z = self.encode(EncoderStream(self.codec), picture[None])
        return np.concatenate((z, np.zeros((1, 80, *z.shape[2:]), np.float32)), 1)

    def context(self, count, frames=None, masks=None, reference=None, first=None, last=None):
        v = np.zeros((count, H, W, 3), np.float32)
        m = np.ones((count, H, W), np.float32)
        if frames is not None:
            v = scaled(frames[picked(len(frames), count)])
        if masks is not None:
            m = masks[picked(len(masks), count)].astype(np.float32) / np.float32(255)
        for picture, place in ((first, slice(0, 4)), (last, slice(8, 12))):
            if picture is not None:
                v, m = v[:12], m[:12]
                show = (m[place] > 0.5)[..., None]
                v[place] = np.where(show, scaled(picture), v[place])
                m[place] = 0
        parts = [] if reference is None else [self.alone(scaled(reference))]
        if frames is not None or first is not None or last is not None:
            parts.append(self.masked(v, m))
        return np.concatenate(parts)


def scaled(frames):
    return frames.astype(np.float32) / np.float32(255) * np.float32(2) - np.float32(1)


def given(codec, grey=None):
    return ControlInput(codec, None, grey or Grey(), LIKE)


FRAMES, MASKS = pictures(1, 48), np.concatenate([boxes(k) for k in range(4)])
PICTURE, OTHER = pictures(2, 2)


def wishes(kind, block):
    """What block ``block`` is given, as keywords of ``Restated.context`` and as a Control."""
    some = slice(12 * block, 12 * block + 12)
    frames, masks = FRAMES[some], MASKS[some]
    told = {
        "frames": {"frames": frames},
        "fewer": {"frames": frames[:5]},
        "masks": {"frames": frames, "masks": masks},
        "fewer masks": {"frames": frames, "masks": masks[:7]},
        "reference": {"reference": PICTURE},
        "both": {"frames": frames, "masks": masks, "reference": PICTURE},
        "first": {"first": PICTURE},
        "last": {"last": PICTURE},
        "ends": {"first": PICTURE, "last": OTHER},
        "first and frames": {"frames": frames, "first": PICTURE},
        "all": {"frames": frames, "masks": masks, "first": PICTURE, "last": OTHER, "reference": OTHER},
    }[kind]
    names = {"reference": "references", "first": "first_frame", "last": "last_frame"}
    control = {names.get(name, name): [value] if name == "reference" else value for name, value in told.items()}
    return told, Control(**control)


KINDS = (
    *("frames", "fewer", "masks", "fewer masks", "reference", "both"),
    *("first", "last", "ends", "first and frames", "all"),
)


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_contexts_are_those_of_the_restatement(codec, kind, start):
    """Masks bit for bit, latents up to the order of an encoder's sums: for a video's first blocks, and for control that
    begins in a video's midst."""
    restated, mine, position = Restated(codec), given(codec), start
    for block in range(3):
        told, control = wishes(kind, block)
        got = mine.context(control, position, 3)
        wanted = restated.context(13 if position == 0 else 12, **told)
        if kind == "reference":
            assert got.shape == (1, 96, 4, 6)
        assert got.shape == wanted.shape
        assert np.array_equal(got[:, 32:].numpy(), wanted[:, 32:])
        np.testing.assert_allclose(got.numpy(), wanted, atol=2e-5)
        position += 3


@pytest.mark.parametrize(("count", "frames", "wanted"), [(12, 3, [2, 6, 10]), (13, 4, [1, 4, 8, 11])])
def test_masks_frames(count, frames, wanted):
    masks = torch.arange(count).float().view(-1, 1, 1, 1).expand(-1, 1, 16, 16)
    assert mask_channels(masks, frames)[:, 0, 0, 0].tolist() == wanted


def test_masks_of_other_sizes_and_channels():
    masks = pictures(3, 5, (20, 31))
    plain = prepare_masks(torch.from_numpy(masks), 12, H, W, LIKE.device)
    resized = F.interpolate(torch.from_numpy(masks).float()[:, None], (H, W), mode="bilinear", align_corners=False)
    torch.testing.assert_close(plain, resized[picked(5, 12)] / 255, rtol=0, atol=1e-6)
    for channels in (1, 3):
        same = np.repeat(masks[..., None], channels, 3)
        torch.testing.assert_close(prepare_masks([*map(torch.from_numpy, same)], 12, H, W, LIKE.device), plain)


@pytest.mark.parametrize("size", [(20, 20), (100, 30), (32, 48), (64, 96), (33, 47), (333, 480), (7, 900)])
def test_a_picture_covers_the_frame(size):
    """Its middle is the frame's, nothing is stretched."""
    rows, columns = np.meshgrid(np.arange(size[0]), np.arange(size[1]), indexing="ij")
    picture = np.stack((rows / size[0], columns / size[1], np.ones(size)), 2) * 255
    got = cover(torch.from_numpy(picture.astype(np.uint8)), LIKE)
    assert got.shape == (3, H, W)
    scale = max(H / size[0], W / size[1])
    for axis, (full, shown) in enumerate(zip(size, (H, W), strict=True)):
        line = got[axis].mean(1 - axis)
        assert abs(line.mean()) < 0.06 + 2 / full
        wanted = 2 * shown / (full * scale)
        assert abs((line[-1] - line[0]) - wanted * (1 - 1 / shown)) < 0.05 + 4 / full


def test_one_colour_is_encoded_once(codec, monkeypatch):
    """Where masks are white what is kept is grey, whose latents all streams of an engine share."""
    grey, encoded = Grey(), []
    real = EncoderStream.encode
    monkeypatch.setattr(EncoderStream, "encode", lambda self, frames: encoded.append(frames) or real(self, frames))
    for masks in (None, np.full((12, H, W), 255, np.uint8), np.full((3, 9, 9, 3), 140, np.uint8)):
        mine = given(codec, grey)
        for block in range(3):
            mine.context(Control(FRAMES, masks), 3 * block, 3)
    constant = sum(1 for frames in encoded if not frames.any())
    assert 3 <= constant <= 16 and len(encoded) == constant + 9
    assert [len(frames) for frames in encoded[-3:]] == [13, 12, 12]


@pytest.mark.parametrize("start", [0, 3])
def test_grey_is_what_an_encoder_gives_however_long_the_stream(codec, start):
    mine, encoder = given(codec), EncoderStream(codec)
    for block in range(20):
        got = mine.context(Control(FRAMES[:12]), start + 3 * block, 3)
        wanted = encoder.encode(torch.zeros(13 if block + start == 0 else 12, 3, H, W))
        torch.testing.assert_close(got[:, :16], wanted, rtol=0, atol=1e-5)


def test_what_is_kept_late_is_encoded_as_if_from_the_start(codec):
    """The encoder of what is kept is not there while nothing is; then it is shown the grey that it would have seen."""
    restated, mine = Restated(codec), given(codec)
    for block, kind in enumerate(("frames", "frames", "masks", "frames")):
        told, control = wishes(kind, block)
        got = mine.context(control, 3 * block, 3)
        np.testing.assert_allclose(got.numpy(), restated.context(12 + (block == 0), **told), atol=2e-5)


def test_frames_that_have_stopped_begin_anew(codec):
    mine = given(codec)
    told, control = wishes("masks", 0)
    for position in (0, 3, 9):  # the block at 6 had none
        got = mine.context(control, position, 3)
    np.testing.assert_allclose(got.numpy(), Restated(codec).context(12, **told), atol=2e-5)
    mine.context(control, 12, 3)
    mine.reset()  # a cut
    np.testing.assert_allclose(mine.context(control, 15, 3).numpy(), got.numpy(), atol=2e-5)


def test_a_failure_leaves_no_half_of_a_past(codec, monkeypatch):
    mine = given(codec)
    told, control = wishes("masks", 0)
    mine.context(control, 3, 3)
    real, calls = EncoderStream.encode, []

    def fail(self, frames):
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("out of memory")
        return real(self, frames)

    monkeypatch.setattr(EncoderStream, "encode", fail)
    with pytest.raises(torch.OutOfMemoryError):
        mine.context(control, 6, 3)
    np.testing.assert_allclose(mine.context(control, 6, 3).numpy(), Restated(codec).context(12, **told), atol=2e-5)


def test_a_reference_is_encoded_while_it_changes(codec, monkeypatch):
    encoded = []
    real = EncoderStream.encode
    monkeypatch.setattr(EncoderStream, "encode", lambda self, frames: encoded.append(len(frames)) or real(self, frames))
    mine, picture = given(codec), PICTURE.copy()
    first = mine.context(Control(references=[picture]), 0, 3)
    assert torch.equal(first, mine.context(Control(references=[PICTURE, OTHER]), 3, 3)) and encoded == [1]
    picture[:] = OTHER  # the caller's own buffer, filled anew
    assert not torch.equal(first, mine.context(Control(references=[picture]), 6, 3)) and encoded == [1, 1]


def test_a_reference_made_in_inference_mode(codec):
    with torch.inference_mode():
        picture = torch.from_numpy(PICTURE).clone()
    contexts = [given(codec).context(Control(references=[each]), 0, 3) for each in (picture, PICTURE)]
    assert torch.equal(*contexts)


def test_a_reference_does_not_disturb_the_frames(codec):
    """Nor does it matter that an encoder is under way."""
    restated, mine = Restated(codec), given(codec)
    for block, kind in enumerate(("frames", "both", "masks")):
        told, control = wishes(kind, block)
        got = mine.context(control, 3 * block, 3)
        np.testing.assert_allclose(got.numpy(), restated.context(12 + (block == 0), **told), atol=2e-5)


class OneState:
    """Scope's order: one encoder for video, what is kept, what is made anew; cleared before each on a first block."""

    def __init__(self, codec):
        self.codec, self.encoder = codec, EncoderStream(codec)

    def block(self, first, video, kept, made, mixed):
        out = []
        for frames in (video, kept, made):
            if frames is None:
                continue
            alone = mixed and frames is made
            if first and not alone:
                self.encoder.reset()
            out.append((EncoderStream(self.codec) if alone else self.encoder).encode(frames))
        return out


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("with_video", [False, True])
def test_scopes_order_shares_one_state(codec, mixed, with_video):
    wanted, mine, encoder = OneState(codec), given(codec), EncoderStream(codec)
    own = given(codec)
    for block in range(3):
        control = wishes("masks" if mixed else "frames", block)[1]
        steered = steer(control, 3 * block, LIKE)
        anew = (steered.masks > 0.5).float()
        kept, made = steered.frames * (1 - anew), steered.frames * anew
        video = steered.frames.flip(0) if with_video else None
        restated = wanted.block(block == 0, video, kept, made, mixed)
        if with_video:
            encoder.encode(video)
        got = mine.context(control, 3 * block, 3, shared=encoder)
        torch.testing.assert_close(got[:, :32], torch.cat(restated[-2:], 1), rtol=0, atol=2e-5)
        alone = own.context(control, 3 * block, 3)
    assert (alone[:, :32] - got[:, :32]).abs().max() > 0.05  # it makes a difference
