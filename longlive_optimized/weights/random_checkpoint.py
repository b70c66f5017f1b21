"""Random checkpoints in LongLive's public layout, for everything that needs weights of the right form and size.

The scales are chosen so that every part shows in the result: attention neither uniform nor one-hot (logits of standard
deviation 3 to 5), modulation and gains away from 0 and 1, flow of about unit size, pixels that fill their range.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import shutil
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..model.config import ModelConfig
from ..model.control import control_shapes
from ..model.transformer import generator_shapes
from ..plain import size_text
from ..vae.config import TaeConfig, VaeConfig
from ..vae.tae import Tae
from ..vae.wan.model import WanVae
from .lora import adapter_shapes
from .published import CONTROL_FILE, GENERATOR, LORA, TEXT_FILES, TOKENIZER, VAE_FILES
from .random_tokenizer import write_tokenizer
from .text import BytesDone

TINY = ModelConfig(dim=256, ffn_dim=512, num_heads=2, num_layers=2, text_dim=64)
_CONFIGS = {"tiny": (TINY, VaeConfig(base=8), 8), "1.3b": (ModelConfig(), VaeConfig(), 256)}  # model, VAE, LoRA rank
_SMALL_VAES = {"tiny": (VaeConfig(base=4), TaeConfig(8, (16, 12, 8, 8))), "1.3b": (VaeConfig(base=24), TaeConfig())}
_LONGLIVE = Path("longlive_models")
_WAN = Path("wan_models", "Wan2.1-T2V-1.3B")
_SMALL = Path("Autoencoders")
_MMAP_OPTIONS = threading.Lock()  # torch keeps them for the whole process
_CHUNK = 1 << 22  # numbers drawn at a time: bounds the float32 copy


class Normal(NamedTuple):
    mean: float
    std: float


Rule = Callable[[str, Sequence[int]], Normal]


class _File(NamedTuple):
    """A checkpoint file to be: tensors of ``dtype``, in ``container`` unless that is empty, names after ``prefix``."""

    path: Path
    shapes: Mapping[str, Sequence[int]]
    rule: Rule
    dtype: torch.dtype
    container: str = ""
    prefix: str = ""

    @property
    def bytes(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values()) * self.dtype.itemsize


def make_checkpoint(
    directory: str | os.PathLike[str],
    config: str,
    text: str | None = None,
    seed: int = 0,
    force: bool = False,
    progress: BytesDone | None = None,
    control: bool = False,
) -> Path:
    """Write a random checkpoint that ``locate`` finds and that is the same for the same seed; returns its folder.

    ``config``: ``tiny`` (two layers, a VAE of width 8) or ``1.3b`` (LongLive's own). ``text``: ``tiny`` (also for
    None), a small encoder with embeddings of the right width, or ``full``, umT5-XXL's dimensions, 11.4 GB, for 1.3b.
    ``control``: with a VACE module whose hints change the picture, 1.5 GB for 1.3b. ``progress(done, total)`` counts
    bytes. No file appears under its name before all of them are written.

    Raises FileExistsError where ``directory`` holds something, unless ``force`` (then files of the same name are
    replaced), ValueError, and OSError where the disk is too small.
    """
    root = Path(directory).expanduser().absolute()
    if config not in _CONFIGS:
        raise ValueError(f"config must be one of {', '.join(_CONFIGS)}, got {config!r}")
    if text not in (None, "tiny", "full"):
        raise ValueError(f"text must be tiny or full, got {text!r}")
    if text == "full" and config == "tiny":
        raise ValueError("text must be tiny where config is tiny: umT5-XXL's embeddings are too wide for it")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed must be a whole number, got {seed!r}")
    if root.exists() and (not root.is_dir() or (any(root.iterdir()) and not force)):
        raise FileExistsError(f"directory: {root} is there and no empty folder; force=True replaces its checkpoint")
    present = root.exists()
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root if present else root.parent, prefix=".make-checkpoint-") as scratch:
        made = Path(scratch) / root.name
        _write_all(made, config, text == "full", control, seed, progress)
        if present:
            _move_files(made, root)
        else:
            made.rename(root)  # all of it appears at once; onto a folder that was made meanwhile, this fails
    return root


def write_small_vaes(root: Path) -> None:
    """Write random autoencoders of every small type, as narrow as can be, into ``Autoencoders`` of ``root``."""
    light, tae = VaeConfig(base=2, multipliers=(1, 1, 1, 1)), TaeConfig(4, (4, 4, 4, 4))
    for file in _small_vae_files(light, tae, torch.bfloat16):
        for _ in _write(root / file.path, file, seed=0):
            pass


def _write_all(root: Path, name: str, full_text: bool, control: bool, seed: int, progress: BytesDone | None) -> None:
    vocabulary = write_tokenizer((root / _WAN / TOKENIZER).parent)
    _CONFIGS[name][0].to_json(root / _WAN / "config.json")
    files = _checkpoint_files(name, vocabulary, full_text)
    if control:
        files.append(_File(CONTROL_FILE, control_shapes(_CONFIGS[name][0]), _control_rule, torch.bfloat16))
    total, done = sum(file.bytes for file in files), 0
    if shutil.disk_usage(root).free < total:
        raise OSError(f"directory: the disk has too little room, {size_text(total)} are needed")
    for size in (size for file in files for size in _write(root / file.path, file, seed)):
        done += size
        if progress:
            progress(done, total)


def _checkpoint_files(name: str, vocabulary: int, full_text: bool) -> list[_File]:
    config, vae, rank = _CONFIGS[name]
    generator = generator_shapes(config)
    wan = _shapes(WanVae(vae, device="meta"))
    adapter, bf16 = adapter_shapes(generator, rank), torch.bfloat16
    text = _text_shapes(config, vocabulary, full_text)
    return [
        _File(_LONGLIVE / GENERATOR, generator, _generator_rule, bf16, "generator", "model."),
        _File(_LONGLIVE / LORA, adapter, _adapter_rule, bf16, "generator_lora"),
        _File(_WAN / VAE_FILES["wan"], wan, _vae_rule, torch.float32),
        *_small_vae_files(*_SMALL_VAES[name], torch.float32),
        _File(_WAN / TEXT_FILES["bf16"], text, _text_rule, bf16),
    ]


def _small_vae_files(light: VaeConfig, tae: TaeConfig, dtype: torch.dtype) -> list[_File]:
    light_shapes, tae_shapes = _shapes(WanVae(light, device="meta")), _shapes(Tae(tae, device="meta"))
    return [
        _File(_SMALL / VAE_FILES["lightvae"], light_shapes, _vae_rule, dtype),
        _File(_SMALL / VAE_FILES["tae"], tae_shapes, _tae_rule, dtype),
        _File(_SMALL / VAE_FILES["lighttae"], tae_shapes, _tae_rule, dtype),
    ]


def _shapes(network: torch.nn.Module) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in network.state_dict().items()}


def _move_files(made: Path, root: Path) -> None:
    for source in [path for path in made.rglob("*") if path.is_file()]:
        target = root / source.relative_to(made)
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)


def _write(path: Path, file: _File, seed: int) -> Iterator[int]:
    """Write a checkpoint by filling its mapped file, so that memory holds none of it; yields each tensor's bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = _mapped_safetensors(path, file) if path.suffix == ".safetensors" else _mapped_torch(path, file)

    def fill(key: str) -> int:
        tensor = content[file.prefix + key]
        _fill(tensor, file.rule(key, tensor.shape), seed, key)
        return tensor.nbytes

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(fill, file.shapes)


