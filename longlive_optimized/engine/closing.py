"""What holds memory and can give it back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self


class Closable:
    """Has a ``close``, which ends with ``_let_go``, and is a context that closes it. Use after that is a RuntimeError:
    nothing is left that a method could work with."""

    closed = False

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        if self.closed:
            raise RuntimeError(self._words)
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _let_go(self, *kept: str) -> None:
        """Forget all attributes but these."""
        held = {name: value for name, value in self.__dict__.items() if name in kept}
        self.__dict__.clear()
        self.__dict__.update(held, closed=True)

    @property
    def _words(self) -> str:
        return f"this {type(self).__name__} is closed: make another one"

    if not TYPE_CHECKING:  # or any attribute would be taken for one that is there

        def __getattr__(self, name: str):
            if self.closed and not name.startswith("__"):
                raise RuntimeError(self._words)
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
