"""Checkpoint files to networks: every weight in its place, in every accepted form."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from longlive_optimized.weights import CheckpointError, load
from longlive_optimized.weights.load import check, load_generator, load_vae, read_generator
from longlive_optimized.weights.locate import locate
from longlive_optimized.weights.random_checkpoint import TINY
from longlive_optimized.weights.text import load_text_encoder
from support import networks


def stored(path, *containers):
    content = torch.load(path, weights_only=True)
    for name in containers:
        content = content[name]
    return content


def bits_equal(a, b):
    return a.dtype == b.dtype and torch.equal(a, b)


def test_round_trip(pristine):
    """make -> locate -> load: all three parts hold exactly what the files hold."""
    files = locate(pristine)
    check(files)
    no_lora = dataclasses.replace(files, lora=None)
    base = stored(files.generator, "generator")
    found = networks.stored(load_generator(no_lora, "cpu", torch.bfloat16))
    assert {f"model.{key}" for key in found} == set(base)
    assert all(bits_equal(tensor, base[f"model.{key}"]) for key, tensor in found.items())

    vae, tensors = load_vae(files, "cpu", torch.float32), stored(files.vae)
    assert len(tensors) == 194 and set(vae.state_dict()) == set(tensors)
    assert all(bits_equal(value, tensors[key]) for key, value in vae.state_dict().items())

    encoder = load_text_encoder(files, "cpu", torch.bfloat16)
    out = encoder.encode(["A red kite climbs over a wheat field."])
    assert out.shape == (1, TINY.text_len, TINY.text_dim) and out.dtype == torch.bfloat16
    table = stored(files.text)["token_embedding.weight"]
    assert bits_equal(encoder.table, table)


def test_lora_is_merged_in_float32_and_rounded_once(pristine):
    files = locate(pristine)
    base, lora = stored(files.generator, "generator"), stored(files.lora, "generator_lora")
    wide, narrow = (networks.stored(load_generator(files, "cpu", t)) for t in (torch.float32, torch.bfloat16))
    adapted = 0
    for key, found in wide.items():
        wanted, name = base[f"model.{key}"].double(), f"base_model.model.{key.removesuffix('.weight')}.lora_"
        if f"{name}A.weight" in lora:
            delta = lora[f"{name}B.weight"].double() @ lora[f"{name}A.weight"].double()
            assert delta.norm() > 0.02 * wanted.norm()
            wanted, adapted = wanted + delta, adapted + 1
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-6)
        assert torch.equal(narrow[key], found.bfloat16())
    assert adapted == 10 * TINY.num_layers == len(lora) / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_oracle_reads_what_the_network_is_given(pristine, dtype):
    files = locate(pristine)
    found, wanted = read_generator(files, "cpu", dtype), networks.stored(load_generator(files, "cpu", dtype))
    assert found.keys() == wanted.keys() and all(bits_equal(found[key], wanted[key]) for key in found)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda g: {"model": g},
        lambda g: {"generator_ema": {k.replace(".", "._fsdp_wrapped_module.", 1): t.float() for k, t in g.items()}},
        lambda g: {"generator": g, "generator_ema": {"junk": torch.zeros(1)}, "critic": {"a": g}, "step": 9},
        lambda g: {k.removeprefix("model."): t for k, t in g.items()},
        lambda g: g,
    ],
    ids=["model", "ema", "training", "bare", "bare with prefix"],
)
def test_containers(files, edit, wrap):
    wanted = load_generator(files, "cpu", torch.bfloat16).state_dict()
    edit(files.generator, lambda content: wrap(content["generator"]))
    found = load_generator(files, "cpu", torch.bfloat16).state_dict()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_flat_lora_and_other_generators_lora(files, edit):
    wanted = load_generator(files, "cpu", torch.float32).state_dict()
    edit(files.lora, lambda content: content | {"critic_lora": {"x": torch.zeros(1)}, "step": 3})
    assert all(torch.equal(w, wanted[k]) for k, w in load_generator(files, "cpu", torch.float32).state_dict().items())
    edit(files.lora, lambda content: content["generator_lora"])
    assert all(torch.equal(w, wanted[k]) for k, w in load_generator(files, "cpu", torch.float32).state_dict().items())


def test_old_torch_format_and_safetensors(files):
    wanted = load_generator(files, "cpu", torch.bfloat16).state_dict()
    content = torch.load(files.generator, weights_only=True)
    torch.save(content, files.generator, _use_new_zipfile_serialization=False)
    found = load_generator(files, "cpu", torch.bfloat16).state_dict()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    other = dataclasses.replace(files, generator=files.generator.with_suffix(".safetensors"))
    save_file(content["generator"], other.generator)
    found = load_generator(other, "cpu", torch.bfloat16).state_dict()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_decoder_alone(files):
    whole, half = load_vae(files, "cpu", torch.bfloat16), load_vae(files, "cpu", torch.bfloat16, encoder=False)
    assert half.encoder is None and 0 < len(half.state_dict()) < 194
    assert all(bits_equal(value, whole.state_dict()[key]) for key, value in half.state_dict().items())
    assert half.dtype == torch.bfloat16


def test_scope_folder_with_fp8_text_encoder(folder, tmp_path):
    """The same tree as scope keeps it; its text encoder's matrices are float8."""
    root, wan = tmp_path / "scope", folder / "wan_models" / "Wan2.1-T2V-1.3B"
    root.mkdir()
    (folder / "longlive_models").rename(root / "LongLive-1.3B")
    wan.rename(root / "Wan2.1-T2V-1.3B")
    bf16 = root / "Wan2.1-T2V-1.3B" / "models_t5_umt5-xxl-enc-bf16.pth"
    tensors = torch.load(bf16, weights_only=True)
    fp8 = {key: t if "norm" in key or "embedding" in key else t.to(torch.float8_e4m3fn) for key, t in tensors.items()}
    assert sum(t.dtype == torch.float8_e4m3fn for t in fp8.values()) == 7 * 2
    (root / "WanVideo_comfy").mkdir()
    save_file(fp8, root / "WanVideo_comfy" / "umt5-xxl-enc-fp8_e4m3fn.safetensors")
    bf16.unlink()

    files = locate(root / "LongLive-1.3B")
    assert files.text.suffix == ".safetensors"
    check(files)
    prompts = ["A fox in the snow"]
    out = load_text_encoder(files, "cpu", torch.float32).encode(prompts)
    made = {}
    for dtype in (torch.float32, torch.bfloat16):
        narrow = load_text_encoder(files, "cpu", dtype)
        made[dtype] = narrow.encode(prompts)
        assert narrow.precision == "fp8" and made[dtype].dtype == dtype
        held = list(narrow._network.buffers())
        assert len(held) == 7 * 2 and all(t.dtype == torch.float8_e4m3fn for t in held)
    assert torch.equal(out, made[torch.float32])
    torch.save({key: t.float() for key, t in fp8.items()}, bf16)  # the same values, widened by hand
    files = locate(root)
    assert files.text == bf16
    for dtype, narrow in made.items():
        wide = load_text_encoder(files, "cpu", dtype)
        assert torch.equal(narrow, wide.encode(prompts)) and not list(wide._network.buffers())

    fp8["blocks.1.ffn.fc2.weight"].view(torch.uint8)[-1, -1] = 0x7F
    bf16.unlink()
    save_file(fp8, root / "WanVideo_comfy" / "umt5-xxl-enc-fp8_e4m3fn.safetensors")
    with pytest.raises(CheckpointError, match=r"NaN or infinity in blocks\.1\.ffn\.fc2\.weight$"):
        load_text_encoder(locate(root), "cpu", torch.bfloat16)


