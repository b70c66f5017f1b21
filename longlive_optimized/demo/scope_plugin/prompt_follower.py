"""Which prompt a call means: scope repeats its parameters with every call, outdated ones too."""

from __future__ import annotations

from .call_params import CallParams, Pairs


class PromptFollower:
    """Keeps to the last wish: ``prompts`` or a ``transition`` count when they change or are sent again."""

    def __init__(self) -> None:
        self.wanted: Pairs | None = None  # what to ask the engine for; None while nobody has said
        self._last = CallParams()
        self._under_way = False  # a transition, from the call that brought it until there is a block of its target
        self._repeats_objects = False  # scope does: another, equal object is then one that was sent again

    def follow(self, call: CallParams) -> bool:
        """Settle which prompt is wanted; whether that is a new one."""
        last, self._last = self._last, call
        other = {name: call.sent[name] is not last.sent.get(name) for name in call.sent}
        self._repeats_objects |= call.prompts is not None and not other["prompts"]
        # Whatever scope does with objects: it drops a transition under way only when prompts are sent.
        dropped = self._under_way and call.transition is None
        want, target = None, call.transition.target_prompts if call.transition else None
        if target is not None and (
            call.transition != last.transition or (self._repeats_objects and other["transition"])
        ):
            want, self._under_way = target, True
        elif call.prompts != last.prompts or ((self._repeats_objects or dropped) and other["prompts"]):
            want, self._under_way = call.prompts, False
        before, self.wanted = self.wanted, want or self.wanted
        return self.wanted != before

    def block_made(self, in_transition: bool) -> None:
        """There is a block of the prompt that is wanted, or of a step on the way to it."""
        self._under_way &= in_transition