def _mapped_torch(path: Path, file: _File) -> dict[str, Tensor]:
    """The tensors of a torch file that is written but for its numbers."""
    tensors = {file.prefix + key: torch.empty(shape, dtype=file.dtype) for key, shape in file.shapes.items()}
    with torch.serialization.skip_data():
        torch.save({file.container: tensors} if file.container else tensors, path)
    with path.open("r+b") as opened:
        # A full disk is an error here; while writing to the map it would be a bus error.
        os.posix_fallocate(opened.fileno(), 0, path.stat().st_size)
    with _MMAP_OPTIONS, torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        content = torch.load(path, mmap=True, weights_only=True)
    return content[file.container] if file.container else content


def _mapped_safetensors(path: Path, file: _File) -> dict[str, Tensor]:
    """Likewise of a safetensors file of bfloat16: the length of a header in JSON, the header, the numbers."""
    header, end = {}, 0
    for key, shape in file.shapes.items():
        begin, end = end, end + math.prod(shape) * file.dtype.itemsize
        header[key] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        opened.flush()
        os.posix_fallocate(opened.fileno(), 8 + len(text), end)
    numbers = torch.from_file(str(path), shared=True, size=8 + len(text) + end, dtype=torch.uint8)[8 + len(text) :]
    places = {key: (entry["shape"], slice(*entry["data_offsets"])) for key, entry in header.items()}
    return {key: numbers[place].view(file.dtype).view(shape) for key, (shape, place) in places.items()}


