"""docs/model.md 10.1: the network, both position variants, prompt switch included."""

import pytest
import torch

from support.networks import VECTOR_GRID, baseline_of, ring_of, vector_network
from support.vectors import check, h

TIMESTEPS = [1000.0, 937.5, 833.3333129882812, 625.0, 0.0]
ROWS = {  # call: mean, rms, first four, last
    False: {
        0: (-0.115986, 0.678458, [-0.72920, 0.22404, 0.16622, -0.60292], -0.12964),
        4: (-0.218956, 0.739888, [-0.09715, -0.66149, -0.32760, -0.34290], -0.20823),
        5: (-0.124214, 0.671906, [-0.13220, -0.53368, -0.44995, -0.22114], -0.47968),
        14: (-0.201117, 0.711303, [-0.54210, -0.91630, 0.45632, -0.27413], 0.15771),
        19: (-0.193734, 0.711370, [-0.04334, -0.19034, -0.63600, -0.11263], 0.43910),
        20: (-0.134386, 0.662489, [-0.97046, 0.16812, -0.34411, -0.25389], 0.32665),
        24: (-0.218081, 0.726888, [-0.39922, -0.73100, -1.03214, -0.33646], -0.42972),
        29: (-0.204379, 0.730606, [-0.11150, -0.21404, -1.60254, -0.38991], 0.17307),
        30: (-0.151896, 0.718844, [0.38014, -0.02850, -1.66523, -0.42559], 0.28405),
    }
}
ROWS[True] = ROWS[False] | {
    20: (-0.135525, 0.662790, [-0.97512, 0.16632, -0.33963, -0.26556], 0.32631),
    24: (-0.218988, 0.727332, [-0.39450, -0.72987, -1.02444, -0.33920], -0.43507),
    29: (-0.205250, 0.731487, [-0.11147, -0.21568, -1.60427, -0.38906], 0.16174),
    30: (-0.153019, 0.719240, [0.36485, -0.04407, -1.65704, -0.42647], 0.28859),
}
# Layer 1's keys of slots 3-11 after the recache, in frame order; the block-relative row is of un-rotated keys.
RECACHED = {
    False: (0.068889, 1.010425, [1.84463, -0.65534, -0.65694, -0.46686], -0.16286),
    True: (0.100605, 1.010441, [-1.95000, -0.16239, -0.77459, 0.22488], -0.16376),
}


def call_input(n: int) -> torch.Tensor:
    return h(1000 + n, 1, 4, 3, 8, 12)[0].transpose(0, 1).contiguous()


class RingNetwork:
    """The package's network driven like the vectors' source."""

    def __init__(self, relative: bool):
        self.model = vector_network()
        self.ring = ring_of(self.model, VECTOR_GRID, relative=relative)

    def prompt(self, embedding: torch.Tensor) -> None:
        self.cross = self.model.cross_cache(embedding)

    def forward(self, x: torch.Tensor, t: float, start: int) -> torch.Tensor:
        self.ring.seek(start, len(x))
        return self.model(x, self.model.modulation(torch.tensor([t], dtype=torch.float64)), self.ring, self.cross)

    def recache(self, x: torch.Tensor, start: int) -> None:
        # The three oldest frames of twelve are dead work (5.1): nine are recomputed.
        self.forward(x[3:], 0.0, start + 3)

    def keys_in_frame_order(self) -> torch.Tensor:
        order = [3 + (f - 3) % 9 for f in range(9, 18)]
        return self.ring.k[1][order].flatten(0, 1)


class Baseline:
    """The baseline driven the same way."""

    def __init__(self, relative: bool):
        self.net = baseline_of(vector_network(), VECTOR_GRID, relative=relative)

    def prompt(self, embedding: torch.Tensor) -> None:
        self.embedding = embedding
        self.net.new_prompt()

    def forward(self, x: torch.Tensor, t: float, start: int) -> torch.Tensor:
        return self.net.forward(x, torch.full((len(x),), t), self.embedding, start)

    def recache(self, x: torch.Tensor, start: int) -> None:
        self.forward(x, 0.0, start)

    def keys_in_frame_order(self) -> torch.Tensor:
        return self.net.caches[1].k[3 * 24 :]


@pytest.mark.parametrize("driver", [RingNetwork, Baseline])
@pytest.mark.parametrize("relative", [False, True], ids=["base", "relative"])
def test_vectors(driver, relative):
    net = driver(relative)
    net.prompt(h(5000, 1, 5, 20)[0])
    for n in range(30):
        block, step = divmod(n, 5)
        out = net.forward(call_input(n), TIMESTEPS[step], 3 * block)
        if n in ROWS[relative]:
            check(out.transpose(0, 1), *ROWS[relative][n])

    net.prompt(h(5001, 1, 7, 20)[0])
    net.recache(torch.cat([call_input(n) for n in (14, 19, 24, 29)]), start=6)
    keys = net.keys_in_frame_order()
    if relative and driver is RingNetwork:
        return_to_slots(net.ring, keys)
    check(keys, *RECACHED[relative])
    net.prompt(h(5001, 1, 7, 20)[0])
    check(net.forward(call_input(30), 1000.0, 18).transpose(0, 1), *ROWS[relative][30])


def return_to_slots(ring, keys: torch.Tensor) -> None:
    """Undo the ring's absolute rotation in place: the block-relative source keeps keys un-rotated."""
    from longlive_optimized.kernels.rotate_sinks import rotate

    inverse_time = ring.rope_time * torch.tensor([1.0, -1.0])
    x = keys.view(9, *ring.k.shape[2:])
    still = torch.tensor([1.0, 0.0]).expand_as(ring.rope_space)
    x.copy_(rotate(x, inverse_time, still))
    no_time = torch.tensor([1.0, 0.0]).expand_as(ring.rope_time)
    x.copy_(rotate(x, no_time, ring.rope_space * torch.tensor([1.0, -1.0])))


def test_checkpoint_has_825_tensors_of_the_published_size():
    from longlive_optimized.model.config import ModelConfig
    from longlive_optimized.model.transformer import Transformer, generator_shapes

    model = Transformer(ModelConfig(), device="meta")
    shapes = generator_shapes(model.config)
    assert len(shapes) == 825
    assert sum(s.numel() for s in shapes.values()) == 1_418_996_800 == sum(p.numel() for p in model.parameters())
    assert shapes["patch_embedding.weight"] == (1536, 16, 1, 2, 2)
    assert shapes["blocks.29.ffn.2.weight"] == (1536, 8960)
