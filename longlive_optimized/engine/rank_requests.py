"""Rank 0's calls on their way to the ranks that follow it, which know its streams by numbers."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from .rank_bond import Bond
from .rank_calls import Call, packed, unpacked
from .rank_link import Message

if TYPE_CHECKING:
    from .stream import Stream


class Requests:
    """On rank 0 the calls that it sends, on one that follows those that have come.

    streams: of one that follows, by number; rank 0 itself holds none of its own.
    """

    def __init__(self, bond: Bond):
        self._bond = bond
        self.streams: dict[int, Stream] = {}
        self._opened = 0
        self._numbers: weakref.WeakKeyDictionary[Stream, int] = weakref.WeakKeyDictionary()
        self._gone: list[int] = []  # streams that rank 0 has forgotten since its last request
        self._came: deque[tuple[Message, Sequence[Tensor]]] = deque()

    def enroll(self, stream: Stream) -> None:
        """A stream has been opened, on all ranks as the same one in order."""
        number = self._numbers[stream] = self._opened
        self._opened += 1
        if self._bond.rank:
            self.streams[number] = stream
        else:
            weakref.finalize(stream, self._gone.append, number)

    def sender(self, call: Call) -> Callable[[], None]:
        """Sends a call to those that follow. Raises TypeError, at once, where an argument cannot travel."""
        tensors: list[Tensor] = []
        number = self._numbers.get(call.of)  # pyright: ignore[reportArgumentType, reportCallIssue]
        sent = packed([call.name, number, call.args, call.kwargs], tensors, self._numbers)

        def send() -> None:
            gone = [self._gone.pop() for _ in range(len(self._gone))]
            self._bond.tell("call", tensors, call=sent, gone=gone)

        return send

    def hear(self, message: Message, tensors: Sequence[Tensor]) -> None:
        """One that follows hears a call; under the bond's ``changed``."""
        self._came.append((message, tensors))

    def next(self, is_over: Callable[[], bool]) -> Call | None:
        """The next call that has come, ``of`` a stream or None for the engine; None where there will be none. Raises
        RankError where the bond breaks first."""
        with self._bond.changed:
            self._bond.changed.wait_for(lambda: self._came or self._bond.broken or is_over())
            if not self._came:
                self._bond.check()
                return None
            message, tensors = self._came.popleft()
        for number in message["gone"]:
            self.streams.pop(number, None)
        name, number, args, kwargs = unpacked(message["call"], tensors, self.streams)
        return Call(name, None if number is None else self.streams[number], args, kwargs)
