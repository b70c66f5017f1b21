"""One ``model_path`` to the things a model is made of."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from ..config import HEIGHT, WIDTH
from .checksums import record_of
from .published import (
    CONTROL_FILE,
    GENERATOR,
    LORA,
    TEXT_FILES,
    TOKENIZER,
    VAE_FILES,
    Wishes,
    again,
    as_repository,
    command,
)
from .stored import stored

TINY = "tiny"
TINY_SIZE = (64, 96)  # height and width that the built-in model is trained at
_BUILT_IN = Path(__file__).parents[1] / "tinyworld" / "trained"
_OPTIONAL = "lora", "control"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelFiles:
    """Where the parts of a model lie. ``tokenizer`` is a folder; without ``lora`` the generator is used as it is;
    ``control`` is VACE's module, or a whole VACE checkpoint."""

    config: Path
    generator: Path
    vae: Path
    text: Path
    tokenizer: Path
    lora: Path | None = None
    control: Path | None = None
    vae_type: str = "wan"  # what ``vae`` holds; a TAE and a LightTAE cannot be told apart by their tensors

    def paths(self) -> list[Path]:
        """Every file of the model."""
        parts = (
            *(self.config, self.generator, self.lora, self.control, self.vae, self.text),
            self.tokenizer / "tokenizer.json",
        )
        return [path for path in parts if path is not None]


def native_size(model_path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width that a model is made for."""
    return TINY_SIZE if model_path == TINY else (HEIGHT, WIDTH)


def locate(model_path: str | os.PathLike[str], vae_type: str = "wan", control: bool = False) -> ModelFiles:
    """Find a model's files in LongLive's own layout, in scope's, or where the hub's client keeps them.

    ``model_path`` is a folder that holds ``longlive_models`` and ``wan_models``, the ``longlive_models`` folder itself
    (``wan_models`` in it or beside it), scope's models folder, the ``LongLive-1.3B`` folder in it, ``"tiny"``, the
    built-in model, or ``ORG/NAME[@REVISION]`` of the hub, whose files must be on this machine; what exists as a path is
    one. Where there are two text encoders, the bf16 one is taken. ``vae_type``: ``wan``, the model's own, or
    ``lightvae``, ``tae`` or ``lighttae`` from the ``Autoencoders`` folder beside it, which trade quality for speed.
    control: VACE's module must be there, in scope's ``WanVideo_comfy``, or else a ``Wan2.1-VACE-1.3B`` folder; it is
    named where it is there in any case.

    Raises FileNotFoundError listing what is missing, where it was looked for and what command gets it; TypeError,
    ValueError.
    """
    if vae_type not in VAE_FILES:
        raise ValueError(f"vae_type must be one of {', '.join(VAE_FILES)}, got {vae_type!r}")
    if not isinstance(model_path, str | os.PathLike):
        raise TypeError(f"model_path must be a folder or {TINY!r}, got {type(model_path).__name__}")
    if repository := as_repository(model_path):
        return _complete(stored(repository, vae_type, control), vae_type)
    root = _BUILT_IN if model_path == TINY else Path(model_path).expanduser()
    wishes = Wishes(vae_type, control=control)
    if not root.is_dir():
        if root.exists():
            raise FileNotFoundError(f"model_path: {root} is not a folder")
        raise FileNotFoundError(f"model_path: no {root}; get the model by\n  {command(root, wishes)}")
    # Not resolved: beside a linked folder means beside the link.
    candidates = places(Path(os.path.abspath(root)), vae_type)
    if not control:  # what nobody asked for is no reason to stop
        candidates["control"] = [path for path in candidates["control"] if path.is_file()]
    found = {part: path for part, paths in candidates.items() if (path := _first(paths))}
    if missing := [part for part in candidates if part not in found and part not in _OPTIONAL]:
        looked = "\n".join(f"  {part}: " + " or ".join(map(str, candidates[part])) for part in missing)
        raise FileNotFoundError(
            f"model_path: {root} lacks {', '.join(missing)}; looked for\n{looked}{_get(root, wishes)}"
        )
    if control and "control" not in found:
        looked = " or ".join(map(str, candidates["control"]))
        raise FileNotFoundError(f"model_path: {root} lacks control; looked for {looked}{_get(root, wishes)}")
    if "lora" not in found and any(
        record_of(candidates["lora"][0].parents[1], "models").parent.glob("models/*.incomplete")
    ):
        raise FileNotFoundError(f"model_path: the download of {root} was interrupted{_get(root, wishes)}")
    return _complete(found, vae_type)


def _complete(found: dict[str, Path], vae_type: str) -> ModelFiles:
    if "lora" not in found:
        _log.warning("no lora.pt beside %s: the base weights are used as they are", found["generator"])
    return ModelFiles(**found | {"tokenizer": found["tokenizer"].parent}, vae_type=vae_type)


def _first(paths: list[Path]) -> Path | None:
    """The first of ``paths`` that there is; FileNotFoundError for one that is there, but is no file."""
    path = next((path for path in paths if os.path.lexists(path)), None)
    if path is not None and not path.is_file():
        lost = "a link to nothing: what it links to has been moved, or not downloaded"
        raise FileNotFoundError(f"model_path: {path} is {'no file' if path.exists() else lost + again(path)}")
    return path


def _get(root: Path, wishes: Wishes) -> str:
    return "" if root == _BUILT_IN else f"\nget what is missing by\n  {command(root, wishes)}"


def places(root: Path, vae_type: str) -> dict[str, list[Path]]:
    """Where each part may lie in a folder of models, best first."""
    shelves = (root, root.parent)
    small_vaes, wan_video = ([shelf / name for shelf in shelves] for name in ("Autoencoders", "WanVideo_comfy"))
    homes = [root / "longlive_models", root, root / "LongLive-1.3B"]
    wan = [shelf / "Wan2.1-T2V-1.3B" for base in shelves for shelf in (base / "wan_models", base)]
    # Only the LoRA of the generator that is used: never one from another layout.
    home = next((folder for folder in homes if (folder / GENERATOR).is_file()), homes[0])
    return {
        "config": [folder / "config.json" for folder in wan],
        "generator": [folder / GENERATOR for folder in homes],
        "lora": [home / LORA],
        "control": [
            *(shelf / CONTROL_FILE for shelf in shelves),
            *(folder.with_name("Wan2.1-VACE-1.3B") / "diffusion_pytorch_model.safetensors" for folder in wan),
        ],
        "vae": [folder / VAE_FILES[vae_type] for folder in (wan if vae_type == "wan" else small_vaes)],
        "text": [
            *(folder / TEXT_FILES["bf16"] for folder in wan),
            *(folder / TEXT_FILES["fp8"] for folder in wan_video),
        ],
        "tokenizer": [folder / TOKENIZER for folder in wan],
    }
