"""Everything that people really have in place of a checkpoint: each is told apart, by file name."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from longlive_optimized.weights import CheckpointError
from longlive_optimized.weights.files import open_checkpoint
from longlive_optimized.weights.load import check, load_generator, load_vae
from longlive_optimized.weights.text import load_text_encoder

CHECKPOINTS = ["generator", "lora", "vae", "text"]
HTML = b"\n<!DOCTYPE html>\n<html><body>404</body></html>"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 2838254407\n"


@pytest.mark.parametrize("part", CHECKPOINTS)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HTML, "is a web page"),
        (LFS, "git-lfs pointer"),
        (b"", "is empty"),
        (b'{"error": "Repository not found"}', "is a text, not a checkpoint.*Repository not found"),
        (b"Entry not found\n", "is a text, not a checkpoint"),
        (b"\x1f\x8b\x08\x00 and so on", "is a compressed file"),
        (b"7z\xbc\xaf\x27\x1c", "is a compressed file"),
        (b"GGUF\x03\x00\x00\x00", "is not a PyTorch checkpoint"),
        (b"PK\x03\x04 and nothing of use", "damaged or cut short"),
        (b"\x80\x02", "damaged or cut short"),
    ],
    ids=["html", "lfs", "empty", "json", "text", "gzip", "7z", "gguf", "no zip", "no pickle"],
)
def test_stand_ins(files, part, content, message):
    path = getattr(files, part)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        check(files)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("part", CHECKPOINTS)
def test_safetensors_under_a_torch_files_name(files, part):
    save_file({"a": torch.zeros(4)}, getattr(files, part))
    with pytest.raises(CheckpointError, match=f"{getattr(files, part)} is a safetensors file in spite of its name"):
        check(files)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_file_under_a_safetensors_name(tmp_path, zipped):
    path = tmp_path / "umt5.safetensors"
    torch.save({"a": torch.zeros(4)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=f"{path} is a torch file in spite of its name"):
        open_checkpoint(path)


@pytest.mark.parametrize("letters", range(1, 800, 13))
def test_safetensors_headers_of_any_length(tmp_path, letters):
    """The first bytes are the header's length, and may be those of other formats: a pickle, gzip, a letter."""
    save_file({"a" * letters: torch.zeros(1)}, tmp_path / "x.safetensors")
    assert list(open_checkpoint(tmp_path / "x.safetensors")) == ["a" * letters]


def cut_short(path):
    os.truncate(path, 64)


