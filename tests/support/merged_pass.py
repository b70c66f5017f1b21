"""What the matrix products would gain from two blocks' passes at once: ``python tests/support/merged_pass.py``.

Milliseconds of all products of 30 layers for 4680 tokens, twice, and for 9360 tokens, in a CUDA graph, random data.
"""

import statistics

import torch
import torch.nn.functional as F

DIM, FFN, LAYERS, REPLAYS = 1536, 8960, 30, 60
SHAPES = ((3 * DIM, DIM), (DIM, DIM), (DIM, DIM), (DIM, DIM), (FFN, DIM), (DIM, FFN))


@torch.no_grad()
def measure(tokens: int) -> float:
    make = {"device": "cuda", "dtype": torch.bfloat16}
    weights = [torch.randn(shape, **make) / shape[1] ** 0.5 for shape in SHAPES]
    biases = [torch.randn(shape[0], **make) for shape in SHAPES]
    inputs = {size: torch.randn(tokens, size, **make) for size in (DIM, FFN)}

    def layer() -> None:
        for weight, bias in zip(weights, biases, strict=True):
            F.linear(inputs[weight.shape[1]], weight, bias)

    layer()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(LAYERS):
            layer()
    times = []
    for _ in range(REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


if __name__ == "__main__":
    print({"4680 tokens, twice": 2 * measure(4680), "9360 tokens": measure(9360)})
