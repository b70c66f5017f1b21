#!/usr/bin/env bash
# Importing janus-client sets a program's log to INFO, and it writes each message with the secret of Janus's API, a room's PIN or admin key to it.
#
# Versions: janus-client 0.9.0, websockets 17.4, aiohttp 3.14.5, aiortc 1.16.0, Python 3.11.
# Who meets it: every program that has not set up its log before the import: janus_client/media.py calls logging.basicConfig. So all that any
#   package says at INFO goes to stderr, and with it the messages to Janus as JSON, after "apisecret" and "token" have been put
#   in. A program that has set up its log keeps its level, and has the secrets in it where that is INFO.
# Seen: of the 3 messages that open a session, attach a plugin and join a room, 3 are written to stderr with the secret, 1 with the PIN.
# What helps: logging.root.addHandler(logging.NullHandler()) before the import; afterwards
#   logging.getLogger("janus_client").setLevel(logging.WARNING).
# Exits non-zero if that changes.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet "janus-client==0.9.0" "websockets==17.4" "aiohttp==3.14.5" "aiortc==1.16.0"
cd "$scratch"
"$scratch/venv/bin/python" -W ignore - 2>"$scratch/log" <<'PYTHON' || { cat "$scratch/log" >&2; exit 1; }
import asyncio
import contextlib
import io
import json

from websockets.asyncio.server import serve

log = io.StringIO()
with contextlib.redirect_stderr(log):
    import janus_client


class Plugin(janus_client.JanusPlugin):
    name = "janus.plugin.videoroom"

    async def on_receive(self, response):
        pass


async def answer(connection):
    """What Janus answers, as far as it matters here."""
    async for text in connection:
        message = json.loads(text)
        await connection.send(json.dumps({"janus": "success", "transaction": message["transaction"], "data": {"id": 1}}))


async def main():
    async with serve(answer, "127.0.0.1", 0, subprotocols=["janus-protocol"]) as server:
        port = server.sockets[0].getsockname()[1]
        session = janus_client.JanusSession(f"ws://127.0.0.1:{port}", api_secret="the-secret")
        await session.create()
        plugin = Plugin()
        await plugin.attach(session)
        joined = await plugin.send({"janus": "message", "body": {"request": "join", "room": 1, "pin": "the-pin"}})
        await joined.get()
        await session.destroy()


asyncio.run(main())
lines = [line for line in log.getvalue().splitlines() if "Send: " in line and "destroy" not in line]
secret, pin = (sum(word in line for line in lines) for word in ("the-secret", "the-pin"))
print(f"of {len(lines)} messages, {secret} are written to stderr with the secret, {pin} with the PIN")
assert (len(lines), secret, pin) == (3, 3, 1), log.getvalue()
PYTHON
