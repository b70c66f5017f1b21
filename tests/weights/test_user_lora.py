"""Users' LoRAs: every form that trainers write, against peft and float64; other scales in place, bit for bit."""

import dataclasses
import json
import logging
import math
from fractions import Fraction

import pytest
import torch
from torch import nn

from longlive_optimized.weights import CheckpointError, load, user_lora
from longlive_optimized.weights.load import check_loras, keep_unmerged, load_generator, refill_generator
from longlive_optimized.weights.random_checkpoint import TINY
from longlive_optimized.weights.user_lora import UserLora
from support.loras import (
    FFN,
    LINEARS,
    SHAPES,
    Q,
    check_merge,
    diffusers,
    dotted,
    halves,
    kohya,
    merged,
    tensors_of,
    write,
)
from support.networks import stored

# ---- forms


@pytest.mark.parametrize(
    "naming",
    [
        dotted(),
        dotted("diffusion_model."),
        dotted("base_model.model."),
        dotted("transformer."),
        dotted("model.diffusion_model."),
        dotted("base_model.model.", ".default"),
        dotted("pipe.dit.", ".default"),
        kohya("lora_unet_"),
        kohya("lora_unet__"),
        lambda module: (f"diffusion_model.{module}", "lora_down.weight", "lora_up.weight"),
        dotted("base_model.model.", ".a-style"),
        dotted("module._orig_mod."),
        lambda module: (f"_fsdp_wrapped_module.{module}".replace(".self", "._orig_mod.self"), "lora_A", "lora_B"),
        diffusers(dotted()),
        diffusers(dotted("transformer.")),
        diffusers(dotted("diffusion_model.")),
        diffusers(dotted("base_model.model.transformer.", ".default")),
        diffusers(lambda module: (f"transformer.{module}", "lora.down.weight", "lora.up.weight")),
        diffusers(lambda module: (f"unet.{module}", "lora_linear_layer.down.weight", "lora_linear_layer.up.weight")),
        diffusers(kohya("lora_unet_")),
        diffusers(kohya("lora_transformer_")),
        diffusers(kohya("lycoris_")),
        diffusers(
            lambda module: (f"transformer.{module}".replace("to_out.0", "to_out"), "lora_A.weight", "lora_B.weight")
        ),
    ],
)
def test_every_linear_in_every_form(model_files, plain, path, naming):
    """q, k and v, which lie in one matrix, and what LongLive's own LoRA leaves alone (embeddings, head) included."""
    pairs = halves(LINEARS)
    assert {"head.head", "text_embedding.0", "time_projection.1", "blocks.1.cross_attn.v"} <= set(LINEARS)
    assert len(LINEARS) == 6 + 10 * TINY.num_layers
    write(path, tensors_of(pairs, naming, torch.tensor(2.5)))
    check_merge(merged(model_files, UserLora(path, -0.75)), plain, pairs, lambda rank: -0.75 * 2.5 / rank)


@pytest.mark.parametrize("alpha", [None, torch.tensor([3]), torch.tensor(1.5, dtype=torch.bfloat16)])
@pytest.mark.parametrize("naming", [dotted(), kohya("lora_unet_")])
def test_every_alpha(model_files, plain, path, naming, alpha):
    pairs = halves([Q, FFN, "head.head"])
    lora = UserLora(write(path, tensors_of(pairs, naming, alpha)), -0.75)
    check_loras(model_files, [lora])
    strength = (lambda rank: -0.75) if alpha is None else (lambda rank: -0.75 * alpha.item() / rank)
    check_merge(merged(model_files, lora), plain, pairs, strength)


