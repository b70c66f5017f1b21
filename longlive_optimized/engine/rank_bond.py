"""What holds ranks together, and how that breaks: on all of them, for good."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

from .rank_link import Link

log = logging.getLogger(__name__)

GRACE = 5.0  # seconds that a rank may take to fail by itself, or to abort its collectives as Python ends


class RankError(ConnectionError):
    """A rank has ended, or has failed alone: the ranks are no longer alike, and all must be started anew."""


class Bond:
    """One rank's to the others.

    changed: held while what ranks have told each other is read or written; notified at each change.
    broken: why no call can be made any more; None as long as all is well. closed: this rank makes no more calls.
    on_broken: called with the error, in a thread of its own.
    """

    def __init__(self, rank: int, count: int, link: Link, on_broken: Callable[[RankError], None]):
        self.rank, self.count = rank, count
        self.changed = threading.Condition()
        self.broken: str | None = None
        self.closed = False
        self._link, self._on_broken = link, on_broken
        self._aborting: threading.Thread | None = None

    def tell(self, kind: str, tensors: Sequence[Tensor] = (), **what: Any) -> None:
        """Send a message: rank 0's is for all others, theirs for rank 0."""
        self._link.send({"kind": kind, **what}, tensors)

    def check(self) -> None:
        """Raises RankError where no call can be made any more."""
        if self.broken is not None:
            raise RankError(self.broken)

    def break_all(self, reason: str) -> None:
        """On all ranks."""
        self.break_here(reason)
        self.tell("broken", reason=reason)

    def break_here(self, reason: str) -> None:
        """On this rank; the first reason stays."""
        with self.changed:
            if self.broken is None:
                self.broken = reason
                threading.Thread(target=self._on_broken, args=(RankError(reason),), daemon=True).start()
            self.changed.notify_all()
        self.abort()

    def hear_broken(self, reason: str) -> None:
        """Another rank's has broken; rank 0 tells the rest."""
        if self.rank == 0:
            self.break_all(reason)
        else:
            self.break_here(reason)

    def abort(self) -> None:
        """End what waits in collectives, on the device too; there will be no others."""
        if self._aborting is None and not self.closed:
            # NCCL lets its kernels go at once, and then may wait for graphs that hold its collectives.
            self._aborting = threading.Thread(target=_abort_group, daemon=True)
            self._aborting.start()

    def close(self) -> None:
        """The others see this rank end."""
        self._link.close()

    def end(self) -> None:
        """As Python ends. An abort that does not come to its end would keep it from that."""
        if self._aborting:
            self._aborting.join(GRACE)
            if self._aborting.is_alive():
                log.error("rank %d ends at once: %s", self.rank, self.broken)
                logging.shutdown()
                os._exit(1)


def _abort_group() -> None:
    with contextlib.suppress(Exception):  # what is broken may say so
        if (group := dist.group.WORLD) is not None:
            group.abort()
