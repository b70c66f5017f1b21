"""The small VAEs' files, told apart from the model's own and from each other."""

import dataclasses
import os

import pytest
import torch

from longlive_optimized.vae.backends import codec_for
from longlive_optimized.vae.config import LATENT_MEAN, LATENT_STD, TaeConfig, VaeConfig
from longlive_optimized.vae.stream import DecoderStream, EncoderStream
from longlive_optimized.vae.tae import Tae
from longlive_optimized.vae.wan.model import WanVae
from longlive_optimized.weights import CheckpointError
from longlive_optimized.weights.load import check, load_vae
from longlive_optimized.weights.locate import VAE_FILES, locate

TINY = ["tae", "lighttae"]
SMALL = ["lightvae", *TINY]
NARROW = TaeConfig(10, (14, 9, 8, 6))
GROW = "decoder.13.conv.weight"


def random_tensors(kind):
    vae = WanVae(VaeConfig(base=4), device="meta") if kind == "lightvae" else Tae(NARROW, device="meta")
    generator = torch.Generator().manual_seed(0)
    return {key: 0.1 * torch.randn(t.shape, generator=generator) for key, t in vae.state_dict().items()}


@pytest.fixture
def with_small_vaes(folder):
    """The model's folder, with narrow small VAEs beside its parts."""
    shelf = folder / "Autoencoders"
    shelf.mkdir(exist_ok=True)
    for kind in SMALL:
        torch.save(random_tensors(kind), shelf / VAE_FILES[kind])
    return folder


@pytest.fixture(params=TINY)
def tiny(with_small_vaes, request):
    return locate(with_small_vaes, request.param)


def test_each_type_is_the_network_it_says(with_small_vaes):
    loaded = {}
    for kind in ("wan", *SMALL):
        files = locate(with_small_vaes, kind)
        check(files)
        vae = loaded[kind] = load_vae(files, "cpu", torch.float32)
        stored = torch.load(files.vae, weights_only=True)
        assert vae.state_dict().keys() == stored.keys()
        assert all(torch.equal(value, stored[key]) for key, value in vae.state_dict().items())
    assert [type(vae) for vae in loaded.values()] == [WanVae, WanVae, Tae, Tae]
    assert loaded["wan"].config.base == 8 and loaded["lightvae"].config.base == 4
    assert loaded["tae"].config == NARROW
    light = dataclasses.replace(NARROW, latent_mean=LATENT_MEAN, latent_std=LATENT_STD)
    assert loaded["lighttae"].config == light


def test_what_is_loaded_runs(tiny):
    vae = load_vae(tiny, "cpu", torch.bfloat16)
    codec = codec_for(vae)
    assert vae.dtype == torch.bfloat16 and vae.device.type == "cpu"
    assert DecoderStream(codec).decode_uint8(torch.zeros(3, 16, 2, 3).bfloat16()).shape == (9, 16, 24, 3)
    assert EncoderStream(codec).encode(torch.zeros(13, 3, 16, 24).bfloat16()).shape == (4, 16, 2, 3)


def test_decoder_alone(tiny):
    whole, half = load_vae(tiny, "cpu", torch.float32), load_vae(tiny, "cpu", torch.float32, encoder=False)
    assert half.encoder is None and len(half.state_dict()) == 64 and half.config == whole.config
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in half.state_dict().items())


def test_progress(tiny):
    steps = []
    load_vae(tiny, "cpu", torch.bfloat16, progress=lambda *step: steps.append(step))
    assert len(steps) == 128 and steps[-1][0] == steps[-1][1]