@pytest.mark.parametrize("suffix", user_lora.SUFFIXES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_every_suffix_and_type(model_files, plain, tmp_path, suffix, dtype):
    pairs = halves([Q, FFN], dtype=dtype)
    file = write(tmp_path / f"x{suffix}", tensors_of(pairs))
    check_merge(merged(model_files, UserLora(file)), plain, pairs)


def test_alpha_of_some_modules_only(model_files, plain, path):
    pairs = halves([Q, FFN])
    write(path, tensors_of(pairs) | {f"{FFN}.alpha": torch.tensor(8.0)})
    check_merge(merged(model_files, UserLora(path)), plain, pairs, lambda rank: {1: 1.0, 2: 8 / 2}[rank])


def test_longlives_own_container(model_files, plain, tmp_path):
    """A LoRA that LongLive's own training wrote, and parameters instead of tensors."""
    pairs, file = halves([Q]), tmp_path / "mine.pt"
    tensors = {key: nn.Parameter(t) for key, t in tensors_of(pairs, dotted("base_model.model.")).items()}
    torch.save({"generator_lora": tensors, "step": 7}, file)
    found = merged(model_files, UserLora(file))
    check_merge(found, plain, pairs)
    assert not any(tensor.requires_grad for tensor in found.values())


def test_several_loras_add_up_and_are_rounded_once(model_files, plain, tmp_path):
    first, second = halves([Q, FFN], 1), halves([FFN, "head.head"], 2)
    loras = [
        UserLora(write(tmp_path / "a.safetensors", tensors_of(first)), 0.5),
        UserLora(write(tmp_path / "b.pt", tensors_of(second, kohya("lora_unet_"), torch.tensor(4.0))), 2),
    ]
    wide, narrow = merged(model_files, *loras), merged(model_files, *loras, dtype=torch.bfloat16)
    assert all(torch.equal(narrow[key], wide[key].bfloat16()) for key in wide)
    (a, b), (c, d) = first[FFN], second[FFN]
    delta = 0.5 * (b.double() @ a.double()) + 2 * 4 / len(c) * (d.double() @ c.double())
    torch.testing.assert_close(
        wide[f"{FFN}.weight"].double(), plain[f"{FFN}.weight"].double() + delta, rtol=0, atol=2e-6
    )
    rounded = sum(not torch.equal(wide[key], plain[key]) for key in wide)
    assert rounded == 3


class Tree(nn.Module):
    """The named linears of a model, as plain modules."""

    def __init__(self, weights, modules):
        super().__init__()
        for name in modules:
            *folders, leaf = name.split(".")
            parent = self
            for folder in folders:
                if folder not in parent._modules:
                    parent.add_module(folder, nn.Module())
                parent = parent._modules[folder]
            weight = weights[f"{name}.weight"]
            linear = nn.Linear(weight.shape[1], weight.shape[0])
            linear.weight.data.copy_(weight)
            parent.add_module(leaf, linear)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_peft_saves_and_merges(model_files, plain, tmp_path, rslora):
    """peft's own folder, alpha not the rank, a rank of its own for one module: the same weights as peft's own merge."""
    peft = pytest.importorskip("peft")
    modules = [Q, "blocks.0.cross_attn.k", FFN, "text_embedding.2", "head.head"]
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=modules, rank_pattern={FFN: 3}, init_lora_weights=False, use_rslora=rslora
    )
    wrapped = peft.get_peft_model(Tree(plain, modules), config)
    wrapped.save_pretrained(tmp_path)
    truth = wrapped.merge_and_unload()
    found = merged(model_files, UserLora(tmp_path / "adapter_model.safetensors"))
    for key, tensor in found.items():
        if key.removesuffix(".weight") not in modules:
            assert torch.equal(tensor, plain[key])
            continue
        wanted = truth.get_submodule(key.removesuffix(".weight")).weight.detach()
        assert (wanted - plain[key]).norm() > 0.1 * plain[key].norm()
        torch.testing.assert_close(tensor, wanted, rtol=1e-5, atol=2e-6)


def test_pefts_alpha_is_for_its_own_file_only(model_files, plain, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 10}')
    pairs = halves([FFN, Q])
    write(tmp_path / "other.safetensors", tensors_of(pairs))
    check_merge(merged(model_files, UserLora(tmp_path / "other.safetensors")), plain, pairs)
    tensors = tensors_of(pairs) | {f"{Q}.alpha": torch.tensor(1.0)}  # the module's own comes first
    write(tmp_path / "adapter_model.bin", tensors)
    found = merged(model_files, UserLora(tmp_path / "adapter_model.bin"))
    check_merge(found, plain, pairs, lambda rank: {1: 10.0, 2: 1 / 2}[rank])


