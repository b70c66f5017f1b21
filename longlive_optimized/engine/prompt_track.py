"""One stream's prompt: which embedding is in force, and the steps of a transition under way."""

from __future__ import annotations

from torch import Tensor

from ..text.blend import lerp, slerp
from .request import BlockRequest


class PromptTrack:
    """Follows the requests of a stream; ``embedding`` is what the next block is told."""

    def __init__(self) -> None:
        self.embedding: Tensor | None = None
        self._shown: Tensor | None = None  # of the last block that was made
        self._wanted: tuple | None = None
        self._ahead = range(0)  # the numbers of the steps that are left; the last one is the target

    def wants(self, request: BlockRequest) -> bool:
        """Whether the request asks for another prompt than the last one did."""
        return request.identity != self._wanted

    def follow(self, request: BlockRequest, target: Tensor | None) -> bool:
        """Take one block's step towards ``target`` (needed where ``wants``); say whether the embedding changed.

        A transition of n blocks goes in equal steps from what is on screen and ends on the target; a new prompt in its
        midst starts from where it stands. A block that fails takes its step again.
        """
        if self.wants(request):
            assert target is not None
            self._begin(request, target)
        if not self._ahead:
            return False
        i, n = self._ahead[0], self._ahead.stop - 1
        if i == n:
            self.embedding = self._target
        else:
            assert self._source is not None and self._target is not None
            self.embedding = self._mix(self._source, self._target, i / n)
        return True

    def block_made(self) -> None:
        """The step has been taken: there is a block of it."""
        self._ahead, self._shown = self._ahead[1:], self.embedding

    @property
    def in_transition(self) -> bool:
        """Whether the next block goes a step further."""
        return bool(self._ahead)

    def _begin(self, request: BlockRequest, target: Tensor) -> None:
        n = 1 if self._shown is None else request.transition_blocks
        first = 0 if n > 1 and request.transition_from_source else 1
        self._ahead = range(first, first + n)
        self._source, self._target, self._wanted = self._shown, target, request.identity
        self._mix = slerp if (request.transition_blend or request.blend) == "slerp" else lerp
