"""Messages between rank 0 and each other rank of one host, beside what the devices exchange.

A thread of each process always listens, so that a rank which ends is noticed at once: its socket closes.
"""

from __future__ import annotations

import json
import secrets
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait

import safetensors.torch
import torch.distributed as dist
from torch import Tensor

Message = dict  # what JSON can say
_KEY = "longlive/link"  # of the store, where rank 0 says where it listens


class Link:
    """Rank 0's connections to all others, or another rank's to rank 0.

    on_message: called as (rank, message, tensors) in the thread that listens; on_end: as (rank) when that one has ended
    or closed its side. Both must not wait. ``start`` begins to listen.
    """

    def __init__(self, peers: Mapping[int, Connection]):
        self._peers = dict(peers)
        self._locks = {rank: threading.Lock() for rank in peers}
        self._closed = False

    @classmethod
    def meet(cls, store: dist.Store, rank: int, count: int, timeout: float) -> Link:
        """Connect all ranks. Raises ConnectionError where some do not come within ``timeout`` seconds."""
        try:
            return cls(_others(store, count, timeout) if rank == 0 else {0: _first(store, rank, timeout)})
        except (OSError, dist.DistError) as error:
            raise ConnectionError(f"rank {rank} waited {timeout:g} s for the others: {error}") from error

    def start(self, on_message: Callable[[int, Message, Sequence[Tensor]], None], on_end: Callable[[int], None]):
        """Listen from here on."""
        self._on_message, self._on_end = on_message, on_end
        threading.Thread(target=self._listen, name="longlive-ranks", daemon=True).start()

    def send(self, message: Message, tensors: Sequence[Tensor] = (), to: int | None = None) -> None:
        """To one rank, or to all that this one is connected with; to those that have ended nothing is sent."""
        packed = [json.dumps(message | {"tensors": len(tensors)}).encode()]
        if tensors:
            packed.append(safetensors.torch.save({str(i): t.cpu().contiguous() for i, t in enumerate(tensors)}))
        for rank, peer in list(self._peers.items()):
            if to is None or to == rank:
                with self._locks[rank]:
                    _send(peer, packed)

    def close(self) -> None:
        """The others see this rank end."""
        self._closed = True
        for rank, peer in self._peers.items():
            with self._locks[rank]:
                peer.close()

    def _listen(self) -> None:
        ranks = {peer: rank for rank, peer in self._peers.items()}
        while ranks and not self._closed:
            try:
                ready = wait([*ranks], timeout=1)
            except (OSError, ValueError):  # closed by this side
                return
            for peer in ready:
                if not self._receive(ranks[peer], peer):  # pyright: ignore[reportArgumentType]
                    rank = ranks.pop(peer)  # pyright: ignore[reportArgumentType, reportCallIssue]
                    if not self._closed:
                        self._on_end(rank)

    def _receive(self, rank: int, peer: Connection) -> bool:
        """One message; False at the end of them."""
        try:
            message, tensors = json.loads(peer.recv_bytes()), ()
            if count := message.pop("tensors"):
                held = safetensors.torch.load(peer.recv_bytes())
                tensors = tuple(held[str(i)] for i in range(count))
        except (EOFError, OSError):
            return False
        self._on_message(rank, message, tensors)
        return True


def _send(peer: Connection, packed: Sequence[bytes]) -> None:
    try:
        for part in packed:
            peer.send_bytes(part)
    except OSError:
        pass  # it has ended: the thread that listens says so


def _others(store: dist.Store, count: int, timeout: float) -> dict[int, Connection]:
    """Rank 0's: each comes with a word that the store has given it."""
    word, peers = secrets.token_hex(16), {}
    with socket.create_server(("127.0.0.1", 0), backlog=count) as server:
        server.settimeout(timeout)
        store.set(_KEY, json.dumps({"port": server.getsockname()[1], "word": word}))
        while len(peers) < count - 1:
            peer = _connection(server.accept()[0])
            rank, said = _hello(peer, timeout)
            if secrets.compare_digest(said, word) and 0 < rank < count:
                peers[rank] = peer
            else:
                peer.close()
    return peers


def _hello(peer: Connection, timeout: float) -> tuple[int, str]:
    """Which rank a peer says that it is, and the word that it brings."""
    try:
        rank, word = json.loads(peer.recv_bytes(1000) if peer.poll(timeout) else b"")
        return int(rank), str(word)
    except (ValueError, TypeError, EOFError, OSError):
        return 0, ""


def _first(store: dist.Store, rank: int, timeout: float) -> Connection:
    """Another rank's to rank 0."""
    said = json.loads(store.get(_KEY))
    peer = _connection(socket.create_connection(("127.0.0.1", said["port"]), timeout))
    peer.send_bytes(json.dumps((rank, said["word"])).encode())
    return peer


def _connection(of: socket.socket) -> Connection:
    of.setblocking(True)
    of.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Connection(of.detach())
