"""Trained stages to a checkpoint in LongLive's public layout, which the engine loads like any other; and back, so that
training goes on from what was shipped.

``python -m longlive_optimized.tinyworld.export TRAINED FOLDER`` with the folder that ``train`` has filled.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from ..weights.load import load_generator, load_vae
from ..weights.locate import VAE_FILES, locate
from ..weights.lora import adapter_shapes
from ..weights.random_checkpoint import write_small_vaes
from .checkpoint import half, load, named, save
from .networks import SIZES, Size, new_text, new_transformer, new_vae
from .vocabulary import write_tokenizer

_MODELS = Path("longlive_models", "models")
_WAN = Path("wan_models", "Wan2.1-T2V-1.3B")


def export(trained: Path, folder: Path, size: Size) -> None:
    """Write the checkpoint into ``folder``, which must not exist: FileExistsError.

    Everything is rounded to bfloat16. The LoRA that LongLive has beside its weights is there, of rank 1, and zero; the
    small autoencoders that a stream may choose are there too, but random.
    """
    if folder.exists():
        raise FileExistsError(f"folder: {folder} exists")
    vae, model, text = new_vae(size, 0), new_transformer(size, 0), new_text(size, 0)
    load(trained / "vae.pt", {"vae": vae})
    load(trained / "flow.pt", {"model": model, "text": text})
    write_tokenizer(folder / _WAN / "google" / "umt5-xxl", size.model.text_len)
    size.model.to_json(folder / _WAN / "config.json")
    generator = {key: slot.read() for key, slot in model.checkpoint_slots().items()}
    adapter = adapter_shapes({key: tensor.shape for key, tensor in generator.items()}, rank=1)
    lora = {key: torch.zeros(shape) for key, shape in adapter.items()}
    prefixed = {f"model.{key}": tensor for key, tensor in generator.items()}
    save(folder / _MODELS / "longlive_base.pt", {"generator": _rounded(prefixed)})
    save(folder / _MODELS / "lora.pt", {"generator_lora": _rounded(lora)})
    save(folder / _WAN / VAE_FILES["wan"], _rounded(vae.state_dict()))
    save(folder / _WAN / "models_t5_umt5-xxl-enc-bf16.pth", _rounded(text.state_dict()))
    write_small_vaes(folder)


def take(model: str | Path, out: Path, size: Size) -> None:
    """Write the stages' files as if they had been trained to the weights of the folder ``model``; no file where its VAE
    is of other widths than the size's.

    Raises FileNotFoundError where it is no checkpoint, RuntimeError where it is one of another size or vocabulary.
    """
    files, text, device = locate(model), new_text(size, 0), torch.device("cpu")
    text.load_state_dict(torch.load(files.text, map_location="cpu", weights_only=True))
    vae, transformer = (read(files, device, torch.float32) for read in (load_vae, load_generator))
    stages: dict[str, dict[str, nn.Module]] = {"flow": {"model": transformer, "text": text}}
    if vae.config == size.vae:
        stages["vae"] = {"vae": vae}
    for stage, parts in stages.items():
        content = {"step": 0, "seconds": 0.0, "done": True, "average": half(named(parts))}
        save(out / f"{stage}.pt", content)


def _rounded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.to(torch.bfloat16).contiguous() for key, tensor in tensors.items()}


def main(arguments: list[str] | None = None) -> None:
    """Export and say how large it is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("trained", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    options = parser.parse_args(arguments)
    export(options.trained, options.folder, SIZES[options.size])
    total = sum(path.stat().st_size for path in options.folder.rglob("*") if path.is_file())
    print(f"{options.folder}: {total / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
