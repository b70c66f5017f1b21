"""Getting the real model from the hub, from where it was left off, and checked.

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
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

from ..plain import size_text
from . import CheckpointError
from .checksums import digest, hub_checksum, record_of
from .hub_errors import as_ours, is_passing
from .hub_plan import Item, Plan, is_it, make_plan
from .published import VAE_FILES, Wishes, as_repository, command
from .stored import stored

AT_A_TIME = 4
TRIES, PAUSE = 5, 1.0  # without a byte more, and the seconds between them
Progress = Callable[[str, int, int], None]

_log = logging.getLogger(__name__)


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
        if not item.damaged and goal.is_file() and is_it(goal, item, False) and hub_checksum(goal):
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
