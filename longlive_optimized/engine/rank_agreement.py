"""What must be equal on all ranks: each says it at the same points of its calls, and rank 0 compares."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from .rank_bond import Bond
from .rank_calls import Call, packed


class Agreement:
    """Of ranks that must be started alike, and call alike. Where they are not, the bond breaks, soon, with what
    differs."""

    def __init__(self, bond: Bond):
        self._bond = bond
        self._points = 0  # at which this rank has said something
        self._said: dict[int, dict[int, Mapping[str, str]]] = {}  # rank 0's, by point and rank

    def say(self, value: Mapping[str, Any]) -> None:
        """What must be equal at this point, by names."""
        said = {name: repr(one) for name, one in value.items()}
        with self._bond.changed:
            self._points += 1
            if self._bond.rank:
                self._bond.tell("said", point=self._points, said=said)
            else:
                self.hear(0, self._points, said)

    def say_call(self, call: Call) -> None:
        """A call and its arguments, but for what tensors hold."""
        with contextlib.suppress(TypeError):  # for what the call itself will raise an error, on all ranks
            arguments = packed([call.args, call.kwargs], [], _AnyStream())
            self.say({"call": call.name, f"arguments of {call.name}": arguments})

    def hear(self, rank: int, point: int, said: Mapping[str, str]) -> None:
        """Rank 0 hears what a rank has said; under the bond's ``changed``."""
        by_rank = self._said.setdefault(point, {})
        by_rank[rank] = said
        first = by_rank.get(0, {})
        for other, its in by_rank.items() if first else ():
            if differs := [name for name in {*first, *its} if first.get(name) != its.get(name)]:
                names = ", ".join(differs)
                wanted = "all must be started alike, and call alike"
                self._bond.break_all(f"rank {other} differs from rank 0 in {names}: {wanted}")
        if len(by_rank) == self._bond.count:
            del self._said[point]


class _AnyStream(dict[Any, int]):
    """Streams have numbers only where rank 0 leads: here all have the same."""

    def __missing__(self, stream: Any) -> int:
        return 0