def _fill(tensor: Tensor, normal: Normal, seed: int, key: str) -> None:
    """Draw ``tensor`` from a stream of its own: neither order nor number of threads matters."""
    stream = torch.Generator().manual_seed(zlib.crc32(f"{seed} {key}".encode()))  # torch would drop more than 32 bits
    flat = tensor.view(-1)
    for start in range(0, flat.numel(), _CHUNK):
        part = flat[start : start + _CHUNK]
        part.copy_(torch.randn(part.shape, generator=stream).mul_(normal.std).add_(normal.mean))


def _text_shapes(config: ModelConfig, vocabulary: int, full: bool) -> dict[str, torch.Size]:
    from ..text.encoder import Dimensions, checkpoint_shapes

    width = config.text_dim
    size: dict[str, Any]
    if full:
        size = {"vocab_size": 256384, "d_kv": 64, "d_ff": 10240, "num_heads": 64, "num_layers": 24}
    elif width < 1024:
        size = {"vocab_size": vocabulary, "d_kv": 16, "d_ff": 2 * width, "num_heads": 4, "num_layers": 2}
    else:
        size = {"vocab_size": vocabulary, "d_kv": 64, "d_ff": 256, "num_heads": 4, "num_layers": 1}
    return checkpoint_shapes(Dimensions(d_model=width, **size))


def _linear(shape: Sequence[int], gain: float = 1.0) -> Normal:
    """Outputs of standard deviation ``gain`` for inputs of standard deviation 1."""
    return Normal(0.0, gain / math.sqrt(math.prod(shape[1:])))


# What brings a standard normal back to unit size behind the activation.
_AFTER_GELU, _AFTER_SILU, _AFTER_RELU = 1.6, 1.7, 1.4


def _generator_rule(key: str, shape: Sequence[int]) -> Normal:
    if key.endswith("modulation"):
        return Normal(0.0, 0.4)
    if key.endswith((".norm_q.weight", ".norm_k.weight")):
        return Normal(2.0, 0.2)  # logits q.k / sqrt(head_dim) of standard deviation 2 * 2
    if key.endswith("norm3.weight"):
        return Normal(1.0, 0.1)
    if key.endswith(".bias"):
        return Normal(0.0, 0.1)
    if key in ("time_embedding.2.weight", "time_projection.1.weight"):
        return _linear(shape, _AFTER_SILU)
    if key == "text_embedding.2.weight" or key.endswith("ffn.2.weight"):
        return _linear(shape, _AFTER_GELU)
    return _linear(shape)


def _control_rule(key: str, shape: Sequence[int]) -> Normal:
    """Hints of about the size of what they are added to."""
    return _linear(shape, 0.5) if key.endswith("after_proj.weight") else _generator_rule(key, shape)


def _adapter_rule(key: str, shape: Sequence[int]) -> Normal:
    """B A is a tenth of the weight that it is added to."""
    return _linear(shape, 0.1 if key.endswith("lora_B.weight") else 1.0)


def _vae_rule(key: str, shape: Sequence[int]) -> Normal:
    if key.endswith("gamma"):
        return Normal(1.0, 0.1)
    if key.endswith(".bias"):
        return Normal(0.0, 0.05)
    if key == "decoder.head.2.weight":
        return _linear(shape, 0.75)
    return _linear(shape, _AFTER_SILU if ".residual." in key or ".head." in key else 1.0)


def _tae_rule(key: str, shape: Sequence[int]) -> Normal:
    if key.endswith(".bias"):
        return Normal(0.5 if key == "decoder.22.bias" else 0.0, 0.05)  # grey, between black and white
    if key == "decoder.22.weight":
        return _linear(shape, 0.1)
    return _linear(shape, 0.5 if ".conv.4." in key else _AFTER_RELU)  # MemBlocks add up: small steps


def _text_rule(key: str, shape: Sequence[int]) -> Normal:
    if "norm" in key:
        return Normal(1.0, 0.1)
    if key == "token_embedding.weight":
        return Normal(0.0, 1.0)
    if "pos_embedding" in key:
        return Normal(0.0, 0.5)
    if ".attn.q." in key or ".attn.k." in key:
        # Scores are not divided by sqrt(d_kv), which is 64 in umT5-XXL: 64^(-1/4) on each side makes them unit size.
        return _linear(shape, 64**-0.25 * math.sqrt(2))
    return _linear(shape, _AFTER_GELU if "fc2" in key else 1.0)
