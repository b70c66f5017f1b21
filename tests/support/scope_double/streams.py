"""What the engine behind a double of scope makes by itself."""

import torch

from longlive_optimized import BlockRequest, LongLiveEngine


def engine_of(scope) -> LongLiveEngine:
    return scope.manager.pipeline._engine


def expected(scope, *requests: BlockRequest) -> list[torch.Tensor]:
    """What the engine makes of the requests in a stream of its own."""
    stream = engine_of(scope).open_stream()
    return [engine_of(scope).generate_block(request, stream) for request in requests]
