"""What a session of the double shows, and what the engine behind it makes by itself."""

import torch

from longlive_optimized import BlockRequest, LongLiveEngine

# With the VAE that decodes soonest: what is tested is who is told what, and which blocks are made.
LOAD = {"model_path": "tiny", "height": 32, "width": 48, "show_messages": False, "vae_type": "tae"}
FOX, BOAT = [{"text": "a fox", "weight": 1.0}], [{"text": "a boat", "weight": 1.0}]


def run(session, calls: int, **changes) -> list[torch.Tensor]:
    """The video of so many calls, after sending ``changes`` if there are any."""
    if changes:
        session.send(changes)
    return [session.step().result["video"] for _ in range(calls)]


def told(scope, kind: str) -> list[dict]:
    """The notifications of a kind so far."""
    return [message for message in scope.notifications if message["type"] == kind]


def session_of(scope, session):
    """The plugin's own, behind one of the double."""
    return scope.manager.pipeline._sessions._busy[session._thread]


def engine_of(scope) -> LongLiveEngine:
    return scope.manager.pipeline._engine


def expected(scope, *requests: BlockRequest) -> list[torch.Tensor]:
    """What the engine makes of the requests in a stream of its own."""
    stream = engine_of(scope).open_stream()
    return [engine_of(scope).generate_block(request, stream) for request in requests]


def covered(frames: torch.Tensor, plain: torch.Tensor) -> list[int]:
    """The rows of the first frame that differ."""
    return (frames[0] != plain[0]).any(-1).any(-1).nonzero().flatten().tolist()
