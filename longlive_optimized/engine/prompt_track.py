"""One stream's prompt: which embedding is in force, and the steps of a transition under way."""

from __future__ import annotations

from torch import Tensor

from ..text.blend import lerp, slerp
from .request import BlockRequest


class PromptTrack:
    """Follows the requests of a stream; ``embedding`` is what the next block is told."""

    def __init__(self) -> None:
        self.embedding: Tensor | None = None
        self._wanted: tuple | None = None
        self._path: list[Tensor] = []

    def wants(self, request: BlockRequest) -> bool:
        """Whether the request asks for another prompt than the last one did."""
        return request.identity != self._wanted

    def follow(self, request: BlockRequest, target: Tensor | None) -> bool:
        """Take one block's step towards ``target`` (needed where ``wants``); say whether the embedding changed.

        A transition of n blocks goes in equal steps from the embedding in force and ends on the target; a new prompt in
        its midst starts from where it stands.
        """
        if self.wants(request):
            self._wanted = request.identity
            self._path = self._steps(target, request)
        if not self._path:
            return False
        self.embedding = self._path.pop(0)
        return True

    @property
    def in_transition(self) -> bool:
        """Whether the next block goes a step further."""
        return bool(self._path)

    def _steps(self, target: Tensor, request: BlockRequest) -> list[Tensor]:
        source, n = self.embedding, request.transition_blocks
        if source is None or n == 1:
            return [target]
        mix = slerp if (request.transition_blend or request.blend) == "slerp" else lerp
        first, steps = (0, n - 1) if request.transition_from_source else (1, n)
        return [mix(source, target, i / steps) for i in range(first, steps)] + [target]
