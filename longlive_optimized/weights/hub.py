"""The real model from the hub: what is missing, how much that is, and getting it, from where it was left off, checked.

The hub's client (huggingface_hub) gives endpoint, token, proxies, cache and transport. It removes what has arrived of a
file when it is interrupted, and compares no checksum: both are done here for all files of which the hub has a SHA-256.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

from . import CheckpointError
from .checksums import digest, hub_checksum, is_checksum, record_of, recorded_commit
from .hub_errors import as_ours, is_passing
from .published import LONGLIVE, VAE_FILES, Repository, Wishes, as_repository, command, parts, shelf
from .stored import in_cache, in_scope, stored

AT_A_TIME = 4
TRIES, PAUSE = 5, 1.0  # without a byte more, and the seconds between them
ANSWER = 30.0  # seconds for the hub's list of a repository's files
Progress = Callable[[str, int, int], None]

_log = logging.getLogger(__name__)


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


def missing(
    model_path: str | os.PathLike[str], vae_type: str = "wan", text_precision: str = "auto", control: bool = False
) -> Plan | None:
    """What is to be downloaded of ``ORG/NAME[@REVISION]``; None for a path or ``tiny``, and where all is here.

    The hub is asked only if something is missing.

    text_precision: an engine's; bf16 and int8 want the text encoder in bfloat16. Raises what make_plan raises.
    """
    if not (repository := as_repository(model_path)) or vae_type not in VAE_FILES:
        return None
    wishes = Wishes(vae_type, "bf16" if text_precision in ("bf16", "int8") else "fp8", control)
    with contextlib.suppress(FileNotFoundError):
        found = stored(repository, vae_type, control)
        if wishes.text == "fp8" or found["text"].suffix == ".pth":
            return None
    try:
        return make_plan(repository, wishes)
    except ConnectionError as error:
        get = f"Where the hub can be reached:\n  {command(repository, wishes)}"
        raise ConnectionError(
            f"model_path: {repository} is not on this machine as a whole, and {error}. {get}"
        ) from None
    except (FileNotFoundError, PermissionError) as error:
        raise type(error)(f"model_path: there is no path {repository}, and {error}") from None


def ensure(
    model_path: str | os.PathLike[str],
    vae_type: str = "wan",
    text_precision: str = "auto",
    control: bool = False,
    progress: Progress | None = None,
) -> None:
    """Download what ``missing`` names, and log first how much that is.

    progress: called as (what, done, total); without it the client's progress bar is shown. Raises what make_plan and
    fetch raise.
    """
    plan = missing(model_path, vae_type, text_precision, control)
    if plan and not plan.complete:
        _log.warning("%s: %s are downloaded to %s", plan.repository, size_text(plan.missing), plan.where)
        fetch(plan, progress)


def fetch(plan: Plan, progress: Progress | None = None) -> None:
    """Get what is missing, several files at a time, each checked by size and checksum before it has its name.

    What has arrived of a large file stays where this is interrupted, and is gone on with. Raises OSError where the disk
    is too small or gets full, CheckpointError for a file that is not what the hub has, and what make_plan raises.
    """
    if plan.complete:
        return
    plan.check_room()
    with contextlib.ExitStack() as stack:
        if progress is None:
            progress = stack.enter_context(_bar(plan))
        stack.enter_context(_client_is_quiet())
        work = _Work(plan, progress)
        pool = stack.enter_context(ThreadPoolExecutor(AT_A_TIME, "longlive-download"))
        futures = [pool.submit(work.get, item) for item in plan.items if not item.there]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException as error:
            work.stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            if isinstance(error, OSError) and not error.strerror and plan.command not in str(error):
                raise type(error)(f"{error}. Go on with\n  {plan.command}") from None
            raise


def cache_folder() -> Path:
    """The cache of the hub's client."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def free_bytes(folder: Path) -> int:
    """Bytes that are free where ``folder`` is, or will be."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    return shutil.disk_usage(there).free


def size_text(nbytes: float) -> str:
    """``5.7 GB``."""
    for unit in ("bytes", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} GB"


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
        begun, lock = (
            blob.with_name(f"{checksum}.incomplete"),
            cache_folder() / ".locks" / home.name / f"{checksum}.lock",
        )
        made = Item(repository, commit, file, size, checksum, base / file, base, begun, lock)
        cached, scopes = in_cache(repository, file, commit), in_scope(repository, file)
        if cached:
            made.damaged = not _is_it(cached, made, self._force)
            # What the revision's name stands for is in the cache too; it is found by that.
            made.there = not made.damaged and in_cache(repository, file) == cached
        elif scopes and _is_it(scopes, made, self._force):
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
            if _is_it(target, made, self._force):
                made.there = True
                return made
            if not self._force and not self._lists.has(repository, recorded_commit(base, file)):
                raise FileExistsError(
                    f"{target} is there, and is not {file} of {repository}: --force replaces it; --model names another "
                    "model's repository"
                )
            made.damaged = True
        elsewhere = in_scope(repository, file), in_cache(repository, file, commit)
        made.source = next((path for path in elsewhere if path and path != target and _is_it(path, made, False)), None)
        _look_for_begun(made, target)
        return made


def _is_it(path: Path, item: Item, force: bool) -> bool:
    """Whether a file on this machine is the hub's: by its size and what was recorded of it; with force as a whole."""
    if item.size and path.stat().st_size != item.size:
        return False
    if not item.checksum:
        return True
    if force:
        return digest(path, len(item.checksum)) == item.checksum
    return hub_checksum(path) in ("", item.checksum)


