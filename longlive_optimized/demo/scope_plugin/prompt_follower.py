"""Which prompt a call means: scope repeats its parameters with every call, outdated ones too."""

from __future__ import annotations

from .call_params import CallParams, Pairs


class PromptFollower:
    """Compares prompts with the last *incoming* ones: after a transition scope still sends those from before it."""

    def __init__(self) -> None:
        self.wanted: Pairs | None = None  # what to ask the engine for; None while nobody has said
        self._incoming: Pairs | None = None
        self._settled: Pairs | None = None  # what was switched to, or reached by a transition

    def follow(self, call: CallParams) -> bool:
        """Settle which prompt is wanted; whether that is a new one."""
        changed, self._incoming = call.prompts != self._incoming, call.prompts
        if call.transition is not None and call.transition.target_prompts is not None:
            want = call.transition.target_prompts
        elif changed or self._settled is None:
            want = call.prompts
            self._settled = want or self._settled  # at once, not when there is a block of it: that may take tries
        else:
            want = self._settled
        before, self.wanted = self.wanted, want or self.wanted
        return self.wanted != before

    def block_made(self, in_transition: bool) -> None:
        """The prompt asked for has been reached, unless a transition to it is under way."""
        if not in_transition:
            self._settled = self.wanted