# ---- what does not fit


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"path": 3}, TypeError, "path must name a file, got int"),
        ({"path": None}, TypeError, "path must name a file, got NoneType"),
        ({"path": "x.gguf"}, ValueError, r"path must end in one of \.safetensors, .*, got x\.gguf"),
        ({"path": ""}, ValueError, "path must name a file, and /.* is a folder: take the file in it"),
        (
            {"path": "none.safetensors"},
            FileNotFoundError,
            r"path must name a file: there is none at /.*none\.safetensors",
        ),
        ({"path": "folder.pt"}, ValueError, r"path must name a file, and /.*/folder\.pt is a folder"),
        ({"path": "peft"}, ValueError, r"path .*/peft is a folder: .* \(PEFT's is adapter_model\.safetensors\)"),
        ({"scale": "1"}, TypeError, "scale must be a number, got '1'"),
        ({"scale": True}, TypeError, "scale must be a number, got True"),
        ({"scale": None}, TypeError, "scale must be a number"),
        ({"scale": 1j}, TypeError, "scale must be a number"),
        ({"scale": float("nan")}, ValueError, "scale must be a finite number, got nan"),
        ({"scale": -math.inf}, ValueError, "scale must be a finite number, got -inf"),
        ({"scale": 10**400}, ValueError, "scale must be a finite number"),
    ],
)
def test_bad_arguments(tmp_path, monkeypatch, arguments, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pt").touch()
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "adapter_config.json").touch()
    with pytest.raises(error, match=f"a LoRA's {message}"):
        UserLora(**{"path": "x.pt"} | arguments)


