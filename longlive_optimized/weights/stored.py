"""Where files of the hub's repositories lie on this machine: scope's folder of models, and the client's cache."""

from __future__ import annotations

import os
from pathlib import Path

from .published import MIRRORS, Part, Repository, Wishes, command, parts, shelf


def scope_folder() -> Path:
    """Scope's folder of models, whether it is there or not."""
    return Path(os.environ.get("DAYDREAM_SCOPE_MODELS_DIR") or "~/.daydream-scope/models").expanduser()


def in_scope(repository: Repository, file: str) -> Path | None:
    """A file of scope's. It has one version of each and does not say which: none where a revision is asked for."""
    if repository.revision or repository.name not in MIRRORS:
        return None
    path = scope_folder() / shelf(repository) / file
    return path if path.is_file() else None


def stored(repository: Repository, vae_type: str = "wan", control: bool = False) -> dict[str, Path]:
    """The parts of a model that are on this machine, by name; no network is used.

    Raises FileNotFoundError where one is missing, with the command that gets it.
    """
    found = {name: path for name, path in _all(repository, vae_type, control).items() if path}
    wishes = Wishes(vae_type, control=control)
    wanted = [part.name for part in parts(repository, wishes) if part.name not in found]
    if missing := [name for name in wanted if name != "lora" or not _known_to_lack_lora(repository)]:
        raise FileNotFoundError(
            f"model_path: there is no path {repository}, and of the hub's {repository} this machine lacks "
            f"{', '.join(missing)}; get what is missing by\n  {command(repository, wishes)}"
        )
    return found


def _all(repository: Repository, vae_type: str, control: bool) -> dict[str, Path | None]:
    fp8, bf16 = (parts(repository, Wishes(vae_type, text, control)) for text in ("fp8", "bf16"))
    found = {part.name: _find(part) for part in fp8}
    better = next(path for part, path in ((part, _find(part)) for part in bf16) if part.name == "text")
    if not control:  # it is named where it is there
        found["control"] = next(
            _find(part) for part in parts(repository, Wishes(control=True)) if part.name == "control"
        )
    return found | ({"text": better} if better else {})


def _find(part: Part) -> Path | None:
    return in_cache(part.repository, part.file) or in_scope(part.repository, part.file)


def in_cache(repository: Repository, file: str, commit: str | None = None) -> Path | None:
    """A file in the cache of the hub's client, of ``commit`` or as the revision was when it was last asked."""
    found = _cached(repository, file, commit)
    return Path(found) if isinstance(found, str) else None


def _known_to_lack_lora(repository: Repository) -> bool:
    lora = next(part for part in parts(repository, Wishes()) if part.name == "lora")
    found = _cached(lora.repository, lora.file)
    return found is not None and not isinstance(found, str)  # the client notes what the hub does not have


def _cached(repository: Repository, file: str, commit: str | None = None) -> object:
    from huggingface_hub import try_to_load_from_cache

    return try_to_load_from_cache(repository.name, file, revision=commit or repository.revision)
