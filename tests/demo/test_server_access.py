"""Who is let in."""

import pytest

from longlive_optimized.demo.server.access import Access, Refused, TokenBucket
from longlive_optimized.demo.server.settings import IceServer, ServerSettings

TOKEN = "correct horse battery"
LOCAL = ServerSettings()
PUBLIC = ServerSettings(host="0.0.0.0", token=TOKEN)
PROXIED = ServerSettings(origins=("https://demo.example",))
BEARER = f"Bearer {TOKEN}"


@pytest.mark.parametrize(
    ("settings", "host", "origin", "authorization"),
    [
        (LOCAL, "localhost:8000", None, None),
        (LOCAL, "127.0.0.1:8000", "http://127.0.0.1:8000", None),
        (LOCAL, "[::1]:8000", "http://[::1]:8000", None),
        (PUBLIC, "gpu.example:8000", "http://gpu.example:8000", BEARER),
        (PUBLIC, "10.0.0.7:8000", None, "bearer  " + TOKEN),
        (PROXIED, "demo.example", "https://demo.example", None),
        (PROXIED, "127.0.0.1:8000", "https://demo.example", None),
    ],
)
def test_let_in(settings, host, origin, authorization):
    Access(settings).check(host, origin, authorization)


@pytest.mark.parametrize(
    ("settings", "host", "origin", "authorization", "code"),
    [
        (LOCAL, "evil.example", None, None, "host"),
        (LOCAL, "evil.example:8000", "http://evil.example:8000", None, "host"),  # its name resolves to 127.0.0.1
        (LOCAL, "localhost.evil.example", None, None, "host"),
        (LOCAL, "", None, None, "host"),
        (LOCAL, "[", None, None, "host"),
        (LOCAL, "localhost:8000", "http://evil.example", None, "origin"),
        (LOCAL, "localhost:8000", "http://localhost:9000", None, "origin"),
        (LOCAL, "localhost:8000", "null", None, "origin"),
        (PUBLIC, "gpu.example", "http://evil.example", BEARER, "origin"),
        (PUBLIC, "gpu.example", None, None, "token"),
        (PUBLIC, "gpu.example", None, "Bearer wrong", "token"),
        (PUBLIC, "gpu.example", None, f"Basic {TOKEN}", "token"),
        (PUBLIC, "gpu.example", None, TOKEN, "token"),
        (PUBLIC, "gpu.example", None, "Bearer \udce9", "token"),
        (PROXIED, "other.example", "https://demo.example", None, "host"),
        (PROXIED, "localhost", "http://demo.example", None, "origin"),
        (LOCAL, "localhost", "http://[", None, "origin"),
        (PUBLIC, "", "null", BEARER, "origin"),
    ],
)
def test_kept_out(settings, host, origin, authorization, code):
    with pytest.raises(Refused) as caught:
        Access(settings).check(host, origin, authorization)
    assert caught.value.code == code and caught.value.status in (401, 403)
    assert {"host": "--origin", "origin": "--origin", "token": "Bearer TOKEN"}[code] in str(caught.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "gpu.example"])
def test_others_than_this_machine_need_a_token(host):
    with pytest.raises(ValueError, match="token of at least 16"):
        ServerSettings(host=host)
    with pytest.raises(ValueError, match="token"):
        ServerSettings(host=host, token="short")
    assert not ServerSettings(host=host, token=TOKEN).loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "localhost"])
def test_this_machine_needs_none(host):
    assert ServerSettings(host=host).loopback


@pytest.mark.parametrize("origin", ["null", "file://", "", "chrome-extension://abcdef", "http://["])
def test_no_remedy_is_named_that_is_none(origin):
    """Such an origin cannot be allowed: --origin refuses it too."""
    with pytest.raises(Refused, match="only pages from https://HOST can be allowed to") as caught:
        Access(LOCAL).check("localhost:8000", origin, None)
    assert f"its origin is {origin!r}" in str(caught.value)


