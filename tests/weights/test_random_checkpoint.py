"""Random checkpoints: public names and sizes, the same for the same seed, every part felt in the result."""

import json
import math
import shutil
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from longlive_optimized.vae.state import CausalState
from longlive_optimized.weights import random_checkpoint
from longlive_optimized.weights.load import check, load_generator, load_vae
from longlive_optimized.weights.locate import VAE_FILES, locate
from longlive_optimized.weights.random_checkpoint import TINY, make_checkpoint
from longlive_optimized.weights.random_tokenizer import write_tokenizer
from longlive_optimized.weights.text import load_text_encoder
from support.networks import stored


def content(root):
    return {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def sizes(full_text):
    files = random_checkpoint._checkpoint_files("1.3b", 1510, full_text)
    return {f.path.name: (len(f.shapes), sum(math.prod(shape) for shape in f.shapes.values())) for f in files}


def test_published_sizes():
    """Counts of sections 1.2, 1.4, 7.7, 8 and 6."""
    assert sizes(full_text=True) == {
        "longlive_base.pt": (825, 1_418_996_800),
        "lora.pt": (600, 349_962_240),
        "Wan2.1_VAE.pth": (194, 126_892_531),
        "lightvaew2_1.pth": (194, 8_035_003),
        "taew2_1.pth": (128, 11_315_539),
        "lighttaew2_1.pth": (128, 11_315_539),
        "models_t5_umt5-xxl-enc-bf16.pth": (242, 5_680_910_336),
    }


def test_small_text_encoder_for_the_full_model():
    text = random_checkpoint._checkpoint_files("1.3b", 1510, full_text=False)[-1]
    assert text.bytes < 300e6
    assert text.shapes["norm.weight"] == (4096,) and text.shapes["token_embedding.weight"] == (1510, 4096)


def test_public_names(pristine):
    files = locate(pristine)
    base = torch.load(files.generator, weights_only=True)
    assert set(base) == {"generator"} and all(key.startswith("model.") for key in base["generator"])
    assert len(base["generator"]) == 15 + 27 * TINY.num_layers
    assert {t.dtype for t in base["generator"].values()} == {torch.bfloat16}
    adapter = torch.load(files.lora, weights_only=True)["generator_lora"]
    assert adapter["base_model.model.blocks.1.cross_attn.o.lora_B.weight"].shape == (256, 8)
    config = json.loads(files.config.read_text())
    assert config["model_type"] == "t2v" and config["dim"] == 256 and config["text_len"] == 512
    assert sum(path.stat().st_size for path in pristine.rglob("*") if path.is_file()) < 12e6


def test_same_seed_same_bytes(pristine, tmp_path):
    wanted = content(pristine)
    assert content(make_checkpoint(tmp_path / "again", "tiny", text="tiny", seed=0)) == wanted
    other = content(make_checkpoint(tmp_path / "other", "tiny", seed=1))
    assert other.keys() == wanted.keys()
    differ = {path.name for path in wanted if wanted[path] != other[path]}
    assert differ == {"longlive_base.pt", "lora.pt", *VAE_FILES.values(), "models_t5_umt5-xxl-enc-bf16.pth"}


def test_tokenizer_is_the_same_each_time(tmp_path):
    assert write_tokenizer(tmp_path / "a") == write_tokenizer(tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_streams_are_normal_and_independent(monkeypatch):
    monkeypatch.setattr(random_checkpoint, "_CHUNK", 300)
    a, b = torch.empty(2, 1000)
    random_checkpoint._fill(a, random_checkpoint.Normal(3.0, 0.5), 0, "a")
    random_checkpoint._fill(b, random_checkpoint.Normal(3.0, 0.5), 0, "b")
    assert abs(a.mean() - 3) < 0.06 and abs(a.std() - 0.5) < 0.05
    assert torch.corrcoef(torch.stack((a, b)))[0, 1].abs() < 0.15
    assert torch.corrcoef(torch.stack((a[:300], a[300:600])))[0, 1].abs() < 0.2


def test_progress(tmp_path):
    steps = []
    root = make_checkpoint(tmp_path / "x", "tiny", progress=lambda done, total: steps.append((done, total)))
    done, totals = zip(*steps, strict=True)
    assert set(totals) == {done[-1]} and list(done) == sorted(set(done))
    assert done[-1] < sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def test_into_an_empty_folder(tmp_path):
    target = tmp_path / "empty"
    target.mkdir()
    check(locate(make_checkpoint(target, "tiny")))
    assert {path.name for path in target.iterdir()} == {"longlive_models", "wan_models", "Autoencoders"}


def test_a_filled_folder_needs_force(pristine, tmp_path):
    target = shutil.copytree(pristine, tmp_path / "model")
    (target / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"directory: .*force"):
        make_checkpoint(target, "tiny", seed=5)
    before = content(target)
    assert content(pristine).items() <= before.items()
    make_checkpoint(target, "tiny", seed=5, force=True)
    after = content(target)
    assert after.keys() == before.keys() and after[Path("notes.txt")] == b"mine"
    assert after != before
    check(locate(target))


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="directory"):
        make_checkpoint(tmp_path / "file", "tiny", force=True)


def test_nothing_is_left_of_a_failure(tmp_path, monkeypatch):
    def fail(tensor, normal, seed, key):
        if "ffn" in key:
            raise MemoryError

    monkeypatch.setattr(random_checkpoint, "_fill", fail)
    with pytest.raises(MemoryError):
        make_checkpoint(tmp_path / "x", "tiny")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"too little room, 4\.2 GB"):
        make_checkpoint(tmp_path / "x", "1.3b")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": "14b"}, "config must be one of tiny, 1.3b"),
        ({"config": "tiny", "text": "large"}, "text must be tiny or full"),
        ({"config": "tiny", "text": "full"}, "text must be tiny where"),
        ({"config": "tiny", "seed": 1.5}, "seed must be"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_checkpoint(tmp_path / "x", **arguments)
    assert not list(tmp_path.iterdir())


def test_two_at_once(tmp_path):
    """The mapping options of torch belong to the whole process: neither may lose what it writes."""
    threads = [threading.Thread(target=make_checkpoint, args=(tmp_path / name, "tiny")) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert content(tmp_path / "a") == content(tmp_path / "b")
    weights = torch.load(locate(tmp_path / "a").generator, weights_only=True)["generator"]
    assert all(tensor.count_nonzero() > 0.9 * tensor.numel() for tensor in weights.values())


def test_attention_logits_are_neither_flat_nor_one_hot(pristine):
    """q.k / sqrt(head_dim) over the keys of one self-attention has a standard deviation of 3 to 5."""
    model = load_generator(locate(pristine), "cpu", torch.float32)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(256, TINY.dim, generator=generator)
    modulation = model.modulation(torch.tensor([750.0], dtype=torch.float64)).layers[0]
    for layer in range(TINY.num_layers):
        p, (shift, scale) = f"blocks.{layer}.self_attn.", modulation[layer, :2]
        w = {key.removeprefix(p): t for key, t in stored(model).items() if key.startswith(p)}
        a = F.layer_norm(tokens, (TINY.dim,)) * (1 + scale) + shift
        q, k = (F.linear(a, w[f"{name}.weight"], w[f"{name}.bias"]) for name in "qk")
        q, k = F.rms_norm(q, (TINY.dim,), w["norm_q.weight"]), F.rms_norm(k, (TINY.dim,), w["norm_k.weight"])
        q, k = (x.unflatten(-1, (TINY.num_heads, -1)) for x in (q, k))
        logits = torch.einsum("qhd,khd->hqk", q, k) / TINY.head_dim**0.5
        assert 3 < logits.std() < 5


def test_pixels_fill_their_range(pristine):
    vae = load_vae(locate(pristine), "cpu", torch.float32)
    mean, std = (torch.tensor(values) for values in (vae.config.latent_mean, vae.config.latent_std))
    latents = torch.randn(2, 8, 8, 16, generator=torch.Generator().manual_seed(0)) * std + mean
    with torch.no_grad():
        pixels = vae.decode(latents, CausalState())
    assert 0.2 < pixels.std() < 0.8 and (pixels.abs() > 1).float().mean() < 0.1
    assert (pixels[1:] - pixels[:-1]).std() > 0.2  # and they move


def test_prompts_tell(pristine):
    encoder = load_text_encoder(locate(pristine), "cpu", torch.float32)
    a, b = encoder.encode(["a fox in the snow", "a fox in the sand"])
    assert 0.5 < a[:5].std() < 2
    assert (a[:4] - b[:4]).norm() > 0.05 * a[:4].norm()  # also where the words are the same: attention looks around


def test_nothing_is_trivial(pristine):
    files = locate(pristine)
    for path in (files.generator, files.lora, files.vae, files.text):
        tensors = torch.load(path, weights_only=True)
        tensors = next(iter(tensors.values())) if len(tensors) == 1 else tensors
        for key, tensor in tensors.items():
            value = tensor.float()
            assert value.isfinite().all() and value.std() > 0.005, key
            assert (value.count_nonzero() > 0.98 * value.numel()).item(), key