def test_more_frames_than_needed(tiny, edit):
    """Rows of growing layers before those that Wan 2.1 needs are passed over."""
    wanted = load_vae(tiny, "cpu", torch.float32).state_dict()
    edit(tiny.vae, lambda c: c | {GROW: torch.cat((torch.full_like(c[GROW], float("nan")), c[GROW]))})
    check(tiny)
    found = load_vae(tiny, "cpu", torch.float32).state_dict()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_another_networks_file(with_small_vaes):
    wan, tae = locate(with_small_vaes), locate(with_small_vaes, "tae")
    with pytest.raises(CheckpointError, match=r"taew2_1\.pth: decoder\.upsamples.* is missing.* of a Wan 2\.1 VAE$"):
        check(dataclasses.replace(wan, vae=tae.vae))
    for kind in TINY:
        files = dataclasses.replace(wan, vae_type=kind)
        with pytest.raises(CheckpointError, match=r"Wan2\.1_VAE\.pth: encoder\.0\.weight is missing.* of a TAE$"):
            check(files)
        with pytest.raises(CheckpointError, match="is missing"):
            load_vae(files, "cpu", torch.float32)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("decoder.3.conv.2.bias", None, r"1 missing \(decoder\.3\.conv\.2\.bias\)$"),
        ("encoder.7.conv.weight", None, r"1 missing \(encoder\.7\.conv\.weight\)$"),
        ("x.weight", torch.zeros(1), r"1 unexpected \(x\.weight\)$"),
        ("encoder.2.conv.weight", torch.zeros(10, 10, 1, 1), r"is \[10, 10, 1, 1\], expected \[10, 20, 1, 1\]\)$"),
        (GROW, torch.zeros(17, 9, 1, 1), r"decoder\.13\.conv\.weight is \[17, 9, 1, 1\], expected \[18, 9, 1, 1\]\)$"),
        (GROW, torch.zeros(36, 8, 1, 1), r"decoder\.13\.conv\.weight is \[36, 8, 1, 1\], expected \[18, 9, 1, 1\]\)$"),
        (GROW, torch.zeros(()), r"decoder\.13\.conv\.weight is \[\], expected \[18, 9, 1, 1\]\)$"),
        (GROW, torch.zeros(18, 9, 1, 1).long(), r"not floating point \(decoder\.13\.conv\.weight is torch\.int64\)$"),
    ],
)
def test_tensors_that_do_not_fit(tiny, edit, key, value, message):
    edit(tiny.vae, lambda content: {k: t for k, t in (content | {key: value}).items() if t is not None})
    with pytest.raises(CheckpointError, match=rf"{tiny.vae.name} does not fit a TAE of widths 10 and 14, .*{message}"):
        check(tiny)


def test_shapes_that_no_dimension_can_be_read_from(tiny, edit):
    edit(tiny.vae, lambda content: content.update({"decoder.8.weight": torch.zeros(9)}))
    with pytest.raises(CheckpointError, match=rf"{tiny.vae.name}: decoder\.8\.weight must have shape \[9, 14, 3, 3\]"):
        check(tiny)


def four_channels(content):
    content["decoder.1.weight"] = content["decoder.1.weight"][:, :4].clone()
    for name in ("weight", "bias"):
        content[f"encoder.17.{name}"] = content[f"encoder.17.{name}"][:4].clone()


def test_latents_of_another_model(with_small_vaes, edit):
    tae, light = (locate(with_small_vaes, kind) for kind in TINY)
    edit(tae.vae, four_channels)
    with pytest.raises(CheckpointError, match=r"taew2_1\.pth has 4 latent channels, .* has in_dim 16, out_dim 16"):
        check(tae)
    edit(light.vae, four_channels)
    with pytest.raises(CheckpointError, match=r"lighttaew2_1\.pth: decoder\.1\.weight must have shape \[14, 16"):
        check(light)


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_not_finite(tiny, edit, value):
    edit(tiny.vae, lambda content: content["decoder.19.conv.weight"].view(-1)[-1:].fill_(value) is None or None)
    check(tiny)  # names and shapes are in order
    with pytest.raises(CheckpointError, match=rf"{tiny.vae.name} holds NaN or infinity in decoder\.19\.conv\.weight$"):
        load_vae(tiny, "cpu", torch.bfloat16)


def test_damaged(tiny):
    os.truncate(tiny.vae, tiny.vae.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=rf"{tiny.vae.name} is damaged or cut short"):
        check(tiny)
