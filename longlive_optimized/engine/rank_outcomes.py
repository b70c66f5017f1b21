"""How the calls that all ranks make end on each of them; rank 0 hears of all and judges."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from .rank_bond import GRACE, Bond, RankError

_WAITED = "it waited for a rank that had failed"


@dataclass
class _Outcome:
    """How one call ended, as rank 0 hears of it: an error's text or None, by rank."""

    by_rank: dict[int, str | None] = field(default_factory=dict)
    judged: bool = False


class Outcomes:
    """Of a rank's calls, which are counted from 1. One that fails on all ranks alike is an error like any other; one
    that fails on some breaks the bond.

    inside: whether a call is under way.
    timeout: seconds that an error waits for rank 0's judgement.
    stops_waiting: whether collectives wait on a device, which does not see that another rank has failed.
    """

    def __init__(self, bond: Bond, timeout: float, stops_waiting: bool):
        self._bond, self._timeout, self._stops_waiting = bond, timeout, stops_waiting
        self.inside = False
        self._begun = 0  # calls
        self._reported = self._erred = 0  # the last call whose outcome is told; the last that failed here
        self._failed: dict[int, tuple[int, str]] = {}  # by call: who failed first, and how
        self._alike: set[int] = set()  # calls that failed on all ranks alike
        self._outcomes: dict[int, _Outcome] = {}  # rank 0's, by call
        self._left: dict[int, int] = {}  # ranks that make no more calls, and how many they have made

    def begin(self) -> None:
        """A call. Raises RankError where none can be made."""
        with self._bond.changed:
            if late := next((each for call, each in self._failed.items() if call <= self._begun), None):
                self._bond.break_here(_reason(*late))
            if self._bond.closed:
                raise RankError(f"rank {self._bond.rank} has closed its ranks")
            self._begun, self.inside = self._begun + 1, True
            self._miss_those_who_left()
            if self._bond.broken is not None:
                self.inside = False
                self._bond.check()

    def succeed(self) -> None:
        """The call has ended well here. Raises RankError where it has not elsewhere: what was made may be worthless."""
        self._report(None)
        self._bond.check()

    def judge(self, error: Exception) -> str | None:
        """The call has failed here. None if it has on all ranks alike, else why they are no longer alike."""
        text, call = self._text_of(error), self._begun
        self._report(text)
        with self._bond.changed:
            known = self._bond.changed.wait_for(lambda: self._bond.broken or call in self._alike, self._timeout)
            if not known:
                self._bond.break_here(_reason(self._bond.rank, text))
            self._alike.discard(call)
            self._failed.pop(call, None)
            return self._bond.broken

    def watch(self) -> None:
        """Raises RankError where the call under way cannot end well."""
        self._bond.check()
        if failed := self._failed.get(self._begun):
            raise RankError(_reason(*failed))

    def leave(self, timeout: float) -> None:
        """Make no more calls, and wait up to so many seconds until the others have made their last."""
        with self._bond.changed:
            self._left[self._bond.rank] = self._begun
            self._tell_who_left()
            self._bond.changed.wait_for(lambda: self._bond.broken or len(self._left) == self._bond.count, timeout)

    def has_left(self, rank: int) -> bool:
        return rank in self._left

    # What follows is called under the bond's ``changed``.

    def hear_outcome(self, rank: int, call: int, text: str | None) -> None:
        """Rank 0 hears how a call ended on a rank."""
        outcome = self._outcomes.setdefault(call, _Outcome())
        outcome.by_rank[rank] = text
        if text is not None and text != _WAITED and call not in self._failed:
            self.hear_failed(call, rank, text)
            self._bond.tell("failed", call=call, rank=rank, error=text)
        if call in self._failed and not outcome.judged:
            self._judge(call, outcome)
        if len(outcome.by_rank) == self._bond.count:
            del self._outcomes[call]

    def hear_failed(self, call: int, rank: int, text: str) -> None:
        """A rank has failed in a call, and is the first."""
        self._failed[call] = rank, text
        if call <= self._reported and call != self._erred:
            self._bond.break_here(_reason(rank, text))
        elif self._stops_waiting:
            threading.Thread(target=self._stop_waiting, args=(call,), daemon=True).start()

    def hear_alike(self, call: int) -> None:
        """A call has failed on all ranks alike."""
        self._alike.add(call)

    def hear_left(self, left: Iterable[tuple[int, int]]) -> None:
        """Ranks have made their last call, after so many."""
        self._left.update(left)
        self._miss_those_who_left()
        if self._bond.rank == 0:
            self._tell_who_left()

    def hear_ended(self, rank: int) -> None:
        """A rank's process has ended, or has closed its side."""
        if rank not in self._left:
            self._bond.break_all(f"rank {rank} has ended: start all {self._bond.count} anew")

    def _tell_who_left(self) -> None:
        self._bond.tell("done", calls=[*self._left.items()])

    def _judge(self, call: int, outcome: _Outcome) -> None:
        if len(set(outcome.by_rank.values())) > 1:
            outcome.judged = True
            self._bond.break_all(_reason(*self._failed[call]))
        elif len(outcome.by_rank) == self._bond.count:
            outcome.judged = True
            self.hear_alike(call)
            self._bond.tell("alike", call=call)
            self._bond.changed.notify_all()

    def _miss_those_who_left(self) -> None:
        """A call is under way that a rank will not make: it has made its last."""
        if left := [rank for rank, calls in self._left.items() if calls < self._begun]:
            if self.inside and not self._bond.closed:
                self._bond.break_all(f"rank {left[0]} has left, rank {self._bond.rank} makes another call")

    def _report(self, text: str | None) -> None:
        """Tell rank 0 how this call ended here."""
        with self._bond.changed:
            call = self._reported = self._begun
            self._erred = call if text is not None else self._erred
            if self._bond.rank == 0:
                self.hear_outcome(0, call, text)
            else:
                self._bond.tell("outcome", call=call, error=text)
            if text is None and call in self._failed:
                self._bond.break_here(_reason(*self._failed[call]))

    def _text_of(self, error: Exception) -> str:
        """Memory never runs out on two ranks alike: not at the same point."""
        if isinstance(error, RankError):
            return _WAITED
        where = f" (rank {self._bond.rank})" if isinstance(error, torch.OutOfMemoryError) else ""
        return f"{type(error).__name__}: {error}{where}"

    def _stop_waiting(self, call: int) -> None:
        """What waits on a device for a rank that has failed is stopped."""
        time.sleep(GRACE)
        if self._reported < call == self._begun:
            self._bond.abort()


def _reason(rank: int, text: str) -> str:
    return f"rank {rank} has failed: {text}; the ranks are no longer alike, start all of them anew"