def overwritten(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def replaced(path):
    path.with_name("new").write_bytes(b"other")
    path.with_name("new").replace(path)


@pytest.mark.parametrize("change", [cut_short, overwritten, replaced])
@pytest.mark.parametrize(
    ("part", "loader"),
    [("generator", load_generator), ("lora", load_generator), ("vae", load_vae), ("text", load_text_encoder)],
)
def test_a_file_that_changes_while_it_is_loaded(files, part, loader, change):
    """A mixture of old and new is never loaded, and a file cut short does not end the process."""
    path, told = getattr(files, part), []

    def progress(done, total):
        if not told:
            told.append(change(path))

    with pytest.raises(CheckpointError, match=f"{path} has changed while it was read"):
        loader(files, "cpu", torch.float32, progress=progress)


def test_a_users_lora_that_changes_while_it_is_loaded(files, tmp_path):
    from longlive_optimized.weights.user_lora import UserLora

    path = tmp_path / "x.safetensors"
    save_file({"head.head.diff_b": torch.zeros(64)}, path)
    with pytest.raises(CheckpointError, match=f"{path} has changed while it was read"):
        load_generator(files, "cpu", torch.float32, lambda done, total: cut_short(path), [UserLora(path)])


@pytest.mark.parametrize("part", CHECKPOINTS)
@pytest.mark.parametrize("share", [0.2, 0.99])
def test_truncated(files, part, share):
    path = getattr(files, part)
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.raises(CheckpointError, match=rf"{path.name} is damaged or cut short \(\d+ bytes\)"):
        check(files)


def test_truncated_safetensors(tmp_path):
    path = tmp_path / "umt5.safetensors"
    save_file({"a": torch.zeros(1000)}, path)
    assert open_checkpoint(path)["a"].shape == (1000,)
    os.truncate(path, 500)
    with pytest.raises(CheckpointError, match="cut short"):
        open_checkpoint(path)
    path.write_bytes(HTML)
    with pytest.raises(CheckpointError, match="web page"):
        open_checkpoint(path)


class Bomb:
    def __reduce__(self):
        return os.mkdir, (os.environ["LONGLIVE_TEST_BOMB"],)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_not_run(files, tmp_path, monkeypatch, zipped):
    monkeypatch.setenv("LONGLIVE_TEST_BOMB", str(tmp_path / "exploded"))
    torch.save({"generator": Bomb()}, files.generator, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"longlive_base\.pt holds Python objects besides tensors \(\w+\.mkdir\)"):
        check(files)
    assert not (tmp_path / "exploded").exists()


def test_gone(files):
    files.lora.unlink()
    with pytest.raises(FileNotFoundError):
        check(files)


@pytest.mark.parametrize(
    "content",
    [
        {"critic": {"x": torch.zeros(1)}, "step": 4},
        {"generator": "weights"},
        {"generator": {}},
        {"generator": {"x": 1}},
        {},
    ],
)
def test_wrong_container(files, content):
    torch.save(content, files.generator)
    with pytest.raises(CheckpointError, match="has no tensors by name under 'generator' or"):
        check(files)


def test_no_dict(files):
    torch.save(torch.zeros(3), files.vae)
    with pytest.raises(CheckpointError, match="holds a Tensor, expected tensors by name"):
        check(files)


def body(part, content):
    return content.get({"generator": "generator", "lora": "generator_lora"}.get(part), content)


@pytest.mark.parametrize("part", CHECKPOINTS)
def test_missing_unexpected_and_misshapen_tensors(files, part, edit):
    path = getattr(files, part)
    # Tensors whose absence no dimension is read from.
    key, wider = {
        "generator": ("model.blocks.1.ffn.2.bias", "model.head.head.weight"),
        "lora": ("base_model.model.blocks.1.ffn.2.lora_B.weight", "base_model.model.blocks.0.ffn.0.lora_B.weight"),
        "vae": ("encoder.conv1.bias", "decoder.middle.1.proj.weight"),
        "text": ("blocks.1.norm2.weight", "blocks.1.attn.k.weight"),
    }[part]

    edit(path, lambda content: body(part, content).pop(key) is None or None)
    named = key.removeprefix("model.")
    with pytest.raises(CheckpointError, match=rf"{path.name} does not fit .*: 1 missing \({named}\)$"):
        check(files)

    def change(content):
        tensors = body(part, content)
        tensors[key] = torch.zeros(7, dtype=torch.int64)
        tensors["surplus.weight"] = torch.zeros(1)
        tensors[wider] = torch.cat((tensors[wider],) * 2)

    edit(path, change)
    with pytest.raises(CheckpointError) as caught:
        check(files)
    text, shape = str(caught.value), list(body(part, torch.load(path, weights_only=True))[wider].shape)
    assert str(path) in text
    assert "1 unexpected (surplus.weight)" in text and "2 of another shape" in text and "1 not floating point" in text
    half = [shape[0] // 2, *shape[1:]]
    assert f"{wider.removeprefix('model.')} is {shape}, expected {half}" in text
    assert f"{named} is [7], expected" in text


def test_many_problems_are_counted(files, edit):
    edit(files.generator, lambda content: {f"model.x{key}": t for key, t in content["generator"].items()})
    with pytest.raises(CheckpointError, match=r"69 missing \(.*, .* and 65 more\); 69 unexpected \(.* and 65 more\)"):
        check(files)


def test_prefixed_and_bare_names_at_once(files, edit):
    edit(files.generator, lambda c: c["generator"].update({"head.modulation": c["generator"]["model.head.modulation"]}))
    with pytest.raises(CheckpointError, match="twice"):
        check(files)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"dim": 512, "num_heads": 4},
            r"longlive_base\.pt does not fit .*config\.json.*is \[256, 16, 1, 2, 2\], expected \[512, 16",
        ),
        ({"num_layers": 3}, "27 missing"),
        ({"num_layers": 1}, "27 unexpected"),
        ({"ffn_dim": 8960}, r"ffn\.0\.weight is \[512, 256\], expected \[8960, 256\]"),
        ({"text_dim": 4096}, r"text_embedding\.0\.weight is \[256, 64\], expected \[256, 4096\]"),
        ({"in_dim": 36}, r"patch_embedding\.weight is \[256, 16, 1, 2, 2\], expected \[256, 36"),
        ({"dim": "wide"}, r"config\.json: dim must be a whole number from 1 to 16384, got 'wide'"),
        ({"num_heads": 3}, r"config\.json: dim must be a multiple"),
    ],
)
def test_config_that_does_not_fit(files, change, message):
    files.config.write_text(json.dumps(json.loads(files.config.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        check(files)


@pytest.mark.parametrize("content", ["", "[1, 2]", "{", HTML.decode()])
def test_config_that_is_none(files, content):
    files.config.write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        check(files)


def test_parts_of_different_models(files, edit):
    def widen(content):  # a umT5 of twice the width, consistent in itself
        for key, tensor in content.items():
            if "pos_embedding" in key:
                continue
            in_axis = tensor.ndim - 1
            double = [in_axis] if not key.endswith(("attn.o.weight", "ffn.fc2.weight")) else [0]
            for axis in double:
                content[key] = torch.cat((tensor, tensor), axis)

    edit(files.text, widen)
    with pytest.raises(CheckpointError, match=r"makes embeddings of width 128, .*config\.json has text_dim 64"):
        check(files)


def test_tokenizer_of_another_text_encoder(files, edit):
    def shorten(content):
        content["token_embedding.weight"] = content["token_embedding.weight"][:1000].clone()

    edit(files.text, shorten)
    with pytest.raises(CheckpointError, match=r"has \d+ ids, the token_embedding.* only 1000 rows"):
        check(files)
    (files.tokenizer / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        check(files)


def test_latents_of_another_model(files, edit):
    """A generator of four channels, consistent with its config.json, beside a VAE of sixteen."""

    def four_channels(content):
        tensors = content["generator"]
        tensors["model.patch_embedding.weight"] = tensors["model.patch_embedding.weight"][:, :4].clone()
        for name in ("weight", "bias"):
            tensors[f"model.head.head.{name}"] = tensors[f"model.head.head.{name}"][:16].clone()

    edit(files.generator, four_channels)
    files.config.write_text(json.dumps(json.loads(files.config.read_text()) | {"in_dim": 4, "out_dim": 4}))
    with pytest.raises(CheckpointError, match=r"VAE\.pth has 16 latent channels, .* has in_dim 4, out_dim 4"):
        check(files)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("part", "key", "loader", "named"),
    [
        ("generator", "model.blocks.1.self_attn.k.bias", load_generator, "blocks.1.self_attn.k.bias"),
        ("lora", "base_model.model.blocks.0.ffn.0.lora_A.weight", load_generator, "blocks.0.ffn.0.weight"),
        ("vae", "decoder.conv1.bias", load_vae, "decoder.conv1.bias"),
        ("text", "blocks.0.ffn.fc1.weight", load_text_encoder, "blocks.0.ffn.fc1.weight"),
    ],
)
def test_not_finite(files, edit, value, part, key, loader, named):
    edit(getattr(files, part), lambda content: body(part, content)[key].view(-1)[-1:].fill_(value) is None or None)
    check(files)  # names and shapes are in order
    with pytest.raises(CheckpointError, match=rf"{getattr(files, part).name}.* holds NaN or infinity in {named}$"):
        loader(files, "cpu", torch.bfloat16)