def test_values(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.pt").touch()
    lora = UserLora("x.pt", Fraction(1, 2))
    assert lora == UserLora("~/x.pt", 0.5) and lora.path == tmp_path / "x.pt" and type(lora.scale) is float
    assert dataclasses.replace(lora, scale=-3).scale == -3 and UserLora("x.pt").scale == 1


def test_loras_must_be_user_loras(model_files):
    for loras in ([{"path": "x.pt"}], ["x.pt"], {"path": "x.pt"}):
        with pytest.raises(TypeError, match=r"loras must hold UserLora objects, got (dict|str)"):
            load_generator(model_files, "cpu", torch.float32, loras=loras)


def wider(tensors):
    return {key: torch.cat((t, t), 1) if "lora_A" in key else torch.cat((t, t)) for key, t in tensors.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            wider,
            r"does not fit this model.* 4 of another shape \(blocks\.0\.self_attn\.q\.A is \[1, 512\], expected \[1, ",
        ),
        (lambda t: t | {f"{FFN}.lora_B.weight": torch.zeros(512, 3)}, r"ffn\.0\.B is \[512, 3\], expected \[512, 2\]"),
        (lambda t: t | {f"{FFN}.lora_B.weight": torch.zeros(512, 2, 1, 1)}, r"ffn\.0\.B is \[512, 2, 1, 1\], expected"),
        (lambda t: t | {f"{Q}.lora_A.weight": torch.zeros(())}, r"self_attn\.q\.A is \[\], expected \[1, 256\]"),
        (
            lambda t: t | {f"{Q}.lora_A.weight": torch.zeros(0, 256), f"{Q}.lora_B.weight": torch.zeros(256, 0)},
            r"self_attn\.q\.A is \[0, 256\], expected \[1, 256\]",
        ),
        (lambda t: {k: v for k, v in t.items() if "lora_B" not in k}, r"lacks blocks\.0\.self_attn\.q\.B, blocks\.1"),
        (lambda t: t | {f"{Q}.lora_A.weight": torch.ones(1, 256, dtype=torch.int8)}, "1 not floating point .*int8"),
        (lambda t: t | {f"{Q}.alpha": torch.ones(2)}, r"self_attn\.q\.alpha is \[2\], expected \[\]"),
        (
            lambda t: t | {f"{Q}.lora_down.weight": torch.zeros(1, 256)},
            r"A of blocks\.0\.self_attn\.q twice.*lora_down",
        ),
        (
            lambda t: t | {f"diffusion_model.{Q}.lora_B.weight": torch.zeros(256, 1)},
            r"B of blocks\.0\.self_attn\.q twice",
        ),
        (
            lambda t: t | {f"{Q}.lora_A.weight": torch.full((1, 256), torch.inf)},
            r"adds NaN, infinity .* to .*self_attn\.q",
        ),
        (lambda t: t | {f"{FFN}.lora_B.weight": torch.full((512, 2), torch.nan)}, r"adds NaN, infinity .* to .*ffn\.0"),
        (lambda t: t | {f"{FFN}.alpha": torch.tensor(torch.nan)}, r"adds NaN, infinity .* to .*ffn\.0"),
        (
            lambda t: t | {f"{Q}.dora_scale": torch.ones(255, 1)},
            r"self_attn\.q\.magnitude is \[255, 1\], expected \[256\]",
        ),
        (
            lambda t: t | {f"{Q}.lora_magnitude_vector": torch.full((256,), torch.nan)},
            r"adds NaN, .* to .*self_attn\.q",
        ),
        (
            lambda t: t | {"blocks.0.self_attn.k.dora_scale": torch.ones(256, 1)},
            r"2 missing \(blocks\.0\.self_attn\.k\.A",
        ),
        (
            lambda t: {f"transformer.blocks.9.attn1.to_q.{k[-13:]}": v for k, v in t.items()},
            "holds no LoRA of this model's",
        ),
        (lambda t: {f"lora_unet_blocks_9_{k}": v for k, v in t.items()}, "holds no LoRA of this model's"),
        (
            lambda t: {f"{Q}.hada_w1_a": torch.zeros(256, 1), f"{Q}.alpha": torch.tensor(1.0)},
            r"3 missing \(blocks\.0\.self_attn\.q\.hada_w1_b",
        ),
        (lambda t: {"patch_embedding.lora_A.weight": torch.zeros(1, 64)}, r"lacks patch_embedding\.B$"),
        (lambda t: {f"{Q}.bias.lora_A.weight": torch.zeros(1, 64)}, "holds tensors that are of an unknown kind"),
        (
            lambda t: {f"blocks.0.norm3.lora_{half}.weight": torch.zeros(1, 256) for half in "AB"},
            r"2 unexpected \(blocks\.0\.norm3\.A, blocks\.0\.norm3\.B\)",
        ),
        (
            lambda t: {f"blocks.0.modulation.lora_{half}.weight": torch.zeros(1, 256) for half in "AB"},
            r"2 unexpected \(blocks\.0\.modulation\.A",
        ),
        (lambda t: t | {f"{Q}.diff": torch.zeros(256)}, r"self_attn\.q\.difference is \[256\], expected \[256, 256\]"),
        (
            lambda t: t | {f"{Q}.diff_b": torch.full((256,), torch.inf)},
            r"adds NaN, infinity .* to .*self_attn\.q\.bias",
        ),
        (
            lambda t: t | {f"{Q}.diff_m": torch.zeros(6)},
            r"1 unexpected \(blocks\.0\.self_attn\.q\.modulation difference",
        ),
        (
            lambda t: {f"{Q}.lokr_w1": torch.ones(3, 4), f"{Q}.lokr_w2": torch.ones(64, 64)},
            r"self_attn\.q\.lokr_w1 is \[3, 4\], expected \[256, 256\]",
        ),
        (
            lambda t: {f"{Q}.lokr_w1": torch.ones(4, 4), f"{Q}.lokr_w2": torch.ones(64, 32)},
            r"self_attn\.q\.lokr_w2 is \[64, 32\], expected \[64, 64\]",
        ),
        (
            lambda t: t | {f"{Q}.lokr_w1": torch.ones(4, 4), f"{Q}.lokr_w2": torch.ones(64, 64)},
            r"2 unexpected \(blocks\.0\.self_attn\.q\.A",
        ),
    ],
)
def test_files_that_do_not_fit(model_files, path, change, message):
    tensors = tensors_of(halves([Q, FFN]))
    check_loras(model_files, [UserLora(write(path, tensors))])
    lora = UserLora(write(path, change(tensors)), 0.0)
    for run in (
        lambda: check_loras(model_files, [lora]),
        lambda: load_generator(model_files, "meta", torch.float32, loras=[lora]),
    ):
        with pytest.raises(CheckpointError, match=message) as caught:
            run()
        assert str(path) in str(caught.value)


