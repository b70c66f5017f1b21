"""What of the real model is missing here, by the hub's lists of files, and how much that is."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..plain import size_text
from .checksums import digest, hub_checksum, is_checksum, record_of, recorded_commit
from .hub_errors import as_ours
from .published import LONGLIVE, Repository, Wishes, command, parts, shelf
from .stored import in_cache, in_scope

ANSWER = 30.0  # seconds for the hub's list of a repository's files


@dataclass
class Item:
    """One file. target: where it is, or will be; base: the folder that holds the repository's files.

    size and checksum (SHA-256, or git's SHA-1 of a small file) are the hub's, which may not say. there: nothing is to
    be done; damaged: something else is there. source: it is elsewhere on this machine. begun: bytes that are there of
    it from an earlier download.
    """

    repository: Repository
    commit: str
    file: str
    size: int
    checksum: str
    target: Path
    base: Path
    partial: Path
    lock: Path
    there: bool = False
    damaged: bool = False
    source: Path | None = None
    begun: int = 0

    @property
    def missing(self) -> int:
        """Bytes that are still to come over the network."""
        return 0 if self.there or self.source else self.size - self.begun

    @property
    def room(self) -> int:
        """Bytes that are still to be written."""
        return 0 if self.there else self.size if self.source else self.missing

    @property
    def large(self) -> bool:
        """Whether it is fetched here, not by the hub's client."""
        return len(self.checksum) == 64

    def __str__(self) -> str:
        return f"{self.repository}: {self.file}"


@dataclass
class Plan:
    """What makes a model, and how much of it is missing. root: a folder of models; None for the client's cache."""

    repository: Repository
    wishes: Wishes
    root: Path | None
    items: list[Item] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of the whole model."""
        return sum(item.size for item in self.items)

    @property
    def missing(self) -> int:
        """Bytes that are still to come over the network."""
        return sum(item.missing for item in self.items)

    @property
    def complete(self) -> bool:
        """Whether nothing is to be done."""
        return all(item.there for item in self.items)

    @property
    def where(self) -> Path:
        """The folder that files are written to."""
        return self.root or cache_folder()

    @property
    def command(self) -> str:
        """The command that does this; it goes on where one was interrupted."""
        words = command(self.root or self.repository, self.wishes)
        of = "" if self.root is None or str(self.repository) == LONGLIVE else f" --model {self.repository}"
        return words + of

    def check_room(self) -> None:
        """Raise OSError where the disk is too small for what is missing."""
        needed, free = sum(item.room for item in self.items), free_bytes(self.where)
        if needed > free:
            raise OSError(
                f"{self.where} has too little room: {size_text(needed)} are needed, {size_text(free)} are free. "
                "Another folder: longlive-optimized download DIR; another place for the cache: HF_HOME"
            )


def make_plan(
    repository: Repository, wishes: Wishes, root: Path | None = None, force: bool = False, answer: float = ANSWER
) -> Plan:
    """Ask the hub what makes a model and look for what is there of it; the rest is missing.

    root: a folder of models as scope has it; None is the cache of the hub's client, beside which scope's folder counts.
    force: compare what is there with the hub's checksums, and get anew what differs. answer: seconds to wait for each
    of the hub's answers.

    Raises ConnectionError, PermissionError, FileNotFoundError and OSError as ``hub_errors.as_ours`` makes them;
    FileNotFoundError where the repository lacks a part; FileExistsError for a file in ``root`` that is not the hub's,
    unless ``force``.
    """
    if root is not None:
        root = Path(os.path.abspath(root.expanduser()))
        if root.exists() and not root.is_dir():
            raise NotADirectoryError(f"{root} is no folder")
    plan, lists = Plan(repository, wishes, root), _Lists(answer)
    here = _InFolder(root, wishes, force, lists) if root else _InCache(force)
    for part in parts(repository, wishes):
        commit, files = lists.of(part.repository)
        if part.file not in files:
            if not part.optional:
                raise FileNotFoundError(f"{part.repository} has no {part.file} on the hub, and so is no {part.name}")
            if root is None:
                _note_absence(part.repository, part.file)
            continue
        if isinstance(here, _InFolder) and here.has_another(part.name, part.file):
            continue
        beside = [name for name in files if part.beside and root and name.startswith(part.beside + "/")]
        for name in dict.fromkeys([part.file, *beside]):
            plan.items.append(here.item(part.repository, commit, name, *files[name], part.name))
    if root is not None:  # scope takes a model for complete only with these
        for each, (commit, files) in lists.known.items():
            if "config.json" in files and not any((i.repository, i.file) == (each, "config.json") for i in plan.items):
                plan.items.append(here.item(each, commit, "config.json", *files["config.json"], ""))
    return plan


def cache_folder() -> Path:
    """The cache of the hub's client."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def free_bytes(folder: Path) -> int:
    """Bytes that are free where ``folder`` is, or will be."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    return shutil.disk_usage(there).free


class _Lists:
    """Each repository's commit and files, with size and checksum, asked for once."""

    def __init__(self, answer: float):
        self.known: dict[Repository, tuple[str, dict[str, tuple[int, str]]]] = {}
        self._answer = answer

    def of(self, repository: Repository) -> tuple[str, dict[str, tuple[int, str]]]:
        if repository not in self.known:
            with as_ours(repository):
                info = _api().model_info(
                    repository.name, revision=repository.revision, files_metadata=True, timeout=self._answer
                )
            files = {each.rfilename: (each.size or 0, _checksum(each)) for each in info.siblings or []}
            self.known[repository] = info.sha or "", files
        return self.known[repository]

    def has(self, repository: Repository, commit: str) -> bool:
        """Whether ``commit``, empty for none, is one of the repository's."""
        if not commit:
            return False
        try:
            with as_ours(repository):
                _api().model_info(repository.name, revision=commit, timeout=self._answer)
        except FileNotFoundError:
            return False
        return True


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name="longlive-optimized")


