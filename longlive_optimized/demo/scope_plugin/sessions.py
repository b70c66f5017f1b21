"""Which session a call belongs to: scope runs each in a thread of its own, and names it in no other way."""

from __future__ import annotations

import logging
import threading
import time
import traceback
import weakref
from collections.abc import Callable

from .backoff import Backoff
from .notify import notify_error
from .session import Session

log = logging.getLogger(__name__)


class Sessions:
    """At most ``limit`` sessions, each bound to the thread that called first; a dead thread's is used again."""

    def __init__(self, new_session: Callable[[], Session], limit: int):
        self._new_session, self._limit = new_session, limit
        self._busy: dict[threading.Thread, Session] = {}
        self._idle: list[Session] = []
        self._refused: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._backoff, self._lock = Backoff(), threading.Lock()

    def current(self) -> Session | None:
        """The session that the calling thread has, if any."""
        return self._busy.get(threading.current_thread())

    def alone(self) -> bool:
        """Whether at most one session is being served."""
        with self._lock:
            return sum(thread.is_alive() for thread in self._busy) <= 1

    def enter(self) -> Session | None:
        """The calling thread's session, given to it if need be; None, told to the clients once, if there is no room."""
        if (session := self.current()) is not None:
            return session
        with self._lock:
            self._collect()
            if not self._idle and len(self._busy) >= self._limit:
                self._refuse(f"all {self._limit} sessions of this pipeline are taken (max_sessions): this one waits")
                return None
            if not self._idle and self._backoff.waiting(time.monotonic()):
                return None
            try:
                if self._idle:
                    session = self._idle.pop()
                    session.begin()
                else:
                    session = self._new_session()
            except Exception as error:  # out of GPU memory, say
                if self._backoff.failed(time.monotonic(), type(error).__name__):
                    log.error("a session could not be opened:\n%s", "".join(traceback.format_exception(error)))
                self._refuse(f"no room for another session, it waits: {type(error).__name__}: {error}")
                return None
            self._backoff.clear()
            self._busy[threading.current_thread()] = session
            return session

    def free_idle(self) -> None:
        """Drop the sessions that nobody uses, and with them their memory."""
        with self._lock:
            self._collect()
            self._idle.clear()

    def _collect(self) -> None:
        for thread in [thread for thread in self._busy if not thread.is_alive()]:
            self._idle.append(self._busy.pop(thread))

    def _refuse(self, why: str) -> None:
        thread = threading.current_thread()
        if thread not in self._refused:
            self._refused.add(thread)
            notify_error(why)
