"""Who is where, who waits, and what lost sessions go on from: plain data, which one actor keeps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

SILENT = 6.0  # seconds without a report after which a replica is taken for dead, where nobody has noticed before
SETTLING = 3.0  # seconds after which a session that its replica does not report has ended
PATIENCE = 15.0  # seconds that one who waits keeps the place without asking again
COMING = 45.0  # seconds that a session may take to be opened


@dataclass
class Report:
    """How a replica is doing. sessions: their names; figures: one dict for each stream that it has."""

    replica: str
    address: str
    pid: int
    seats: int
    sessions: list[str] = field(default_factory=list)
    draining: bool = False
    figures: list[dict] = field(default_factory=list)
    load: float = 0.0


@dataclass(frozen=True)
class Entry:
    """Where a session is, or what its viewer is to do. ``at``: it is at ``address``. ``go``: open it at a replica,
    there is a seat. ``soon``: somebody does that already. ``wait``: all seats are taken, ``position`` counts from 1.
    ``full``: too many wait. ``many``: who asks has as many as one may have."""

    kind: Literal["at", "go", "soon", "wait", "full", "many"]
    address: str = ""
    position: int = 0


class Directory:
    """Belongs to one thread. keep: puts bytes where they outlive the replica that sent them, and gives what finds them.

    max_queued, keep_seconds, per_client (sessions_per_client): ClusterConfig's.
    """

    def __init__(
        self,
        max_queued: int,
        keep_seconds: float,
        keep: Callable[[bytes], Any],
        clock: Callable[[], float] = time.monotonic,
        per_client: int | None = None,
    ):
        self._per_client, self._clients = per_client, dict[str, str]()  # who asked for a session first
        self._max_queued, self._keep_seconds, self._keep, self._clock = max_queued, keep_seconds, keep, clock
        self._replicas: dict[str, Report] = {}
        self._heard: dict[str, float] = {}
        self._owners: dict[str, tuple[str, float]] = {}  # of sessions: the replica, and since when
        self._saved: dict[str, Any] = {}
        self._orphans: dict[str, float] = {}  # sessions whose replica is gone, and since when
        self._coming: dict[str, float] = {}
        self._queue: dict[str, float] = {}  # when they asked last

    # --- what replicas say

    def report(self, report: Report) -> list[str]:
        """Note how a replica is doing; those of its sessions that go on at another one."""
        now, own = self._clock(), report.replica
        self._replicas[own], self._heard[own] = report, now
        for name in report.sessions:
            if name not in self._owners and name not in self._coming and not report.draining:
                self._take(name, own)
        for name, (owner, since) in [*self._owners.items()]:
            if owner == own and name not in report.sessions and since < now - SETTLING:
                self._forget(name)
        settled = [name for name in report.sessions if name not in self._coming]
        return [name for name in settled if self._owners.get(name, (own,))[0] != own]

    def keep(self, name: str, replica: str, data: bytes) -> None:
        """What a session that is at this replica goes on from, should that be gone."""
        if self._owners.get(name, ("",))[0] == replica:
            self._saved[name] = self._keep(data)

    def saved(self, name: str) -> list:
        """What finds that, in a list; an empty one where there is nothing."""
        return [self._saved[name]] if name in self._saved else []

    # --- what the gate asks and says

    def enter(self, name: str, moves: bool = False, client: str = "") -> Entry:
        """Where a session is, or what to do about it. moves: it is to leave the replica that it is at. client: who
        asks."""
        self._tidy()
        if not moves and (owner := self._owners.get(name)):
            return Entry("at", self._replicas[owner[0]].address)
        if name in self._coming:
            return Entry("soon")
        now = self._clock()
        if name not in self._queue:
            known = moves or name in self._orphans
            if not known and client and self._per_client and self._of(client) >= self._per_client:
                return Entry("many")
            if not self._free() and len(self._queue) >= self._max_queued:
                return Entry("full")
            # Those that are known have had a seat.
            self._queue = {name: now} | self._queue if known else self._queue | {name: now}
            self._clients.setdefault(name, client)
        self._queue[name] = now
        position = [*self._queue].index(name) + 1
        if position > self._free():
            return Entry("wait", position=position)
        del self._queue[name]
        self._coming[name] = now
        return Entry("go")

    def placed(self, name: str, replica: str) -> None:
        """A session was opened at a replica."""
        self._take(name, replica)

    def failed(self, name: str) -> None:
        """A session could not be opened."""
        self._coming.pop(name, None)

    def lost(self, replica: str) -> None:
        """A replica is gone."""
        self._heard.pop(replica, None)
        self._replicas.pop(replica, None)
        for name in [name for name, (owner, _) in self._owners.items() if owner == replica]:
            del self._owners[name]
            if name in self._saved:
                self._orphans[name] = self._clock()

    def position(self, name: str) -> int | None:
        """A session's place in the queue; None for one that does not wait."""
        return [*self._queue].index(name) + 1 if name in self._queue else None

    def address(self, name: str) -> str | None:
        """Of the replica that has a session; None where none has."""
        self._tidy()
        return self._replicas[self._owners[name][0]].address if name in self._owners else None

    def addresses(self) -> dict[str, str]:
        """Of all replicas, by their names."""
        self._tidy()
        return {name: report.address for name, report in self._replicas.items()}

    def status(self) -> dict:
        """How the cluster is doing."""
        self._tidy()
        replicas = [
            {
                "replica": name,
                "pid": report.pid,
                "seats": report.seats,
                "taken": self._taken(name),
                "draining": report.draining,
                "load": report.load,
                "streams": report.figures,
            }
            for name, report in self._replicas.items()
        ]
        return {
            "replicas": replicas,
            "free": self._free(),
            "open": len(self._owners),
            "queued": len(self._queue),
            "lost": len(self._orphans),
            "kept": len(self._saved),
        }

    # --- how it is known

    def _take(self, name: str, replica: str) -> None:
        self._owners[name] = replica, self._clock()
        for waiting in (self._orphans, self._queue, self._coming):
            waiting.pop(name, None)

    def _forget(self, name: str) -> None:
        self._owners.pop(name, None)
        self._orphans.pop(name, None)
        self._saved.pop(name, None)

    def _of(self, client: str) -> int:
        """Sessions that were first asked for by ``client``, and are open, waited for or to go on."""
        alive = {*self._owners, *self._queue, *self._coming, *self._orphans}
        self._clients = {name: who for name, who in self._clients.items() if name in alive}
        return sum(who == client for who in self._clients.values())

    def _taken(self, replica: str) -> int:
        return sum(owner == replica for owner, _ in self._owners.values())

    def _free(self) -> int:
        here = (report for report in self._replicas.values() if not report.draining)
        return max(0, sum(report.seats - self._taken(report.replica) for report in here) - len(self._coming))

    def _tidy(self) -> None:
        now = self._clock()
        for replica in [replica for replica, heard in self._heard.items() if heard < now - SILENT]:
            self.lost(replica)
        for name in [name for name, since in self._orphans.items() if since < now - self._keep_seconds]:
            self._forget(name)
        for name in [name for name, asked in self._queue.items() if asked < now - PATIENCE]:
            del self._queue[name]
        for name in [name for name, since in self._coming.items() if since < now - COMING]:
            del self._coming[name]