@pytest.mark.parametrize("origin", ["http://localhost:9000", "https://Demo.Example/"])
def test_the_remedy_works(origin):
    with pytest.raises(Refused) as caught:
        Access(LOCAL).check("localhost:8000", origin, None)
    allowed = str(caught.value).rpartition("--origin ")[2]
    Access(ServerSettings(origins=(allowed,))).check("localhost:8000", allowed, None)


@pytest.mark.parametrize("token", [" correct-horse-battery", "correct-horse-battéry", "correct-horse\nbattery"])
def test_a_token_that_no_header_can_hold(token):
    with pytest.raises(ValueError, match="token must be of ASCII") as caught:
        ServerSettings(token=token)
    assert "horse" not in caught.value.errors()[0]["msg"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("codec", "av1"),
        ("bitrate", 0),
        ("max_viewers", 0),
        ("sessions", 0),
        ("sessions", "many"),
        ("keep_seconds", -1),
        ("max_queued", -1),
        ("sessions_per_client", 0),
        ("record_seconds", -1),
        ("origins", ("demo.example",)),
        ("origins", ("*",)),
        ("origins", ("null",)),
        ("origins", ("https://*.example",)),
        ("origins", ("https://user@demo.example",)),
        ("origins", ("ftp://demo.example",)),
        ("origins", ("https://demo.example/path",)),
    ],
)
def test_bad_settings_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        ServerSettings(**{field: value})


@pytest.mark.parametrize(
    ("given", "spelt"),
    [
        ("https://Demo.Example", "https://demo.example"),
        ("https://demo.example/", "https://demo.example"),
        ("https://demo.example:443", "https://demo.example"),
        ("http://demo.example:80/", "http://demo.example"),
        ("http://demo.example:443", "http://demo.example:443"),
        ("http://[::1]:9000", "http://[::1]:9000"),
        ("https://exämple.de", "https://xn--exmple-cua.de"),
    ],
)
def test_origins_are_spelt_as_browsers_do(given, spelt):
    assert ServerSettings(origins=(given,)).origins == (spelt,)


def test_only_allowed_origins_are_shared_with():
    access = Access(PROXIED)
    assert access.sharing("https://demo.example")["Access-Control-Allow-Origin"] == "https://demo.example"
    for other in (None, "null", "https://evil.example", "https://demo.example.evil", "http://demo.example"):
        assert access.sharing(other) == {"Vary": "Origin"}
    assert Access(LOCAL).sharing("http://localhost:8000") == {}


def test_ice_servers():
    assert IceServer(urls="stun:stun.example:3478").urls
    assert IceServer(urls="turn:turn.example?transport=tcp", username="a", credential="b").urls
    for urls in ("http://stun.example", "stun:", "turn:a b"):
        with pytest.raises(ValueError, match="urls"):
            IceServer(urls=urls, username="a", credential="b")
    with pytest.raises(ValueError, match="user name and a password"):
        IceServer(urls="turn:turn.example")


def test_a_bucket_lets_a_burst_through_and_then_a_rate():
    now = 0.0
    bucket = TokenBucket(rate=2, burst=3, clock=lambda: now)
    assert [bucket.take() for _ in range(5)] == [True] * 3 + [False] * 2
    now = 0.5
    assert [bucket.take() for _ in range(2)] == [True, False]
    now = 100.0
    assert sum(bucket.take() for _ in range(9)) == 3


def test_what_is_reserved_passes_no_faster_either():
    now, passed = 0.0, []
    bucket = TokenBucket(rate=10, burst=20, clock=lambda: now)
    while now < 5:  # the next is asked for as soon as the last has passed
        now += bucket.reserve()
        passed.append(now)
        now += 1e-3
    assert passed[:20] == pytest.approx([i * 1e-3 for i in range(20)])
    assert 68 <= len(passed) <= 70
    assert not bucket.take()
    now += 10
    assert bucket.reserve() == 0