def _look_for_begun(item: Item, goal: Path) -> None:
    if item.large and not item.damaged and goal.is_file() and _is_it(goal, item, False):
        item.begun = item.size  # all but its name in the cache
    elif item.large and item.partial.is_file():
        item.begun = min(item.size, item.partial.stat().st_size)


class _Stopped(Exception):
    """Another file has failed, or the user has stopped."""


class _Work:
    """Getting files in several threads. ``progress`` is called by one at a time."""

    def __init__(self, plan: Plan, progress: Progress):
        self._plan, self._progress, self._lock = plan, progress, threading.Lock()
        self.stopped = threading.Event()
        self._done = {str(item): item.size if item.there else item.begun for item in plan.items}
        self._what = f"{plan.repository} ({size_text(plan.size)})"

    def get(self, item: Item) -> None:
        """Get one file; raises what fetch raises."""
        from filelock import FileLock

        with self._full_disk(item), as_ours(item.repository):
            for folder in {item.partial.parent, item.lock.parent, item.target.parent}:
                folder.mkdir(parents=True, exist_ok=True)
            if item.large:
                with FileLock(item.lock):  # of several processes one fetches
                    self._get_large(item)
            if not item.large or self._plan.root is None:
                self._by_client(item)
            self._advance(item, item.size)

    def _get_large(self, item: Item) -> None:
        goal = item.target if self._plan.root else item.partial.with_suffix("")
        if not item.damaged and goal.is_file() and _is_it(goal, item, False) and hub_checksum(goal):
            return  # another process has got it meanwhile
        if item.source:
            self._copy(item, item.source)
        if item.source is None or not item.partial.is_file():
            self._download(item)
        self._advance(item, item.size)
        if digest(item.partial, 64) != item.checksum:
            item.partial.unlink()
            raise CheckpointError(
                f"{item} has arrived with other bytes than the hub says (its SHA-256 differs), and is removed. Try "
                f"again:\n  {self._plan.command}\nIf it is so again, a proxy or mirror changes it: see HF_ENDPOINT"
            )
        os.replace(item.partial, goal)
        if self._plan.root:
            record_of(item.base, item.file).write_text(f"{item.commit}\n{item.checksum}\n{time.time()}\n")

    def _copy(self, item: Item, source: Path) -> None:
        """Copy it from where it is on this machine, unless that is damaged."""
        shutil.copyfile(source, item.partial)
        if digest(item.partial, 64) != item.checksum:
            item.partial.unlink()

    def _download(self, item: Item) -> None:
        """Get what is missing behind the bytes that are there; a connection that breaks is made anew."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        url = hf_hub_url(item.repository.name, item.file, revision=item.commit)
        tries = TRIES
        while True:
            begun = item.partial.stat().st_size if item.partial.exists() else 0
            if begun > item.size:
                item.partial.unlink()
                begun = 0
            try:
                with _open(item.partial) as file:
                    counted = _Counted(file, partial(self._advance, item), self.stopped)
                    headers = build_hf_headers(library_name="longlive-optimized")
                    http_get(url, counted, resume_size=begun, headers=headers, expected_size=item.size)  # pyright: ignore[reportArgumentType]
                return
            except Exception as error:
                more = item.partial.exists() and item.partial.stat().st_size > begun
                tries = TRIES if more else tries - 1
                if not is_passing(error) or not tries or self.stopped.wait(PAUSE):
                    raise

    def _by_client(self, item: Item) -> None:
        """A small file; or, in the cache, the link to a file that is there."""
        from huggingface_hub import hf_hub_download

        where: dict[str, Any] = {"local_dir": item.base} if self._plan.root else {}
        revision = item.commit if self._plan.root else item.repository.revision
        anew = item.damaged and not item.large
        path = Path(hf_hub_download(item.repository.name, item.file, revision=revision, force_download=anew, **where))
        if not item.large and item.checksum and digest(path, len(item.checksum)) != item.checksum:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise CheckpointError(f"{item} has arrived with other bytes than the hub says: {self._plan.command}")

    def _advance(self, item: Item, done: int) -> None:
        with self._lock:
            self._done[str(item)] = done
            self._progress(self._what, sum(self._done.values()), self._plan.size)

    @contextlib.contextmanager
    def _full_disk(self, item: Item) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OSError(
                    f"{self._plan.where} is full, {item} is not complete. Make room, then go on with\n"
                    f"  {self._plan.command}"
                ) from None
            raise


def _open(path: Path) -> IO[bytes]:
    return path.open("ab")


class _Counted:
    """A file that tells how long it is after each write, and takes none once ``stopped`` is set."""

    def __init__(self, file: IO[bytes], advance: Callable[[int], None], stopped: threading.Event):
        self._file, self._advance, self._stopped = file, advance, stopped

    def write(self, data: bytes) -> int:
        if self._stopped.is_set():
            raise _Stopped
        count = self._file.write(data)
        self._advance(self._file.tell())
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextlib.contextmanager
def _bar(plan: Plan) -> Iterator[Progress]:
    from huggingface_hub.utils import tqdm

    with tqdm(total=plan.size, unit="B", unit_scale=True, desc=str(plan.repository)) as bar:

        def advance(what: str, done: int, total: int) -> None:
            bar.update(done - bar.n)

        yield advance


@contextlib.contextmanager
def _client_is_quiet() -> Iterator[None]:
    from huggingface_hub import utils

    was: Literal[True] | Any = utils.are_progress_bars_disabled()
    if not was:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        if not was:
            utils.enable_progress_bars()
