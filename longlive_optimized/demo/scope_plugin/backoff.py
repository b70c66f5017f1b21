"""What to do after a failure: wait, longer each time, instead of scope's immediate repetition."""

from __future__ import annotations

FIRST, LONGEST = 0.25, 8.0  # seconds


class Backoff:
    """Times are seconds of one clock, given by the caller.

    failures: those since all was well.
    """

    def __init__(self) -> None:
        self._told: set[str] = set()
        self.clear()

    def clear(self) -> bool:
        """All is well; whether it was not before."""
        recovered, self._told = bool(self._told), set()
        self._delay, self._until, self.failures = FIRST, float("-inf"), 0
        return recovered

    def waiting(self, now: float) -> bool:
        """Whether it is too early for another try."""
        return now < self._until

    def failed(self, now: float, what: str) -> bool:
        """Note a failure; True if this error has not been reported since the last success."""
        self._until, self._delay = now + self._delay, min(2 * self._delay, LONGEST)
        self.failures += 1
        news = what not in self._told
        self._told.add(what)
        return news
