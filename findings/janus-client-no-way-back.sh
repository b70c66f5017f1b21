#!/usr/bin/env bash
# A janus-client session whose connection has ended tells nobody, and cannot be opened again: create() returns at once, as if all were well.
#
# Versions: janus-client 0.9.0, websockets 17.4, aiohttp 3.14.5, aiortc 1.16.0, Python 3.11.
# Who meets it: who publishes to, or watches, a Janus that is restarted. No event says that the WebSocket has ended (a traceback in the log does),
#   `created` stays true, and create(), which is what send() calls too, connects only while it is false. All later messages fail until
#   the program makes a new JanusSession.
# Seen, with the server there again:
#   created True, connected False, create() returns None, send() raises: Must connect before any communication.
# What helps: wait for session.transport.receive_message_task, which ends with the connection, and make new objects.
# Exits non-zero if that changes.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet "janus-client==0.9.0" "websockets==17.4" "aiohttp==3.14.5" "aiortc==1.16.0"
cd "$scratch"
"$scratch/venv/bin/python" -W ignore - 2>"$scratch/log" <<'PYTHON' || { cat "$scratch/log" >&2; exit 1; }
import asyncio
import json

import janus_client
from websockets.asyncio.server import serve


async def answer(connection):
    """What Janus answers, as far as it matters here."""
    async for text in connection:
        message = json.loads(text)
        await connection.send(json.dumps({"janus": "success", "transaction": message["transaction"], "data": {"id": 1}}))


async def main():
    async with serve(answer, "127.0.0.1", 0, subprotocols=["janus-protocol"]) as server:
        port = server.sockets[0].getsockname()[1]
        session = janus_client.JanusSession(f"ws://127.0.0.1:{port}")
        await session.create()
    await asyncio.sleep(0.5)
    async with serve(answer, "127.0.0.1", port, subprotocols=["janus-protocol"]):
        state = session.created, session.transport.connected, await session.create()
        try:
            await session.send({"janus": "keepalive"})
            said = "nothing"
        except Exception as error:
            said = str(error)
    print("created {}, connected {}, create() returns {}, send() raises: {}".format(*state, said))
    session.keepalive_task.cancel()
    assert (*state, said) == (True, False, None, "Must connect before any communication."), (state, said)


asyncio.run(main())
PYTHON
