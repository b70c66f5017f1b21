"""What the hub's client raises, in words that say what to do. They hold no token, no header, no signed address."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from .published import Repository

_TRANSPORT = {("httpx", "TransportError"), ("httpx2", "TransportError"), ("requests", "RequestException")}


@contextlib.contextmanager
def as_ours(repository: Repository) -> Iterator[None]:
    """Turn the client's errors into ours, without their cause, which may quote what the server has sent.

    Raises PermissionError where the hub does not show a repository, FileNotFoundError where there is none or no such
    revision, ConnectionError where it cannot be reached or the client is offline, OSError for its other answers.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except Exception as error:
        where = constants.ENDPOINT
        if isinstance(error, OfflineModeIsEnabled):
            text = f"HF_HUB_OFFLINE is set: {repository} cannot be downloaded"
        elif isinstance(error, LocalEntryNotFoundError):
            text = f"{where} cannot be reached, {repository} cannot be downloaded"
        elif _status(error) or isinstance(error, HfHubHTTPError):
            raise _answer(error, repository, where) from None
        elif _is_transport(error):
            text = f"{where} cannot be reached, {repository} cannot be downloaded ({type(error).__name__})"
        else:
            raise
        raise ConnectionError(text) from None


def is_passing(error: Exception) -> bool:
    """Whether the same request may succeed soon."""
    if status := _status(error):
        return status >= 500
    return _is_transport(error) or (isinstance(error, OSError) and "Consistency check failed" in str(error))


def _is_transport(error: BaseException) -> bool:
    kinds = {(kind.__module__.split(".")[0], kind.__name__) for kind in type(error).__mro__}
    return bool(kinds & _TRANSPORT)


def _status(error: Exception) -> int:
    return getattr(getattr(error, "response", None), "status_code", 0)


def _answer(error: Exception, repository: Repository, where: str) -> OSError:
    from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError

    status = _status(error)
    if isinstance(error, RevisionNotFoundError):
        return FileNotFoundError(f"{repository.name} has no revision {repository.revision} at {where}")
    if isinstance(error, GatedRepoError):
        return PermissionError(
            f"{repository.name} is gated ({status}): ask for access at {where}/{repository.name}, then sign in with "
            "hf auth login, or set HF_TOKEN"
        )
    if status in (401, 403):
        return PermissionError(
            f"{where} does not show {repository.name} ({status}): there is no such repository, or it is private. Sign "
            "in with hf auth login, or set HF_TOKEN; a token that is set is refused, or no longer valid"
        )
    if status == 404:
        return FileNotFoundError(f"{where} has no repository {repository.name}, or lacks a file of it")
    return OSError(f"{where} has answered {status} for {repository.name}")