@pytest.mark.parametrize("loader", [load_generator, load_vae, load_text_encoder])
def test_progress(pristine, loader):
    steps = []
    loader(locate(pristine), "cpu", torch.bfloat16, progress=lambda done, total: steps.append((done, total)))
    done, totals = zip(*steps, strict=True)
    assert len(set(totals)) == 1 and done[-1] == totals[0]
    assert list(done) == sorted(set(done)) and done[0] > 0


def test_all_files_are_checked_before_memory_is_taken(files, edit, monkeypatch):
    """A LoRA that does not fit is found before the network exists."""
    edit(files.lora, lambda content: content["generator_lora"].popitem() and None)
    monkeypatch.setattr(load, "Transformer", lambda *_, **__: pytest.fail("the network was made"))
    with pytest.raises(CheckpointError, match="1 missing"):
        load_generator(files, "cuda", torch.bfloat16)


def test_the_files_are_not_needed_afterwards(files):
    """Nothing stays mapped: a file may be replaced, even in place, under a loaded model."""
    encoder, vae = load_text_encoder(files, "cpu", torch.bfloat16), load_vae(files, "cpu", torch.float32)
    generator = load_generator(files, "cpu", torch.bfloat16)
    before = encoder.encode(["a fox"]), vae.conv2.weight.clone(), generator.head.weight.clone()
    for path in (files.text, files.vae, files.generator):
        path.write_bytes(b"\xff" * path.stat().st_size)
    assert torch.equal(encoder.encode(["a fox"]), before[0])
    assert torch.equal(vae.conv2.weight, before[1]) and torch.equal(generator.head.weight, before[2])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_the_device(pristine):
    files, host = locate(pristine), {}
    for loader in (load_generator, load_vae):
        host = loader(files, "cpu", torch.bfloat16).state_dict()
        device = loader(files, "cuda", torch.bfloat16).state_dict()
        assert all(t.is_cuda and t.dtype == torch.bfloat16 for t in device.values())
        for key, value in device.items():
            # One bf16 step: the merge's sums may round the other way there.
            torch.testing.assert_close(value.cpu(), host[key], rtol=2**-7, atol=1e-6)
    embedding = load_text_encoder(files, "cuda", torch.float32).encode(["a fox"])
    wanted = load_text_encoder(files, "cpu", torch.float32).encode(["a fox"])
    torch.testing.assert_close(embedding.cpu(), wanted, rtol=1e-3, atol=1e-3)
