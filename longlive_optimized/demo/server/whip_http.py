"""The requests of WHIP (RFC 9725): an offer is posted, its answer comes with a session, and the session is deleted."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import logging
import ssl
import time
from http import HTTPStatus

import httpx

from .publishing import Lost

ANSWER_SECONDS = 10.0  # within which each request must be answered
LEAVE_SECONDS = 1.0  # that a good-bye may take
MOST_BYTES = 65_536  # of an answer
MOST_REDIRECTS = 5
TOKEN = "LONGLIVE_WHIP_TOKEN"

# At INFO and below they say addresses and headers, which hold keys and tokens.
for _name in ("httpx", "httpcore"):
    logging.getLogger(_name).setLevel(logging.WARNING)


def tls() -> ssl.SSLContext:
    """What certificates are checked by; takes a while to make."""
    return httpx.create_ssl_context()


class Signalling:
    """One session of an endpoint's, from ``offer`` to ``close``.

    The token goes to wherever the endpoint leads, which RFC 9725 asks for and services need, but never from HTTPS to
    HTTP.
    """

    def __init__(self, url: str, token: str | None, context: ssl.SSLContext):
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._client = httpx.AsyncClient(headers=headers, verify=context, timeout=None)
        self._url, self._has_token = httpx.URL(url), token is not None
        self._session: httpx.URL | None = None

    async def offer(self, sdp: str) -> str:
        """The answer to an offer. Raises Lost."""
        url = self._url
        for _ in range(MOST_REDIRECTS + 1):
            response, body = await self._post(url, sdp)
            if response.status_code not in (HTTPStatus.TEMPORARY_REDIRECT, HTTPStatus.PERMANENT_REDIRECT):
                break
            url = _led_on(url, response, "redirect")
        else:
            raise Lost(f"the endpoint leads from one address to another more than {MOST_REDIRECTS} times")
        if response.status_code != HTTPStatus.CREATED:
            raise Lost(_why_not(response, self._has_token), _rest_wanted(response))
        self._session = _led_on(url, response, "session")
        answer = body.decode(errors="replace")
        if not answer.startswith("v=0"):
            raise Lost("the endpoint's answer is no session description: it does not speak WHIP")
        return answer

    async def close(self) -> None:
        """End the session where there is one, whether or not the endpoint is still there."""
        try:
            if self._session is not None:
                with contextlib.suppress(httpx.HTTPError, TimeoutError):
                    async with asyncio.timeout(LEAVE_SECONDS):
                        await self._client.delete(self._session)
        finally:
            await self._client.aclose()

    async def _post(self, url: httpx.URL, sdp: str) -> tuple[httpx.Response, bytes]:
        headers = {"Content-Type": "application/sdp", "Accept": "application/sdp"}
        try:
            async with (
                asyncio.timeout(ANSWER_SECONDS),
                self._client.stream("POST", url, content=sdp.encode(), headers=headers) as response,
            ):
                body = bytearray()
                async for part in response.aiter_raw():
                    body += part
                    if len(body) > MOST_BYTES:
                        raise Lost(f"the endpoint's answer has more than {MOST_BYTES} bytes")
                return response, bytes(body)
        except TimeoutError:
            raise Lost("no answer of the endpoint") from None
        except httpx.HTTPError as error:
            raise Lost(_why_not_reached(error)) from error


def _led_on(url: httpx.URL, response: httpx.Response, to: str) -> httpx.URL:
    """Where the header Location leads. Raises Lost where that is no place to go."""
    location = response.headers.get("location")
    if not location:
        raise Lost(f"the endpoint names no {to}: a Location is missing from its {response.status_code}")
    try:
        onward = url.join(location)
    except (httpx.InvalidURL, ValueError):
        raise Lost(f"the endpoint names a {to} that is no address") from None
    if onward.scheme not in ("https", url.scheme) or onward.scheme not in ("https", "http") or not onward.host:
        raise Lost(f"the endpoint names a {to} that is not reached by {url.scheme}, but by {onward.scheme[:20]!r}")
    return onward


def _why_not(response: httpx.Response, has_token: bool) -> str:
    code = response.status_code
    said = f"({code} {response.reason_phrase[:60]})"
    if code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return f"the endpoint wants {'another' if has_token else 'a'} token: set {TOKEN} {said}"
    if code in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.GONE):
        return f"the host takes no WHIP at this path {said}"
    if code in (
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.NOT_ACCEPTABLE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
    ):
        return f"the endpoint refuses what it is offered, video as VP8 or H264 {said}"
    if code == HTTPStatus.CONFLICT:
        return f"somebody else publishes there {said}"
    if code in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        return f"the endpoint takes nobody now {said}"
    if response.is_redirect:
        return f"the endpoint has moved: give its new address {said}"
    return f"the endpoint answers {code} {response.reason_phrase[:60]}, where WHIP has 201"


def _why_not_reached(error: httpx.HTTPError) -> str:
    words = str(error) or type(error).__name__
    if "CERTIFICATE" in words.upper():
        return f"the endpoint's certificate is not trusted: {words}"
    if isinstance(error, httpx.ConnectError):
        return f"the endpoint cannot be reached: {words}"
    return f"the endpoint does not answer as HTTP has it: {words}"


def _rest_wanted(response: httpx.Response) -> float:
    """Seconds that the endpoint asks to be left alone for."""
    text = response.headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text[:9])
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return 0.0
