"""``serve`` on the command line."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("aiortc")
pytest.importorskip("fastapi")

from longlive_optimized.cli import main, serve
from longlive_optimized.demo.server.settings import ServerSettings

SMALL = ["serve", "--height", "32", "--width", "48", "--port", "0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "token of at least 16"),
        (["--host", "0.0.0.0", "--token", "short"], "token"),
        (["--token", "tökén-with-umlauts"], "--token must be of ASCII letters"),
        (["--codec", "av1"], "codec"),
        (["--preset", "warp"], "preset must be one of"),
        (["--height", "50"], "height"),
        (["--sessions", "0"], "--sessions must be auto or a number from 1 on, got '0'"),
        (["--sessions", "many"], "--sessions must be auto or a number from 1 on, got 'many'"),
        (["--keep", "-1"], "--keep"),
        (["--queue", "-1"], "--queue"),
        (["--sessions-per-client", "0"], "--sessions-per-client"),
        (["--prompt", " "], "prompt must hold some text"),
        (["--turn", "turn:turn.example"], "--turn needs --turn-username and --turn-password"),
        (["--model", "/no/such/folder"], "/no/such/folder"),
        (["--host", "192.0.2.1", "--token", "correct-horse-battery"], "cannot listen on 192.0.2.1"),
        (["--vae-device", "nowhere"], "--vae-device must be cuda, cuda:N or cpu, got 'nowhere'"),
        (["--cluster", "--publish", "janus://localhost/1234"], "--publish cannot be used with --cluster"),
        (["--cluster", "--publish-make-room"], "--publish-make-room cannot be used with --cluster"),
        (["--cluster", "--text-precision", "int8"], "--text-precision cannot be used with --cluster"),
        (["--cluster", "--text-residence", "cpu"], "--text-residence cannot be used with --cluster"),
        (["--cluster", "--lora", "ink.safetensors"], "--lora cannot be used with --cluster"),
        (["--lora", "none.safetensors"], "--lora: a LoRA's path must name a file: there is none at"),
        (["--lora", "none.safetensors:nan"], "--lora must be FILE or FILE:SCALE with a finite scale"),
        (["--lora", "."], "--lora: a LoRA's path must name a file, and"),
    ],
)
def test_mistakes_are_one_line(options, message, monkeypatch, capsys, caplog):
    monkeypatch.setattr(sys, "argv", ["longlive-optimized", *SMALL, *options])
    with pytest.raises(SystemExit) as caught:
        main()
    errors = capsys.readouterr().err
    assert caught.value.code == 2 and message in " ".join(errors.split())
    assert not [record for record in caplog.records if record.exc_info] and "Traceback" not in errors


@pytest.mark.parametrize("token", ["a+b/c=0123456789+/==", "a b&c#d%41?0123456789"])
def test_the_address_keeps_the_token(token):
    """The page reads it as URLSearchParams does: as a form's field."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = serve._address(ServerSettings(token=token), listener)
    assert parse_qs(urlsplit(address).fragment, strict_parsing=True) == {"token": [token]}


def half_an_offer(address):
    """A connection whose request has begun, and does not end."""
    sent = b"POST /offer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", urlsplit(address).port), timeout=20)
    connection.sendall(sent)
    assert b"100 Continue" in connection.recv(100)  # it is being read
    return connection


def test_it_serves_and_ends_on_a_signal():
    endings = {signal.SIGINT: 0, signal.SIGTERM: -signal.SIGTERM}
    code = "from longlive_optimized.cli import main; main()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    with contextlib.ExitStack() as stack:
        servers = {  # side by side: most of the time is theirs, until they are ready
            how: stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", code, *SMALL, "--model", "tiny"],
                    stderr=subprocess.PIPE,
                    text=True,
                    env=environment,
                )
            )
            for how in endings
        }
        for how, server in servers.items():
            address = re.search(r"http://127.0.0.1:\d+/", server.stderr.readline()).group()
            assert "ready after" in server.stderr.readline()
            with urllib.request.urlopen(address + "readyz", timeout=20) as answer:
                assert answer.status == 200
            stack.enter_context(half_an_offer(address))
            server.send_signal(how)
        for how, server in servers.items():
            _, errors = server.communicate(timeout=20)
            assert server.returncode == endings[how] and not errors
