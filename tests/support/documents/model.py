"""What docs/model.md says of sizes, counts and tables, counted on the networks of this repository."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence

import torch

from longlive_optimized.engine.sampler import make_schedule, schedule_table, sigma_at
from longlive_optimized.model.config import ModelConfig
from longlive_optimized.model.control import control_shapes
from longlive_optimized.model.transformer import generator_shapes
from longlive_optimized.vae.config import LATENT_MEAN, LATENT_STD, TaeConfig, VaeConfig
from longlive_optimized.vae.tae import Tae
from longlive_optimized.vae.wan.model import WanVae
from longlive_optimized.weights.lora import adapter_shapes

from .claims import lists, says
from .markdown import Unit
from .tables import names

MODEL = "docs/model.md"
SIZES = {"480×832": 1560, "320×576": 720, "512×512": 1024}  # tokens a latent frame

Shapes = Mapping[str, Sequence[int]]


def count(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


@functools.cache
def generator() -> dict:
    return generator_shapes(ModelConfig())


def network(module: torch.nn.Module) -> dict:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def figures(text: str) -> list[float]:
    """Numbers as documents write them: 1,418,996,800; 16.15; −0.5; ≈0.4."""
    found = re.findall(r"[−-]?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?", text)
    return [float(number.replace(",", "").replace("−", "-")) for number in found]


def near(said: float, computed: float, text: str = "") -> None:
    """A figure rounded as it is written."""
    digits = len(text.partition(".")[2]) if text else 0
    assert abs(said - computed) <= 0.5 * 10.0**-digits + 1e-9, f"{text or said} is said, {computed:.6g} computed"


@says(MODEL, "supplies: `model_type` t2v, `dim` 1536, `ffn_dim` 8960")
def configuration(units: list[Unit]):
    config, text = ModelConfig(), units[0].text
    for name, said in re.findall(r"`(\w+)` ([\d.e-]+\d)", text):
        if hasattr(config, name):
            assert getattr(config, name) == float(said), name


@says(MODEL, "head_dim 128; patch vector 16·1·2·2 = 64; RoPE complex pairs 64 = 22 (time) + 21 (rows) + 21 (cols)")
def derived():
    assert ModelConfig().head_dim == 128 and generator()["patch_embedding.weight"] == (1536, 16, 1, 2, 2)


@says(MODEL, "require the 825 keys")
def number_of_keys():
    assert len(generator()) == 825 and count(generator()) == 1_418_996_800


@says(MODEL, "Non-layer keys (15 tensors, 25,775,680 parameters)")
def outside_of_layers():
    outside = {k: s for k, s in generator().items() if not k.startswith("blocks.")}
    assert (len(outside), count(outside)) == (15, 25_775_680)


@says(MODEL, "(27 tensors, 46,440,704 parameters)")
def a_layer():
    layer = {k: s for k, s in generator().items() if k.startswith("blocks.7.")}
    assert (len(layer), count(layer)) == (27, 46_440_704)


@lists(MODEL, "1.2 State dict of the generator: exactly 825 tensors, 1,418,996,800 parameters")
def shapes_of_the_generator(units: list[Unit]):
    shapes, seen = generator(), 0
    for unit in units:
        cells = unit.cells if unit.cells[0] not in ("Key", "Key suffix") else []
        for key, shape in zip(cells[::2], [c for c in cells[1::2]], strict=False):
            seen += _same_shapes(names(key), re.findall(r"\[([\d, ]+)\]", shape), shapes)
        if len(cells) == 5:  # two pairs, an empty cell between them
            seen += _same_shapes(names(cells[3]), re.findall(r"\[([\d, ]+)\]", cells[4]), shapes)
    assert seen >= 30, seen


def _same_shapes(keys: list[str], said: list[str], shapes: Shapes) -> int:
    if len(keys) != len(said):
        return 0
    for i, (key, shape) in enumerate(zip(keys, said, strict=True)):
        full = keys[0].rpartition(".")[0] + key if key.startswith(".") and i else key
        real = shapes.get(full, shapes.get(f"blocks.3.{full}"))
        assert real is not None, full
        assert [*real] == [int(number) for number in shape.split(",")], (full, real, shape)
    return len(keys)


@says(MODEL, "300 modules, 600 tensors, 349,962,240 parameters")
def lora_of_the_release():
    adapter = adapter_shapes(generator(), 256)
    assert (len(adapter), count(adapter)) == (600, 349_962_240)


@says(MODEL, "First: σ_0=1, σ_1=0.9997998; last: σ_999=0.00498008 (timestep 4.98008).")
def schedule():
    timesteps, sigmas = schedule_table()
    assert len(sigmas) == 1000 and sigmas[0] == 1
    near(0.9997998, sigmas[1].item(), "0.9997998")
    near(0.00498008, sigmas[-1].item(), "0.00498008")
    near(4.98008, timesteps[-1].item(), "4.98008")


@lists(MODEL, "4.2 Denoising timesteps")
def timesteps(units: list[Unit]):
    warped = make_schedule((1000, 750, 500, 250), "longlive")
    raw = make_schedule((1000, 750, 500, 250), "scope")
    rows = [unit.cells for unit in units if unit.cells[0].isdigit()]
    for (_, nominal, t, sigma), step in zip(rows[:4], warped, strict=True):
        assert step.timestep == float(t) and abs(step.sigma - float(sigma)) < 1e-12, nominal
    for (_, t, index, sigma), step in zip(rows[4:], raw, strict=True):
        assert step.timestep == float(t) and abs(step.sigma - float(sigma)) < 1e-9, index
        assert schedule_table()[1][int(index)].item() == sigma_at(float(t))


@says(MODEL, "The first timestep of the list is replaced by int(1000·ns) − 100 (0.7 → 600)")
def noise_of_scope():
    from longlive_optimized.engine.sampler import from_noise_scale

    steps = from_noise_scale(make_schedule((1000, 750, 500, 250), "scope"), 0.7, "scope")
    assert [step.timestep for step in steps] == [600, 750, 500, 250]


@lists(MODEL, "6. Text encoder (umT5-XXL encoder)")
def text_encoder(units: list[Unit]):
    from longlive_optimized.weights.random_checkpoint import _text_shapes

    shapes = _text_shapes(ModelConfig(), 0, True)
    said = next(unit.cells[1] for unit in units if unit.cells[0] == "parameters")
    assert figures(said) == [count(shapes), len(shapes)], (count(shapes), len(shapes))
    assert "24 / 4096 / 64 / 64 / 10240" in units[0].text and "256384" in units[1].text


@says(MODEL, "Edges for d: 8–11→8, 12–15→9")
def buckets(units: list[Unit]):
    edges = re.findall(r"(\d+)–(\d+)→(\d+)", units[0].text)
    assert len(edges) == 7
    for low, high, bucket in edges:
        for d in range(int(low), int(high) + 1):
            assert 8 + math.floor(8 * math.log(d / 8) / math.log(16)) == int(bucket), d
    assert min(15, 8 + math.floor(8 * math.log(91 / 8) / math.log(16))) == 15


@lists(MODEL, "7.1 Latent normalisation")
def statistics_of_latents(units: list[Unit]):
    rows = [unit.cells for unit in units]
    mean = [float(x.replace("−", "-")) for cells in rows for x in cells[1:] if cells[0] == "mean"]
    std = [float(x) for cells in rows for x in cells[1:] if cells[0] == "std"]
    assert (mean, std) == ([*LATENT_MEAN], [*LATENT_STD])
    in_bf16 = torch.tensor(LATENT_MEAN).bfloat16()
    inverse = 1 / torch.tensor(LATENT_STD).bfloat16()
    for name, exact in (("mean (bf16)", in_bf16), ("inv (bf16)", inverse)):
        said = next(" ".join(cells[1:]) for cells in rows if cells[0] == name)
        assert figures(said) == exact.tolist(), name


@lists(MODEL, "7.3 Decoder (config: base 96, multipliers 1,2,4,4, 2+1 residual blocks per level, no extra attention)")
@lists(MODEL, "7.5 Encoder (video-to-video, scope; LL inference never encodes)")
def layers_of_the_vae(units: list[Unit]):
    shapes = network(WanVae(VaeConfig(), device="meta"))
    for unit in units:
        keys = names(unit.cells[0])
        for key in keys:
            key = keys[0].rpartition(".")[0] + key if key.startswith(".") else key
            prefix, braces, last = key.partition(".{")
            parts = [p.strip() for p in last.rstrip("}").split(",")] if braces else [None]
            if re.search(r"\.\d+(,\d+)+$", key):
                prefix, _, numbers = key.rpartition(".")
                parts = numbers.split(",")
            for part in parts:
                full = f"{prefix}.{part}" if part else prefix
                assert any(name == full or name.startswith(full + ".") for name in shapes), full


@says(MODEL, "File `Wan2.1_VAE.pth`, keys as in the tables with no prefix")
def parameters_of_the_vae():
    shapes = network(WanVae(VaeConfig(), device="meta"))
    assert (len(shapes), count(shapes)) == (194, 126_892_531)
    encoder = {k: s for k, s in shapes.items() if k.startswith("encoder.")}
    decoder = {k: s for k, s in shapes.items() if k.startswith("decoder.")}
    assert (count(encoder), count(decoder)) == (53_595_872, 73_295_331)


@says(MODEL, "Same 194 keys, 8,035,003 parameters (decoder 4,617,339).")
def parameters_of_lightvae():
    shapes = network(WanVae(VaeConfig(base=24), device="meta"))
    assert (len(shapes), count(shapes)) == (194, 8_035_003)
    assert count({k: s for k, s in shapes.items() if k.startswith("decoder.")}) == 4_617_339
    assert [*shapes["decoder.conv1.weight"]] == [96, 16, 3, 3, 3]


@says(MODEL, "(128 tensors, 11,315,539 parameters; keys `encoder.{i}…`, `decoder.{i}…`)")
def parameters_of_tae():
    shapes = network(Tae(TaeConfig(), device="meta"))
    assert (len(shapes), count(shapes)) == (128, 11_315_539)


@lists(MODEL, "9.1 One denoise forward, steady state (M=12S), 30 layers")
def flops(units: list[Unit]):
    rows = {unit.cells[0].strip("*"): unit.cells for unit in units}
    columns = {"self q,k,v,o": 2, "self attention": 2, "cross q,o": 2, "cross attention": 2, "FFN": 2}
    for i, tokens in enumerate(SIZES.values()):
        n, m = 3 * tokens, 12 * tokens
        terms = {
            "self q,k,v,o": 4 * 2 * n * 1536**2,
            "self attention": 4 * n * m * 1536,
            "cross q,o": 2 * 2 * n * 1536**2,
            "cross attention": 4 * n * 512 * 1536,
            "FFN": 2 * 2 * n * 1536 * 8960,
        }
        for name, column in columns.items():
            said = rows[name][column + i].strip("* T")
            near(float(said), 30 * terms[name] / 1e12, said)
        said = rows["total"][2 + i].strip("* T")
        assert abs(float(said) - 30 * sum(terms.values()) / 1e12) < 0.004, said
    five = rows["five forwards per block, steady"]
    assert [float(cell.strip("* T")) for cell in five[1:]] == [141.48, 45.23]


@lists(MODEL, "9.3 Bytes")
def size_in_bytes(units: list[Unit]):
    rows = {unit.cells[0].partition(",")[0]: unit.cells for unit in units}
    for column, tokens in ((1, 1560), (2, 720)):
        keys = 2 * 30 * 12 * tokens * 1536 * 2
        said = rows["self K+V"][column]
        assert figures(said)[0] == keys and abs(figures(said)[1] - keys / 2**30) < 0.006, said
    assert figures(rows["cross K+V"][1])[0] == 2 * 30 * 512 * 1536 * 2
    assert figures(rows["DiT weights bf16 / fp8"][1])[-2:] == [2.838, 1.42]
    near(2.838, 2 * count(generator()) / 1e9, "2.838")
    near(0.700, 2 * 349_962_240 / 1e9, "0.700")
    near(0.254, 2 * 126_892_531 / 1e9, "0.254")
    near(11.36, 2 * 5_680_910_336 / 1e9, "11.36")


@lists(MODEL, "9.4 Floors on one H200 (790 TFLOP/s bf16, 1500 fp8, 4.3 TB/s), steady block = 12 pixel frames")
def floors(units: list[Unit]):
    rows = {unit.cells[0].strip("*"): unit.cells for unit in units}
    near(179.1, 141.48 / 790 * 1e3, "179.1")
    near(57.3, 45.23 / 790 * 1e3, "57.3")
    near(51.5, 40.65 / 790 * 1e3, "51.5")
    sums = [figures(cell)[0] for cell in rows["sum, all bf16"][1:]]
    assert abs(sums[0] - 179.1 - 51.5) < 0.11 and abs(sums[1] - 57.3 - 23.7) < 0.11
    for cells in (cells for name, cells in rows.items() if name.startswith(("sum", "bf16 DiT"))):
        for cell in cells[1:]:
            ms, fps = figures(cell.replace("→", " "))[:2]
            assert abs(12e3 / ms - fps) < 0.006 * fps, cell


@lists(MODEL, "0. System overview")
def geometry(units: list[Unit]):
    for unit in units:
        if found := re.match(r"\| (\d+)×(\d+)", unit.text):
            height, width = map(int, found.groups())
            tokens = (height // 16) * (width // 16)
            cells = unit.cells
            assert cells[1:] == [
                f"{height // 8}×{width // 8}",
                f"{height // 16}×{width // 16}",
                str(tokens),
                str(3 * tokens),
                str(12 * tokens),
            ], unit.text


@says(MODEL, "Frame counts: T latents → 1 + 4(T−1) pixel frames.")
def frames_of_latents():
    assert [1 + 4 * (t - 1) for t in (3, 120, 240)] == [9, 477, 957]


@lists(MODEL, "10.1 DiT")
@says(MODEL, "Output mean −0.123255, rms 0.831107", "Encoder on h(7001) as [1,3,13,16,16]")
@lists(MODEL, "10.3 VAE")
@says(MODEL, "Table and lookups of §4.1–4.2 are exact float32 values from the source.")
def vectors(place):
    files = "model/test_conformance text/test_encoder vae/test_conformance engine/test_sampler"
    place.passes(" ".join(f"tests/{name}.py" for name in files.split()))


@says(MODEL, "734,975,232 parameters, 1.47 GB")
def the_control_module():
    shapes = control_shapes(ModelConfig())
    assert count(shapes) == 734_975_232 and round(2 * count(shapes) / 1e9, 2) == 1.47
    suffixes = {key.removeprefix("blocks.0.") for key in generator() if key.startswith("blocks.0.")}
    layers = {key.partition("vace_blocks.")[2] for key in shapes} - {""}
    own = {"before_proj.weight", "before_proj.bias", "after_proj.weight", "after_proj.bias"}
    for n in range(15):
        of_layer = {key.partition(".")[2] for key in layers if key.startswith(f"{n}.")}
        assert of_layer - own == suffixes and len(of_layer & own) == (4 if n == 0 else 2)


@says(MODEL, "6.2 TFLOP in linears, 2.0 in self-attention, 0.2 in cross-attention")
def what_hints_cost():
    c, tokens = ModelConfig(), 3 * SIZES["480×832"]
    linears = 15 * (6 * c.dim**2 + 2 * c.dim * c.ffn_dim + c.dim**2) + 96 * 4 * c.dim + c.dim**2
    assert round(2 * tokens * linears / 1e12, 1) == 6.2
    assert round(15 * 4 * tokens**2 * c.dim / 1e12, 1) == 2.0
    assert round(15 * 4 * tokens * c.text_len * c.dim / 1e12, 1) == 0.2