def test_sums_that_would_overflow(model_files, path):
    """Found before anything is written, although A, B and the scale are finite."""
    write(path, tensors_of(halves([Q, FFN]), alpha=torch.tensor(1e20)))
    with pytest.raises(CheckpointError, match=r"at scale 1e\+15 adds NaN, infinity or about that to .*q.*, .*ffn\.0"):
        check_loras(model_files, [UserLora(path, 1e15)])
    check_loras(model_files, [UserLora(path, 1e-15)])
    write(path, tensors_of({Q: (torch.zeros(1, 256), torch.ones(256, 1))}, alpha=torch.tensor(1e20)))
    with pytest.raises(CheckpointError, match="adds NaN, infinity or about that"):
        check_loras(model_files, [UserLora(path, 1e25)])


@pytest.mark.parametrize("content", [b"", b"<!doctype html>", b"version https://git-lfs", b"\xff" * 100])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_files_that_are_none(model_files, tmp_path, suffix, content):
    file = tmp_path / f"x{suffix}"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"x{suffix} "):
        check_loras(model_files, [UserLora(file)])


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", "{}", '{"lora_alpha": true}', '{"lora_alpha": NaN}', '{"lora_alpha": 1e999}', '{"lora_alpha": [8]}',
        '{"lora_alpha": 8, "alpha_pattern": {"q": "x"}}', '{"lora_alpha": 8, "alpha_pattern": [1]}',
        '{"lora_alpha": 8, "alpha_pattern": {"(a+)+$": 2}}', '{"lora_alpha": 8, "peft_type": "VERA"}',
        '{"lora_alpha": 8, "init_lora_weights": "pissa_niter_4"}', "[" * 100_000, " " * (1 << 23),
    ],
)  # fmt: skip
def test_peft_configs_that_cannot_be_used(model_files, tmp_path, text):
    file = write(tmp_path / "adapter_model.safetensors", tensors_of(halves([Q])))
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(
        CheckpointError, match=r"adapter_config\.json( is not valid|: | must hold| says .*(VERA|pissa)| is larger)"
    ):
        check_loras(model_files, [UserLora(file)])


def test_a_bad_lora_is_found_before_memory_is_taken(model_files, path, monkeypatch):
    lora = UserLora(write(path, {"x": torch.zeros(1)}))
    monkeypatch.setattr(load, "Transformer", lambda *_, **__: pytest.fail("the network was made"))
    for run in (check_loras, lambda files, loras: load_generator(files, "cuda", torch.bfloat16, loras=loras)):
        with pytest.raises(CheckpointError, match="holds no LoRA"):
            run(model_files, [lora])


def test_what_is_ignored_is_said_once(model_files, plain, path, caplog):
    """Modules of larger relatives, other networks, an alpha without its LoRA."""
    pairs = halves([Q])
    others = {"blocks.40.self_attn.q.lora_A.weight": torch.zeros(1, 256), "lora_te_text_model.alpha": torch.tensor(1.0)}
    others |= {"vace_blocks.0.self_attn.q.lora_A.weight": torch.ones(1, 256)}
    others |= {"blocks.0.cross_attn.k_img.lora_A.weight": torch.ones(1, 256), f"{FFN}.alpha": torch.tensor(3.0)}
    write(path, tensors_of(pairs) | others)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            check_merge(merged(model_files, UserLora(path)), plain, pairs)
    [record] = caplog.records
    text = record.getMessage()
    assert str(path) in text and "4 tensors" in text
    assert all(name in text for name in others if not name.endswith("ffn.0.alpha"))


