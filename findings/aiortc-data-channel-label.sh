#!/usr/bin/env bash
# A data channel whose label is not ASCII arrives with its label cut, or ends the whole connection: aiortc counts characters, not bytes.
#
# Versions: aiortc 1.16.0, aioice 0.13.0, Python 3.11.
# Who meets it: who names a channel in their own language. DATA_CHANNEL_OPEN holds the label's length in bytes of UTF-8 (RFC 8832,
#   section 5.1); aiortc sends the number of characters. The receiver reads so many bytes: it gets a shorter
#   label, the rest as the protocol's name, or bytes that are no text. aiortc's receiver then stops reading its DTLS transport, so
#   video and all other channels end with it, while the sender still believes that it is connected.
# Seen:
#   'chat'     arrives as 'chat', sender connected, receiver connected
#   'naïve ch' arrives as 'naïve c', sender connected, receiver connected
#   'café'     does not arrive, sender connected, receiver closed
# Exits non-zero if that changes.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet "aiortc==1.16.0" "aioice==0.13.0"
cd "$scratch"
"$scratch/venv/bin/python" - 2>"$scratch/log" <<'PYTHON' || { cat "$scratch/log" >&2; exit 1; }
import asyncio

import aioice.ice
from aiortc import RTCConfiguration, RTCPeerConnection

aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"]  # which it leaves out; nothing else is needed


async def send(label):
    nothing = RTCConfiguration(iceServers=[])
    sender, receiver = RTCPeerConnection(nothing), RTCPeerConnection(nothing)
    arrived = []
    receiver.on("datachannel", lambda channel: arrived.append(channel.label))
    sender.createDataChannel(label)
    await sender.setLocalDescription(await sender.createOffer())
    await receiver.setRemoteDescription(sender.localDescription)
    await receiver.setLocalDescription(await receiver.createAnswer())
    await sender.setRemoteDescription(receiver.localDescription)
    await asyncio.sleep(3)
    seen = arrived, sender.connectionState, receiver.connectionState
    await asyncio.gather(sender.close(), receiver.close())
    return seen


for label, wanted in {
    "chat": (["chat"], "connected", "connected"),
    "naïve ch": (["naïve c"], "connected", "connected"),
    "café": ([], "connected", "closed"),
}.items():
    seen = asyncio.run(send(label))
    how = f"arrives as {seen[0][0]!r}" if seen[0] else "does not arrive"
    print(f"{label!r:10} {how}, sender {seen[1]}, receiver {seen[2]}")
    assert seen == wanted, seen
PYTHON
