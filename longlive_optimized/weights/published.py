"""What the real model is made of: which files of which public repositories, and the commands that get them.

Imports nothing heavy: errors of every module name these commands.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ABOUT = "about 14 GB"  # by shapes: generator 5.7 (float32), its LoRA 1.4, text encoder 6.7 (fp8), VAE 0.5
LONGLIVE = "daydreamlive/LongLive-1.3B"
WAN = "daydreamlive/Wan2.1-T2V-1.3B"
WAN_BF16 = "Wan-AI/Wan2.1-T2V-1.3B"
WAN_VIDEO = "daydreamlive/WanVideo_comfy"
AUTOENCODERS = "daydreamlive/Autoencoders"
MIRRORS = LONGLIVE, WAN, WAN_VIDEO, AUTOENCODERS  # what scope downloads
VAE_FILES = {
    "wan": "Wan2.1_VAE.pth",
    "lightvae": "lightvaew2_1.pth",
    "tae": "taew2_1.pth",
    "lighttae": "lighttaew2_1.pth",
}
GENERATOR, LORA = "models/longlive_base.pt", "models/lora.pt"
TEXT_FILES = {"fp8": "umt5-xxl-enc-fp8_e4m3fn.safetensors", "bf16": "models_t5_umt5-xxl-enc-bf16.pth"}
TOKENIZER = "google/umt5-xxl/tokenizer.json"
CONTROL_FILE = Path("WanVideo_comfy", "Wan2_1-VACE_module_1_3B_bf16.safetensors")

_NAME = r"[A-Za-z0-9][\w.-]*"
_REPOSITORY = re.compile(rf"(?P<name>{_NAME}/{_NAME})(@(?P<revision>[\w.-]+(/[\w.-]+)*))?")


@dataclass(frozen=True)
class Repository:
    """A repository of the hub, ``ORG/NAME`` or ``ORG/NAME@REVISION``; without a revision it is ``main``."""

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.name + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class Wishes:
    """Which files of a model are wanted. vae: a key of VAE_FILES. text: fp8 or bf16. control: VACE's module too."""

    vae: str = "wan"
    text: str = "fp8"
    control: bool = False

    def options(self) -> list[str]:
        """As ``longlive-optimized download`` takes them."""
        vae = [] if self.vae == "wan" else ["--vae", self.vae]
        text = [] if self.text == "fp8" else ["--text", self.text]
        return [*vae, *text, *(["--vace"] if self.control else [])]


@dataclass(frozen=True)
class Part:
    """A part of a model, by ``locate``'s name: ``file`` of ``repository``, and all in the folder ``beside`` it, if any.

    Only an ``optional`` part may be missing in the repository.
    """

    name: str
    repository: Repository
    file: str
    beside: str = ""
    optional: bool = False


def as_repository(model_path: str | os.PathLike[str]) -> Repository | None:
    """The repository that ``model_path`` names; None for a path, which it is wherever something is there."""
    if not isinstance(model_path, str) or not (named := _REPOSITORY.fullmatch(model_path)):
        return None
    return None if os.path.lexists(model_path) else Repository(named["name"], named["revision"])


def parts(repository: Repository, wishes: Wishes) -> list[Part]:
    """What makes a whole model of the generator in ``repository``; the rest comes from the public mirrors."""
    wan, video = Repository(WAN), Repository(WAN_VIDEO)
    vae = wan if wishes.vae == "wan" else Repository(AUTOENCODERS)
    text = video if wishes.text == "fp8" else Repository(WAN_BF16)
    made_of = [
        Part("generator", repository, GENERATOR),
        Part("lora", repository, LORA, optional=True),
        Part("config", wan, "config.json"),
        Part("vae", vae, VAE_FILES[wishes.vae]),
        # Scope reads the same folder with a tokenizer of another kind, which wants the files beside.
        Part("tokenizer", wan, TOKENIZER, beside=str(Path(TOKENIZER).parent)),
        Part("text", text, TEXT_FILES[wishes.text]),
    ]
    control = [Part("control", video, CONTROL_FILE.name)] if wishes.control else []
    return made_of + control


def shelf(repository: Repository) -> str:
    """The folder of a repository's files in a folder of models, as scope has it; of any LongLive's it is the same."""
    return (repository.name if repository.name in (*MIRRORS, WAN_BF16) else LONGLIVE).rpartition("/")[2]


def command(model: str | os.PathLike[str] | Repository, wishes: Wishes = Wishes(), force: bool = False) -> str:
    """The command that gets what is missing of ``model``, a folder or a repository."""
    words = ["longlive-optimized", "download"]
    if not isinstance(model, Repository):
        words.append(os.fspath(model))
    elif str(model) != LONGLIVE:
        words += ["--model", str(model)]
    return shlex.join([*words, *wishes.options(), *(["--force"] if force else [])])


def again(path: Path) -> str:
    """How to get a model's file anew: behind "download it again"; empty where the file is none of the hub's."""
    path = path.absolute()
    wishes = {TEXT_FILES["bf16"]: Wishes(text="bf16"), CONTROL_FILE.name: Wishes(control=True)}
    wishes |= {file: Wishes(vae=vae) for vae, file in VAE_FILES.items()}
    wished = wishes.get(path.name, Wishes())
    folders = {parent.name: parent for parent in path.parents}
    for name in folders:
        if name.startswith("models--") and (folders[name] / "snapshots") in path.parents:
            owner, _, last = name.removeprefix("models--").partition("--")
            of = LONGLIVE if f"{owner}/{last}" in (*MIRRORS, WAN_BF16) else f"{owner}/{last}"
            return ":\n  " + command(Repository(of), wished, force=True)
    shelves = *(shelf(Repository(name)) for name in MIRRORS), "longlive_models"
    home = next((folders[name].parent for name in shelves if name in folders), None)
    if home is None:
        return ""
    return ":\n  " + command(home.parent if home.name == "wan_models" else home, wished, force=True)