@pytest.mark.parametrize("gone", ["lora_A.weight", "lora_B.weight"])
def test_a_lora_of_which_one_half_is_missing_is_left_out_and_named(model_files, plain, path, caplog, gone):
    """The others act, and what else the file holds of that module."""
    pairs, change = halves([Q, FFN, "blocks.0.cross_attn.q"]), torch.randn(SHAPES[f"{Q}.bias"])
    tensors = {key: t for key, t in tensors_of(pairs).items() if key not in (f"{Q}.{gone}", f"{FFN}.{gone}")}
    write(path, tensors | {f"{Q}.diff_b": change, f"{Q}.alpha": torch.tensor(3.0)})
    with caplog.at_level(logging.WARNING):
        found = merged(model_files, UserLora(path))
    [record] = caplog.records
    half = "B" if gone == "lora_B.weight" else "A"
    assert str(path) in record.getMessage() and f"2 modules is missing, and the other ignored: {Q}.{half}" in (
        record.getMessage()
    )
    assert torch.equal(found[f"{Q}.weight"], plain[f"{Q}.weight"]) and torch.equal(
        found[f"{FFN}.weight"], plain[f"{FFN}.weight"]
    )
    assert torch.equal(found[f"{Q}.bias"], plain[f"{Q}.bias"] + change)
    assert not torch.equal(found["blocks.0.cross_attn.q.weight"], plain["blocks.0.cross_attn.q.weight"])


def test_nothing_is_said_of_a_whole_lora(model_files, path, caplog):
    write(path, tensors_of(halves(LINEARS), kohya("lora_unet_"), torch.tensor(1.0)))
    with caplog.at_level(logging.INFO):
        merged(model_files, UserLora(path))
    assert not caplog.records


def test_error_of_loading_names_every_file(files, path, edit):
    key = f"model.{Q}.weight"
    edit(files.generator, lambda content: content["generator"][key].fill_(torch.nan) is None or None)
    write(path, tensors_of(halves([Q])))
    with pytest.raises(
        CheckpointError, match=r"base\.pt merged with .*lora\.pt merged with .*style\.s.* NaN or infinity in"
    ):
        load_generator(files, "cpu", torch.float32, loras=[UserLora(path)])


# ---- other scales in place


@pytest.fixture
def two(tmp_path):
    """Two LoRAs that share a module."""
    first, second = halves([Q, FFN], 1), halves([FFN, "text_embedding.0"], 2)
    return [
        UserLora(write(tmp_path / "a.safetensors", tensors_of(first, kohya("lora_unet_"), torch.tensor(1.5))), 0.5),
        UserLora(write(tmp_path / "b.pt", tensors_of(second)), 2),
    ]


def scaled(loras, *scales):
    return [dataclasses.replace(lora, scale=scale) for lora, scale in zip(loras, scales, strict=True)]


def bits(model):
    return {key: value.clone().view(torch.uint8) for key, value in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_refill_equals_a_fresh_load_bit_for_bit(model_files, two, dtype):
    model = load_generator(model_files, "cpu", dtype, loras=two)
    places = {key: value.data_ptr() for key, value in model.state_dict().items()}
    for scales in [(1.0, 1.0), (-0.3, 0.0), (7.1, 1e-3), (0.0, 0.0), (0.5, 2.0)]:
        loras = scaled(two, *scales)
        refill_generator(model, model_files, loras)
        assert same(bits(model), bits(load_generator(model_files, "cpu", dtype, loras=loras)))
        assert places == {key: value.data_ptr() for key, value in model.state_dict().items()}
        if not any(scales):
            assert same(bits(model), bits(load_generator(model_files, "cpu", dtype)))


def test_refill_with_a_new_lora_and_without_longlives_own(model_files, two):
    alone = dataclasses.replace(model_files, lora=None)
    model = load_generator(alone, "cpu", torch.bfloat16)
    before = bits(model)
    refill_generator(model, alone, [])
    assert same(bits(model), before)
    refill_generator(model, alone, two)
    assert same(bits(model), bits(load_generator(alone, "cpu", torch.bfloat16, loras=two)))


def test_refill_writes_only_what_is_adapted(model_files, two):
    model = load_generator(model_files, "cpu", torch.float32, loras=two)
    adapted = {f"{module}.weight" for module in (Q, FFN, "text_embedding.0")}
    for slot in model.checkpoint_slots().values():
        slot.write(torch.full(slot.shape, 3))
    steps = []
    refill_generator(model, model_files, two, progress=lambda done, total: steps.append((done, total)))
    found = stored(model)
    assert {key for key, tensor in found.items() if not (tensor == 3).all()} == adapted
    total = sum(found[key].nbytes for key in adapted)
    assert len(steps) == 3 and steps[-1] == (total, total)


def test_refill_touches_nothing_if_a_file_is_bad(files, two, path):
    model = load_generator(files, "cpu", torch.bfloat16, loras=two)
    before, loras = bits(model), scaled(two, 3, 3)

    def refused(error, message, files=files, loras=loras):
        with pytest.raises(error, match=message):
            refill_generator(model, files, loras)
        assert same(bits(model), before)

    refused(CheckpointError, "holds no LoRA", loras=[*loras, UserLora(write(path, {"x": torch.zeros(1)}))])
    refused(TypeError, "loras must hold UserLora", loras=[*loras, "x"])
    good = two[1].path.read_bytes()
    two[1].path.write_bytes(good[: len(good) // 2])
    refused(CheckpointError, r"b\.pt is damaged")
    two[1].path.unlink()
    refused(FileNotFoundError, r"b\.pt")
    two[1].path.write_bytes(good)
    config = json.loads(files.config.read_text())
    files.config.write_text(json.dumps(config | {"text_len": 256}))
    refused(ValueError, r"files: the model was not made from .*config\.json")
    files.config.write_text(json.dumps(config))
    files.generator.rename(path)
    refused(FileNotFoundError, r"longlive_base\.pt")
    path.rename(files.generator)
    refill_generator(model, files, loras)
    assert not same(bits(model), before)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), OSError("the disk is gone")])
