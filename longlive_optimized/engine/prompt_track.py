"""One stream's prompt: which embedding is in force, and the steps of a transition under way."""

from __future__ import annotations

from torch import Tensor

from ..text.blend import lerp, slerp
from .request import BlockRequest


class PromptTrack:
    """Follows the requests of a stream.

    embedding: what the next block is told; shown: what the last one was.
    wanted: the ``identity`` of the last request's prompt.
    ahead: the numbers of the steps that are left of a transition from ``source`` to ``target``, which is the last one;
        ``mix`` is how the two are mixed.
    """

    def __init__(self) -> None:
        self.embedding: Tensor | None = None
        self.shown: Tensor | None = None
        self.wanted: tuple | None = None
        self.source: Tensor | None = None
        self.target: Tensor | None = None
        self.mix = lerp
        self.ahead = range(0)

    def wants(self, request: BlockRequest) -> bool:
        """Whether the request asks for another prompt than the last one did."""
        return request.identity != self.wanted

    def follow(self, request: BlockRequest, target: Tensor | None) -> bool:
        """Take one block's step towards ``target`` (needed where ``wants``); say whether the embedding changed.

        A transition of n blocks goes in equal steps from what is on screen and ends on the target; a new prompt in its
        midst starts from where it stands. A block that fails takes its step again.
        """
        if self.wants(request):
            assert target is not None
            self._begin(request, target)
        if not self.ahead:
            return False
        i, n = self.ahead[0], self.ahead.stop - 1
        if i == n:
            self.embedding = self.target
        else:
            assert self.source is not None and self.target is not None
            self.embedding = self.mix(self.source, self.target, i / n)
        return True

    def block_made(self) -> None:
        """The step has been taken: there is a block of it."""
        self.ahead, self.shown = self.ahead[1:], self.embedding

    @property
    def in_transition(self) -> bool:
        """Whether the next block goes a step further."""
        return bool(self.ahead)

    def _begin(self, request: BlockRequest, target: Tensor) -> None:
        n = 1 if self.shown is None else request.transition_blocks
        first = 0 if n > 1 and request.transition_from_source else 1
        self.ahead = range(first, first + n)
        self.source, self.target, self.wanted = self.shown, target, request.identity
        self.mix = slerp if (request.transition_blend or request.blend) == "slerp" else lerp