def _checksum(sibling: Any) -> str:
    found = (sibling.lfs or {}).get("sha256") or sibling.blob_id or ""
    return found if is_checksum(found) else ""


def _note_absence(repository: Repository, file: str) -> None:
    """Let the client note in its cache that the hub has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    with as_ours(repository), contextlib.suppress(EntryNotFoundError):
        hf_hub_download(repository.name, file, revision=repository.revision)


class _InCache:
    """Files in the cache of the hub's client, or in scope's folder, where they are used in place."""

    def __init__(self, force: bool):
        self._force = force

    def item(self, repository: Repository, commit: str, file: str, size: int, checksum: str, part: str) -> Item:
        home = cache_folder() / ("models--" + repository.name.replace("/", "--"))
        base, blob = home / "snapshots" / commit, home / "blobs" / checksum
        begun = blob.with_name(f"{checksum}.incomplete")
        lock = cache_folder() / ".locks" / home.name / f"{checksum}.lock"
        made = Item(repository, commit, file, size, checksum, base / file, base, begun, lock)
        cached, scopes = in_cache(repository, file, commit), in_scope(repository, file)
        if cached:
            made.damaged = not is_it(cached, made, self._force)
            # What the revision's name stands for is in the cache too; it is found by that.
            made.there = not made.damaged and in_cache(repository, file) == cached
        elif scopes and is_it(scopes, made, self._force):
            made.target, made.there = scopes, True
        if not made.there:
            _look_for_begun(made, blob)
        return made


class _InFolder:
    """Files in a folder of models."""

    def __init__(self, root: Path, wishes: Wishes, force: bool, lists: _Lists):
        from .locate import places

        self._root, self._force, self._lists = root, force, lists
        self._places = places(root, wishes.vae)

    def has_another(self, part: str, file: str) -> bool:
        """Whether the folder has the part in another form, which is taken first: the text encoder in bfloat16."""
        found = next((path for path in self._places[part] if path.is_file()), None)
        return found is not None and found.suffix != Path(file).suffix

    def item(self, repository: Repository, commit: str, file: str, size: int, checksum: str, part: str) -> Item:
        own = self._root / shelf(repository) / file
        same = [path for path in self._places.get(part, []) if path.name == own.name == Path(file).name]
        target = next((path for path in same if path.is_file()), own) if own.name == Path(file).name else own
        base = target.parents[len(Path(file).parts) - 1]
        note = record_of(base, file)
        made = Item(
            repository, commit, file, size, checksum, target, base,
            note.with_name(f"{Path(file).name}.{checksum}.incomplete"), note.with_suffix(".lock"),
        )  # fmt: skip
        if os.path.isfile(target):
            if is_it(target, made, self._force):
                made.there = True
                return made
            if not self._force and not self._lists.has(repository, recorded_commit(base, file)):
                raise FileExistsError(
                    f"{target} is there, and is not {file} of {repository}: --force replaces it; --model names another "
                    "model's repository"
                )
            made.damaged = True
        elsewhere = in_scope(repository, file), in_cache(repository, file, commit)
        made.source = next((path for path in elsewhere if path and path != target and is_it(path, made, False)), None)
        _look_for_begun(made, target)
        return made


def is_it(path: Path, item: Item, force: bool) -> bool:
    """Whether a file on this machine is the hub's: by its size and what was recorded of it; with force as a whole."""
    if item.size and path.stat().st_size != item.size:
        return False
    if not item.checksum:
        return True
    if force:
        return digest(path, len(item.checksum)) == item.checksum
    return hub_checksum(path) in ("", item.checksum)


def _look_for_begun(item: Item, goal: Path) -> None:
    if item.large and not item.damaged and goal.is_file() and is_it(goal, item, False):
        item.begun = item.size  # all but its name in the cache
    elif item.large and item.partial.is_file():
        item.begun = min(item.size, item.partial.stat().st_size)
