"""Finding a model's files in every layout that is accepted."""

import dataclasses
import shutil

import pytest

from longlive_optimized.weights.locate import ModelFiles, locate

WAN = "Wan2.1-T2V-1.3B"
TOKENIZER = f"{WAN}/google/umt5-xxl/tokenizer.json"
BF16, FP8 = f"{WAN}/models_t5_umt5-xxl-enc-bf16.pth", "WanVideo_comfy/umt5-xxl-enc-fp8_e4m3fn.safetensors"
GENERATOR = ["models/longlive_base.pt", "models/lora.pt"]
PLAIN = [f"{WAN}/config.json", f"{WAN}/Wan2.1_VAE.pth", TOKENIZER]
SCOPE = [*(f"LongLive-1.3B/{name}" for name in GENERATOR), *PLAIN, FP8]
SMALL_VAES = {"lightvae": "lightvaew2_1.pth", "tae": "taew2_1.pth", "lighttae": "lighttaew2_1.pth"}


def own(generator, wan):
    return [*(f"{generator}{name}" for name in GENERATOR), *(f"{wan}{name}" for name in [*PLAIN, BF16])]


def plant(root, names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


@pytest.mark.parametrize(
    ("names", "start"),
    [
        (own("longlive_models/", "wan_models/"), "."),
        (own("longlive_models/", "wan_models/"), "longlive_models"),  # wan_models beside it
        (own("longlive_models/", "longlive_models/wan_models/"), "longlive_models"),  # ... or in it
        (own("weights/", "weights/wan_models/"), "weights"),  # under another name
        (SCOPE, "."),
        (SCOPE, "LongLive-1.3B"),
    ],
)
def test_layouts(tmp_path, names, start):
    plant(tmp_path, names)
    found = locate(str(tmp_path / start))
    parts = {found.config, found.generator, found.lora, found.vae, found.text, found.tokenizer / "tokenizer.json"}
    assert parts == {tmp_path / name for name in names}
    assert found.generator.name == "longlive_base.pt" and found.lora.name == "lora.pt"
    assert found.config.name == "config.json" and found.vae.name == "Wan2.1_VAE.pth"


def test_relative_path_and_home(tmp_path, monkeypatch):
    plant(tmp_path / "models", SCOPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("models") == locate("~/models") == locate(tmp_path / "models")
    assert locate("models/LongLive-1.3B").text.is_file()


def test_linked_folder(tmp_path):
    plant(tmp_path / "models", [name for name in SCOPE if "LongLive" not in name])
    plant(tmp_path / "other disk", [name for name in SCOPE if "LongLive" in name])
    (tmp_path / "models" / "LongLive-1.3B").symlink_to(tmp_path / "other disk" / "LongLive-1.3B")
    assert locate(tmp_path / "models" / "LongLive-1.3B") == locate(tmp_path / "models")


def test_bf16_text_encoder_goes_first(tmp_path):
    plant(tmp_path, [*SCOPE, BF16])
    assert locate(tmp_path).text == tmp_path / BF16


@pytest.mark.parametrize("names", [SCOPE, own("longlive_models/", "wan_models/")], ids=["scope", "own"])
@pytest.mark.parametrize("vae_type", SMALL_VAES)
def test_vae_types(tmp_path, names, vae_type):
    plant(tmp_path, [*names, *(f"Autoencoders/{name}" for name in SMALL_VAES.values())])
    inner = tmp_path / ("LongLive-1.3B" if names is SCOPE else "longlive_models")
    plain = locate(tmp_path)
    assert plain.vae.name == "Wan2.1_VAE.pth" and plain.vae_type == "wan"
    for start in (tmp_path, inner):
        found = locate(start, vae_type=vae_type)
        assert found.vae == tmp_path / "Autoencoders" / SMALL_VAES[vae_type]
        assert found == dataclasses.replace(plain, vae=found.vae, vae_type=vae_type)


@pytest.mark.parametrize("vae_type", ["taehv", "", None])
def test_no_vae_type(tmp_path, vae_type):
    plant(tmp_path, SCOPE)
    with pytest.raises(ValueError, match=r"vae_type must be one of wan, lightvae, tae, lighttae, got"):
        locate(tmp_path, vae_type=vae_type)


@pytest.mark.parametrize("vae_type", SMALL_VAES)
def test_missing_small_vae(tmp_path, vae_type):
    """Another VAE is never taken in its place."""
    others = [name for kind, name in SMALL_VAES.items() if kind != vae_type]
    plant(tmp_path / "models", [*SCOPE, *(f"Autoencoders/{name}" for name in others)])
    with pytest.raises(FileNotFoundError, match="lacks vae; looked for") as caught:
        locate(tmp_path / "models", vae_type=vae_type)
    for shelf in (tmp_path / "models", tmp_path):
        assert str(shelf / "Autoencoders" / SMALL_VAES[vae_type]) in str(caught.value)


def test_without_lora(tmp_path, caplog):
    plant(tmp_path, [name for name in SCOPE if "lora" not in name])
    plant(tmp_path, ["longlive_models/models/lora.pt"])  # another generator's, which is not there
    assert locate(tmp_path).lora is None
    assert "no lora.pt beside" in caplog.text


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("LongLive-1.3B/models/longlive_base.pt", "generator"),
        (f"{WAN}/config.json", "config"),
        (f"{WAN}/Wan2.1_VAE.pth", "vae"),
        (FP8, "text"),
        (TOKENIZER, "tokenizer"),
    ],
)
def test_what_is_missing_is_named(tmp_path, name, part):
    plant(tmp_path, [other for other in SCOPE if other != name])
    with pytest.raises(FileNotFoundError, match=f"model_path: .* lacks {part}; looked for") as caught:
        locate(tmp_path)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("part", ["generator", "lora", "config", "vae", "text"])
@pytest.mark.parametrize(("kind", "message"), [("link", "is a link to nothing"), ("folder", "is no file")])
def test_what_is_there_but_is_no_file(pristine, tmp_path, part, kind, message):
    """As when a cache's blob is gone: never passed over, not even the LoRA, without which pictures are others."""
    folder = shutil.copytree(pristine, tmp_path / "model")
    path = getattr(locate(folder), part)
    path.unlink()
    path.mkdir() if kind == "folder" else path.symlink_to(tmp_path / "blobs" / "gone")
    with pytest.raises(FileNotFoundError, match=f"{path} {message}"):
        locate(folder)


def test_everything_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="lacks config, generator, vae, text, tokenizer;"):
        locate(tmp_path)


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="model_path"):
        locate(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        locate(tmp_path / "file")
    with pytest.raises(TypeError, match="model_path must be a folder"):
        locate(None)


def test_files_are_a_value(pristine):
    assert isinstance(locate(pristine), ModelFiles) and locate(pristine) == locate(pristine)
    with pytest.raises(AttributeError):
        locate(pristine).vae = None
