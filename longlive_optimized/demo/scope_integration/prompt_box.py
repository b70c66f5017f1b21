"""Where prompts come in, from any thread: the last one wins, and bursts are held back."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Literal, NamedTuple

from ...engine.request import BlockRequest


class Prompt(NamedTuple):
    """What to show, and how to get there; the fields are BlockRequest's."""

    prompt: str | Sequence[tuple[str, float]]
    blend: Literal["linear", "slerp"] = "linear"
    transition_blocks: int | None = None  # None leaves it to the config


class Wish(NamedTuple):
    """A prompt that is wanted, and when it was asked for (seconds)."""

    prompt: Prompt
    asked_at: float


class PromptBox:
    """Two ways in: ``switch`` and the argument of ``follow``, which counts only when it changes."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal's handler may ask while its own thread does
        self._argument: Prompt | None = None
        self._current: Prompt | None = None
        self._wish: Wish | None = None
        self._last_change = float("-inf")
        self._burst = False

    def switch(self, prompt: Prompt, now: float, debounce: float) -> None:
        """Ask for ``prompt`` from the next block on."""
        with self._lock:
            self._ask(prompt, now, debounce)

    def follow(self, argument: Prompt, now: float, debounce: float) -> bool:
        """Ask for ``argument`` if it differs from the last one, and say so: repeating an old prompt does not undo a
        switch, at another pace neither."""
        with self._lock:
            what = argument._replace(transition_blocks=None)
            if what == self._argument:
                return False
            self._argument = what
            self._ask(argument, now, debounce)
            return True

    @property
    def wished(self) -> Prompt | None:
        """What was asked for last, in force or not yet; None where nothing was."""
        with self._lock:
            return self._wish.prompt if self._wish else self._current

    def take(self, now: float, debounce: float) -> tuple[Prompt, Wish | None]:
        """The prompt of the block that begins now, and the wish that it fulfils, if any. RuntimeError without any."""
        with self._lock:
            wish = self._wish
            held = self._burst and now - self._last_change < debounce
            if self._current is not None and (wish is None or held):
                return self._current, None
            if wish is None:
                raise RuntimeError("there is no prompt yet: give one to generate_frame or switch_prompt")
            self._wish, self._burst = None, False
            changed = wish.prompt != self._current
            self._current = wish.prompt
            return wish.prompt, wish if changed else None

    def give_back(self, wish: Wish) -> None:
        """The block that was to fulfil ``wish`` has failed: it stands again, unless there is a newer one."""
        with self._lock:
            self._current, self._wish = None, self._wish or wish

    def play(self, prompt: Prompt) -> None:
        """The next block is of ``prompt``, which is no wish: what was asked for before is forgotten."""
        with self._lock:
            self._current, self._wish, self._burst = prompt, None, False

    @property
    def current(self) -> Prompt | None:
        """The prompt of the block that was begun last; None before the first, and after one that failed."""
        with self._lock:
            return self._current

    def hold_nothing_back(self) -> None:
        """The next block is of the last prompt that was asked for, even within a burst."""
        with self._lock:
            self._last_change, self._burst = float("-inf"), False

    def _ask(self, prompt: Prompt, now: float, debounce: float) -> None:
        if prompt == (self._wish.prompt if self._wish else self._current):
            return  # asking again is neither a change nor part of a burst
        self._burst = now - self._last_change < debounce
        self._last_change = now
        self._wish = Wish(prompt, now)


def as_prompt(prompt: str | Sequence[tuple[str, float]], **how) -> Prompt:
    """Check a prompt as BlockRequest does, and its ``blend`` and ``transition_blocks`` if given."""
    given = {name: value for name, value in how.items() if (name, value) != ("transition_blocks", None)}
    request = BlockRequest(prompt, **given)
    return Prompt(request.prompt, request.blend, request.transition_blocks if "transition_blocks" in given else None)
