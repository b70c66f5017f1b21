"""Who may ask, and how often."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from urllib.parse import urlsplit

from .settings import ServerSettings

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class Refused(Exception):
    """A request that is not granted; ``status`` is HTTP's, and ``code`` is for programs to read."""

    def __init__(self, status: int, reason: str, code: str):
        super().__init__(reason)
        self.status, self.code = status, code


class Access:
    """Checks the headers of a request against the settings."""

    def __init__(self, settings: ServerSettings):
        self._settings = settings
        self._names = LOCAL_NAMES | {settings.host} | {urlsplit(origin).hostname for origin in settings.origins}

    def check(self, host: str, origin: str | None, authorization: str | None) -> None:
        """Raise Refused for a foreign page, a foreign name of a local server, or a missing or wrong token.

        host, origin, authorization: the headers of these names.
        """
        # A page elsewhere can let its own name resolve to 127.0.0.1, and is then of the "same origin" as this server:
        # only the names that a local server is known by tell them apart. Others are kept out by the token.
        if self._settings.loopback and _hostname(host) not in self._names:
            raise Refused(403, "this server is not known by that name", "host")
        if origin is not None and origin not in self._settings.origins and urlsplit(origin).netloc != host:
            raise Refused(403, "this page may not use the server", "origin")
        token = self._settings.token
        if token is not None and not _presents(token, authorization):
            raise Refused(401, "a token is needed: open the address that the server printed", "token")


def _presents(token: str, authorization: str | None) -> bool:
    scheme, _, presented = (authorization or "").partition(" ")
    right = secrets.compare_digest(presented.strip().encode(errors="surrogatepass"), token.encode())
    return scheme.lower() == "bearer" and right


def _hostname(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


class TokenBucket:
    """Lets ``rate`` events a second through, and ``burst`` at once after a rest; ``clock`` gives seconds."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float]):
        self._rate, self._burst, self._clock = rate, burst, clock
        self._left, self._at = float(burst), clock()

    def take(self) -> bool:
        """Whether one more may pass now."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
