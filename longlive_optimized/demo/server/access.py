"""Who may ask, and how often."""

from __future__ import annotations

import base64
import functools
import hmac
import secrets
from collections.abc import Callable
from urllib.parse import urlsplit

from .settings import ServerSettings, as_origin

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

    def check(self, host: str, origin: str | None, authorization: str | None, stream: str | None = None) -> None:
        """Raise Refused for a foreign page, a foreign name of a local server, or a missing or wrong token.

        host, origin, authorization: the headers of these names. stream: the name of the one that is asked for, whose
        own token will do.
        """
        self.check_page(host, origin)
        token = self._settings.token
        if token is None:
            return
        how = "open the address that the server printed, or send 'Authorization: Bearer TOKEN'"
        if authorization is None:
            raise Refused(401, f"a token is needed: {how}", "token")
        tokens = [token] if stream is None else [token, stream_token(token, stream)]
        if not any([_presents(one, authorization) for one in tokens]):
            raise Refused(401, f"this is not the server's token: {how}", "token")

    def check_page(self, host: str, origin: str | None) -> None:
        """As ``check``, without a token: browsers send none when they ask what a page elsewhere may do."""
        # A page elsewhere can let its own name resolve to 127.0.0.1, and is then of the "same origin" as this server:
        # only the names that a local server is known by tell them apart. Others are kept out by the token.
        if self._settings.loopback and _hostname(host) not in self._names:
            raise Refused(
                403,
                f"this server is not known by the name {host[:100]!r}: open it as localhost, "
                "or start it with --origin https://NAME",
                "host",
            )
        if origin in (None, *self._settings.origins) or origin.partition("://")[2] == host != "":
            return
        try:
            remedy = f"it must be started with --origin {as_origin(origin[:100])}"
        except ValueError:  # a file's, an extension's, a sandboxed frame's
            remedy = f"its origin is {origin[:100]!r}, and only pages from https://HOST can be allowed to, by --origin"
        raise Refused(403, f"this page may not use the server: {remedy}", "origin")

    def sharing(self, origin: str | None) -> dict[str, str]:
        """The headers that let a page elsewhere read an answer: none but for the origins that were allowed."""
        if not self._settings.origins:
            return {}
        allow = {"Access-Control-Allow-Origin": origin} if origin in self._settings.origins else {}
        return allow | {"Vary": "Origin"}


def stream_token(token: str, stream: str) -> str:
    """The token that lets its holder use one stream and no other; it tells nothing of the server's own."""
    digest = hmac.digest(token.encode(), b"stream " + stream.encode(), "sha256")
    return base64.urlsafe_b64encode(digest[:24]).decode()


def _presents(token: str, authorization: str) -> bool:
    scheme, _, presented = authorization.partition(" ")
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
        self._refill()
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def reserve(self) -> float:
        """Let one more pass, if not now then in so many seconds."""
        self._refill()
        self._left -= 1
        return max(0.0, -self._left / self._rate)

    def _refill(self) -> None:
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now


class ClientBuckets:
    """A token bucket for each client; ``most`` of them are kept, those of clients that rest go first."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float], most: int = 1000):
        self._new, self._most = functools.partial(TokenBucket, rate, burst, clock), most
        self._buckets: dict[str, TokenBucket] = {}

    def take(self, client: str) -> bool:
        """Whether one more of this client's may pass now."""
        bucket = self._buckets.pop(client, None) or self._new()
        self._buckets[client] = bucket  # the newest is last
        while len(self._buckets) > self._most:
            del self._buckets[next(iter(self._buckets))]
        return bucket.take()