def test_refill_that_fails_while_writing_says_so_and_can_be_repeated(model_files, two, monkeypatch, error):
    model = load_generator(model_files, "cpu", torch.bfloat16, loras=two)
    wanted, calls, merge = bits(model), [], load.merge

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise error
        return merge(*arguments)

    monkeypatch.setattr(load, "merge", failing)
    with pytest.raises(RuntimeError, match=rf"partly rewritten.*{error}") as caught:
        refill_generator(model, model_files, scaled(two, 3, 3))
    kind = torch.OutOfMemoryError if isinstance(error, torch.OutOfMemoryError) else RuntimeError
    assert type(caught.value) is kind and not same(bits(model), wanted)
    refill_generator(model, model_files, two)
    assert same(bits(model), wanted)


def test_refill_from_files_spoilt_since_says_so(files, two, edit):
    model = load_generator(files, "cpu", torch.bfloat16, loras=two)
    edit(files.generator, lambda content: content["generator"][f"model.{Q}.weight"].fill_(torch.nan) is None or None)
    with pytest.raises(RuntimeError, match=r"partly rewritten.*NaN or infinity in blocks\.0\.self_attn\.q\.weight"):
        refill_generator(model, files, two)


@pytest.fixture
def every_kind(tmp_path):
    """A LoRA, a DoRA, a LoHa, a LoKr, plain differences and a half, in one file."""
    tensors = tensors_of(halves([Q, FFN], 3), alpha=torch.tensor(0.7))
    k, v, o = (f"blocks.1.cross_attn.{leaf}" for leaf in "kvo")
    tensors |= {f"{Q}.dora_scale": torch.rand(256, 1), f"{FFN}.diff_b": torch.randn(SHAPES[f"{FFN}.bias"])}
    tensors |= {
        f"{k}.hada_w{i}_{half}": torch.randn(2, 256).T if half == "a" else torch.randn(2, 256)
        for i in (1, 2)
        for half in "ab"
    }
    tensors |= {
        f"{v}.lokr_w1": torch.randn(4, 4),
        f"{v}.lokr_w2_a": torch.randn(64, 2),
        f"{v}.lokr_w2_b": torch.randn(2, 64),
    }
    tensors |= {"blocks.0.diff_m": torch.randn(1, 6, 256), f"{o}.lora_A.weight": torch.randn(2, 256)}
    return UserLora(write(tmp_path / "every.safetensors", {key: t.contiguous() for key, t in tensors.items()}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_gives_the_weights_of_a_fresh_load_without_a_file(
    model_files, two, every_kind, monkeypatch, dtype
):
    loras = [*two, every_kind]
    model = load_generator(model_files, "cpu", dtype, loras=loras)
    kept = keep_unmerged(model, model_files, loras)
    every = [(0.3, 0.7, -1.0), (0.0, 0.0, 0.0), (-2.0, 1e-3, 3.7), (1 / 3, 1.0, 0.1)]
    wanted = [bits(load_generator(model_files, "cpu", dtype, loras=scaled(loras, *scales))) for scales in every]
    monkeypatch.setattr(load, "tensors_in", lambda *_: pytest.fail("a file was read"))
    monkeypatch.setattr("longlive_optimized.weights.user_lora.tensors_in", lambda *_: pytest.fail("a file was read"))
    for scales, want in zip(every, wanted, strict=True):
        refill_generator(model, model_files, scaled(loras, *scales), unmerged=kept)
        assert same(bits(model), want)
    refill_generator(model, model_files, [dataclasses.replace(loras[1], scale=1.0)], unmerged=kept)
    monkeypatch.undo()
    assert same(
        bits(model), bits(load_generator(model_files, "cpu", dtype, loras=[dataclasses.replace(two[1], scale=1.0)]))
    )


def test_what_is_kept_is_no_wider_than_its_files(model_files, two):
    model = load_generator(model_files, "cpu", torch.float32, loras=two)
    kept = keep_unmerged(model, model_files, two)
    assert kept.tensors.keys() == model.adapted and kept.device.type == "cpu"
    assert kept.nbytes < 1.1 * sum(2 * SHAPES[key].numel() for key in kept.tensors) + (1 << 17)


def test_what_is_kept_does_not_count_for_other_files(model_files, two, path):
    model = load_generator(model_files, "cpu", torch.bfloat16, loras=two)
    kept = keep_unmerged(model, model_files, two[:1])
    assert kept.covers(scaled(two[:1], 7.0)) and not kept.covers(two)
    refill_generator(model, model_files, two, unmerged=kept)
    assert same(bits(model), bits(load_generator(model_files, "cpu", torch.bfloat16, loras=two)))
    write(two[0].path, tensors_of(halves([Q], 9)))
    assert not kept.covers(two[:1])
    refill_generator(model, model_files, two[:1], unmerged=kept)
    assert same(bits(model), bits(load_generator(model_files, "cpu", torch.bfloat16, loras=two[:1])))


def test_a_scale_too_large_for_what_is_kept_changes_nothing(model_files, two):
    model = load_generator(model_files, "cpu", torch.bfloat16, loras=two)
    kept, before = keep_unmerged(model, model_files, two), bits(model)
    with pytest.raises(CheckpointError, match=r"a\.safetensors at scale 9.9e\+29 adds NaN, infinity or about that"):
        refill_generator(model, model_files, scaled(two, 9.9e29, 1), unmerged=kept)
    assert same(bits(model), before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("spare", [0, 1 << 50], ids=["on the GPU", "in pinned memory"])
def test_what_is_kept_gives_the_same_weights_on_a_gpu(model_files, two, every_kind, monkeypatch, spare):
    monkeypatch.setattr("longlive_optimized.weights.unmerged._SPARE", spare)
    loras = [*two, every_kind]
    model = load_generator(model_files, "cuda", torch.bfloat16, loras=loras)
    kept = keep_unmerged(model, model_files, loras)
    assert kept.device.type == ("cpu" if spare else "cuda")
    for scales in [(0.3, 0.7, -1.0), (0.0, 0.0, 0.0), (1 / 3, 1.0, 0.1)]:
        refill_generator(model, model_files, scaled(loras, *scales), unmerged=kept)
        fresh = load_generator(model_files, "cuda", torch.bfloat16, loras=scaled(loras, *scales))
        assert same(bits(model), bits(fresh))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_refill_under_a_cuda_graph(model_files, two):
    model = load_generator(model_files, "cuda", torch.bfloat16, loras=two)
    x = torch.randn(4, TINY.dim, device="cuda", dtype=torch.bfloat16)
    ffn = model.blocks[1].ffn_in
    with torch.no_grad():
        ffn(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = ffn(x)
        loras = scaled(two, -2, 3)
        refill_generator(model, model_files, loras)
        fresh = load_generator(model_files, "cuda", torch.bfloat16, loras=loras)
        assert same(bits(model), bits(fresh))
        graph.replay()
        assert torch.equal(y, fresh.blocks[1].ffn_in(x))
