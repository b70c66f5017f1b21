"""ring_attention_int8 against softmax in float64: of the integers that it is given, and of what they stand for.

Tokens that are not valid hold NaN, always, and so do scales of which no token is valid.
"""

import heapq
import itertools
import os
import random

import pytest
import torch

from longlive_optimized.kernels import ring_attention as module
from longlive_optimized.kernels.ring_attention import ring_attention, ring_attention_int8
from support import attention_data
from support.attention_data import REAL, by_head, error, error_of_spread, logits_of, softmax_of
from support.attention_data import int8_case as case
from support.graphs import captured

OP = ring_attention_int8
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# Errors of one output relative to the whole: products of integers are exact, so they are ring_attention's.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 4e-6, torch.bfloat16: 1e-2 if INTERPRETED else 5e-3}

CASES = attention_data.CASES | {
    "one token": {"tokens": 1, "slots": 1, "per_slot": 8, "valid": 1},
    "eight tokens": {"tokens": 1, "slots": 1, "per_slot": 8},
    "runs that are no multiple of 4": {"slots": 7},
    "whole tiles of keys": {"valid": 192},
    "a key more than whole tiles": {"valid": 193},
    "more than one tile of queries": {"tokens": 150, "valid": 229},
}
# A float32 score of 100 is off by 4e-6, and its exponential by as much of itself: tolerances are so much larger.
LARGE = {"an outlier": 20, "large logits": 3, "logits beyond any shift": 20}


def truth(q, q_scale, k_ring, k_scale, v_ring, valid):
    """Of the integers."""
    return softmax_of(logits_of(q, q_scale, k_ring, k_scale, valid), v_ring.flatten(0, 1))


def unquantised(q, k, v_ring, valid):
    return attention_data.unquantised(q, k, v_ring.flatten(0, 1), valid)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_matches_float64(run, backend, device, dtype, name):
    if backend == "triton" and dtype == torch.float64:
        pytest.skip("Triton's kernel computes in float32")
    args, _ = case(dtype, device, **CASES[name])
    got, want = run(*args), truth(*args)
    assert got.dtype == dtype and got.is_contiguous() and got.shape == want.shape
    assert error(got, want) <= TOLERANCE[dtype] * (LARGE.get(name, 1) if dtype == torch.float32 else 1)


RECIPES = {
    "even": {},
    "uneven channels, offsets": {"uneven": 0.7, "offset": 3.0},
    "eight large channels": {"large_channels": 10.0},
}
RECIPES_ERROR = 0.028


@pytest.mark.parametrize("recipe", RECIPES)
def test_keeps_the_recipes_error(run, device, recipe):
    """Of what was quantised, at logits of deviation 4."""
    args, (q, k) = case(torch.bfloat16, device, tokens=64, slots=4, per_slot=304, **RECIPES[recipe])
    assert error_of_spread(run(*args), unquantised(q, k, args[4], args[5])) <= 1.2 * RECIPES_ERROR


@pytest.fixture(params=[(8, 0), (8, 9), (9, 0)], ids=str)
def on_generation(request, monkeypatch, device):
    """Triton's, with what a generation has of its own: halves on GeForce, floats by their bits on the A100."""
    pytest.importorskip("triton")
    if device == "cpu" and not INTERPRETED:
        pytest.skip("without a GPU Triton is interpreted or not run")
    monkeypatch.setattr(module, "generation", lambda device: request.param)
    return OP.impls["triton"][0]


@pytest.mark.parametrize(
    "name", ["ragged", "one key of many", "a key more than whole tiles", "a late outlier", "logits beyond any shift"]
)
def test_generations_match_float64(on_generation, device, name):
    args, _ = case(torch.bfloat16, device, **CASES[name])
    assert error(on_generation(*args), truth(*args)) <= TOLERANCE[torch.bfloat16]


@pytest.fixture(params=[True, False], ids=["values in halves", "values as they are"])
def in_pieces(request, monkeypatch, on_generation):
    """Triton's, whose last programs have pieces of tiles; three programs are a wave."""
    tile = module._Tile(128, 64, 8, 3, half=request.param, together=1)
    monkeypatch.setattr(module._Tile, "of", lambda *args, **kwargs: tile)
    monkeypatch.setattr(module, "multiprocessors", lambda device: 3)
    return on_generation


@pytest.mark.parametrize("on_generation", [(9, 0)], indirect=True)
@pytest.mark.parametrize(
    "name",
    ["ragged", "one key of many", "more than one tile of queries", "a late outlier", "logits beyond any shift"],
)
def test_pieces_match_float64(in_pieces, device, name):
    args, _ = case(torch.bfloat16, device, **{"tokens": 150, "heads": 5} | CASES[name])
    got = in_pieces(*args)
    assert error(got, truth(*args)) <= TOLERANCE[torch.bfloat16]
    assert torch.equal(got, in_pieces(*args))


@pytest.mark.parametrize("on_generation", [(9, 0)], indirect=True)
def test_pieces_without_keys_are_zero(in_pieces, device):
    args, _ = case(torch.bfloat16, device, tokens=150, valid=0)
    assert torch.equal(in_pieces(*args), torch.zeros_like(args[0], dtype=torch.bfloat16))


@pytest.mark.parametrize("wave", [1, 7, 108, 128, 132, 170, 264])
def test_pieces_cover_every_tile_and_end_together(wave):
    pytest.importorskip("triton")
    for tiles in (1, 12, 204, 444, 445):
        split = module._Pieces.of(tiles, wave, torch.device("cpu"))
        rest = tiles % wave
        if split is None:
            assert rest == 0 or rest > 0.9 * min(wave, 8 * rest)
            continue
        assert split.whole == tiles - rest and len(split.starts) == rest + 1
        pieces = sorted(split.pieces.tolist(), key=lambda piece: piece[3])
        assert [piece[3] for piece in pieces] == list(range(len(pieces)))
        for tile, (first, last) in enumerate(itertools.pairwise(split.starts.tolist())):
            ends = [0, *(piece[2] for piece in pieces[first:last])]
            assert [(tile, a, b) for a, b in itertools.pairwise(ends)] == [tuple(p[:3]) for p in pieces[first:last]]
            assert ends[-1] == split.parts
        programs = min(wave, 8 * rest)
        busy = [0] * programs
        for _, begin, end, _ in split.pieces.tolist():
            heapq.heapreplace(busy, busy[0] + end - begin)
        assert max(busy) == min(busy) == rest * split.parts // programs


@pytest.mark.parametrize("on_generation", [(8, 9)], indirect=True)
def test_values_beyond_half_precision_show(on_generation, device):
    args, _ = case(torch.bfloat16, device)
    args[4][0, 3, 1, 5] = 1e5
    got = on_generation(*args)
    assert not got[:, 1, 5].isfinite().any()
    got[:, 1, 5] = 0
    assert got.isfinite().all()


@pytest.mark.parametrize("valid", [0, -1, -1000])
def test_without_keys_the_result_is_zero(run, backend, device, valid):
    args, _ = case(torch.bfloat16, device, valid=valid)
    assert torch.equal(run(*args), torch.zeros_like(args[0], dtype=torch.bfloat16))


def test_without_queries_there_is_no_result(run, backend, device):
    (q, q_scale, *rest), _ = case(torch.bfloat16, device)
    assert run(q[:0], q_scale[:, :0].contiguous(), *rest).shape == (0, *q.shape[1:])


@pytest.mark.parametrize("valid", [320, 250])
def test_queries_of_zeros_see_the_mean_of_values(run, backend, device, valid):
    """A scale of 0 makes all scores equal; what is not valid stays unseen."""
    (q, q_scale, *rest), _ = case(torch.float32, device, valid=valid)
    q[2], q_scale[:, 2] = 0, 0
    q_scale[0, 3] = 0  # with integers that are not 0, too
    got, mean = run(q, q_scale, *rest), rest[2].flatten(0, 1)[:valid].mean(0)
    torch.testing.assert_close(got[2], mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got[3, 0], mean[0], rtol=1e-4, atol=1e-5)


def test_keys_of_zeros_have_scores_of_zero(run, backend, device):
    args, _ = case(torch.float32, device)
    *_, k_ring, k_scale, _, _ = args
    k_ring.flatten(0, 1)[::3] = 0
    k_ring.flatten(0, 1)[40:48], k_scale[:, 5] = 0, 0
    k_scale[1, 1] = 0
    assert error(run(*args), truth(*args)) <= 4e-6


def test_the_extremes_of_integers_are_exact(run, backend, device):
    """Sums of up to 128 * 127 * 127, which no half precision holds: two keys a unit apart in one channel."""
    (q, q_scale, k_ring, k_scale, v_ring, valid), _ = case(torch.float32, device, tokens=4)
    q[:], q_scale[:] = 127, 5e-4
    k_ring[:], k_scale[:] = -128, 1.0
    keys = k_ring.flatten(0, 1)
    keys[5], keys[77] = 127, 127
    keys[77, :, 3] = 126
    args = q, q_scale, k_ring, k_scale, v_ring, valid
    assert error(run(*args), truth(*args)) <= 4e-5  # float32 scores of 91; a unit is 6e-3


def test_an_offset_of_keys_changes_nothing(device):
    """What is taken from all keys adds the same to all scores of a query."""
    (q, q_scale, k_ring, _, v_ring, valid), (_, k) = case(torch.float64, device, offset=2.0)
    queries = q.double() * q_scale.double().T[..., None]
    want = unquantised(queries, k, v_ring, valid)
    plain = ring_attention.reference(queries, (k.double() - 3 * k[7].double()).view(k_ring.shape), v_ring, valid)
    torch.testing.assert_close(plain, want, rtol=1e-6, atol=1e-7)


BAD = {
    "q": [
        (lambda a: (a[0][0], *a[1:]), r"\[any, any, any\]"),
        (lambda a: (a[0].bfloat16(), *a[1:]), "int8"),
        (lambda a: (a[0].transpose(0, 1).contiguous().transpose(0, 1), *a[1:]), "contiguous"),
    ],
    "q_scale": [
        (lambda a: (a[0], a[1].T.contiguous(), *a[2:]), r"\[2, 7\]"),
        (lambda a: (a[0], a[1].bfloat16(), *a[2:]), "float32"),
        (lambda a: (a[0], a[1].T.contiguous().T, *a[2:]), "contiguous"),
    ],
    "k_ring": [
        (lambda a: (*a[:2], a[2][..., :64], *a[3:]), r"\[any, any, 2, 128\]"),
        (lambda a: (*a[:2], a[2].float(), *a[3:]), "int8"),
        (lambda a: (*a[:2], a[2][:, ::2], *a[3:]), "contiguous"),
        (lambda a: (*a[:2], a[2][:0], a[3][:, :0], a[4][:0], *a[5:]), "not be empty"),
        (lambda a: (*a[:2], a[2][:, :4].contiguous(), a[3], a[4][:, :4].contiguous(), a[5]), "multiple of 8 tokens"),
    ],
    "k_scale": [
        (lambda a: (*a[:3], a[3][:, :-1].contiguous(), *a[4:]), "at least 40 scales a head, got 39"),
        (lambda a: (*a[:3], a[3][:1], *a[4:]), r"\[2, any\]"),
        (lambda a: (*a[:3], a[3].double(), *a[4:]), "float32"),
        (lambda a: (*a[:3], a[3].T.contiguous().T, *a[4:]), "contiguous"),
    ],
    "v_ring": [
        (lambda a: (*a[:4], a[4][:2], a[5]), r"\[8, 40, 2, 128\]"),
        (lambda a: (*a[:4], a[4].half(), a[5]), "bfloat16"),
    ],
    "valid": [
        (lambda a: (*a[:5], a[5].long()), "int32"),
        (lambda a: (*a[:5], a[5].repeat(2)), r"\[1\]"),
        (lambda a: (*a[:5], a[5].to("meta")), "on c"),
    ],
}


@pytest.mark.parametrize(("name", "spoil", "text"), [(name, *bad) for name, all_of in BAD.items() for bad in all_of])
def test_bad_input_is_named(backend, device, name, spoil, text):
    args = spoil(case(torch.bfloat16, device)[0])
    with pytest.raises(ValueError, match=rf"^{name} must .*{text}"):
        OP.impls[backend][0](*args)


def test_registered_properly(device):
    torch.library.opcheck(OP.torch_op, case(torch.float32, device, tokens=9)[0])


def test_compiles_to_one_graph(device):
    args, _ = case(torch.float32, device)
    compiled = torch.compile(lambda *a: OP(*a) + 1, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args), OP(*args) + 1)


# ----------------------------------------------------------------------------------------------------------------------
# On a GPU alone. Rings are made to measure: a multiple of 8 tokens, and any of them valid.


def draw(rng, device):
    tokens, heads = rng.choice([rng.randint(1, 400), rng.randint(1, 3000)]), rng.randint(1, 4)
    size = 8 * rng.choice([rng.randint(1, 50), rng.randint(1, 750)])
    valid = rng.choice([0, 1, size, size + 1, *(rng.randint(0, size) for _ in range(4))])
    shape = {"tokens": tokens, "slots": 1, "per_slot": size, "heads": heads, "valid": valid, "spare": -size // 8 % 4}
    return case(torch.bfloat16, device, **shape, spread=rng.choice([1.0, 4.0, 30.0, 300.0]))[0]


@pytest.fixture
def triton(device):
    """Triton's kernel alone."""
    if "triton" not in OP.impls:
        pytest.skip("no Triton")
    return OP.impls["triton"][0]


@pytest.fixture(params=["kernel", "triton"])
def on_gpu(request):
    """The operator on CUDA, and on Triton."""
    return request.getfixturevalue(request.param)


@pytest.mark.gpu
@pytest.mark.parametrize("part", range(3))
def test_random_shapes(on_gpu, device, part):
    rng = random.Random(part)
    for i in range(100):
        args = draw(rng, device)
        got, want = on_gpu(*args), truth(*args)
        shapes = [list(x.shape) for x in args[:3]], args[5].tolist()
        assert torch.isfinite(got).all(), (i, shapes)
        assert (got.double() - want).norm() <= 5e-3 * want.norm(), (i, shapes)


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", REAL)
def test_real_sizes(kernel, device, name, recipe):
    """Against the integers, and within the recipes' error of what they stand for; the same bits every time."""
    args, (q, k) = case(torch.bfloat16, device, **REAL[name], **RECIPES[recipe])
    got = kernel(*args)
    assert error(got, by_head(truth, args, (1, 0, 2, 0, 2, None))) <= 5e-3
    assert error_of_spread(got, by_head(unquantised, (q, k, *args[4:]), (1, 1, 2, None))) <= 1.2 * RECIPES_ERROR
    assert all(torch.equal(kernel(*args), got) for _ in range(10))


@pytest.mark.gpu
def test_one_graph_serves_every_number_of_keys(kernel, device):
    args, _ = case(torch.bfloat16, device, tokens=1000, slots=12, per_slot=304, heads=3)
    *_, valid = args
    graph, out = captured(kernel, *args)
    for keys in (304, 3648, 1, 1000, 192, 193, 5000):
        valid.fill_(keys)
        graph.replay()
        assert torch.equal(out, kernel(*args))
        assert error(out, truth(*args)) <= 5e-3


# ----------------------------------------------------------------------------------------------------------------------
# Of Triton's kernel


IN_TRITON = [(name, "uneven channels, offsets") for name in ("a young stream", "small picture", "odd window")]
IN_TRITON += [("odd picture", recipe) for recipe in RECIPES]


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "recipe"), IN_TRITON)
def test_real_sizes_in_triton(on_generation, device, name, recipe):
    args, (q, k) = case(torch.bfloat16, device, **REAL[name], **RECIPES[recipe])
    got = on_generation(*args)
    assert error(got, by_head(truth, args, (1, 0, 2, 0, 2, None))) <= 5e-3
    assert error_of_spread(got, by_head(unquantised, (q, k, args[4], args[5]), (1, 1, 2, None))) <= 1.2 * RECIPES_ERROR
    for _ in range(5):
        assert torch.equal(on_generation(*args), got)


@pytest.mark.gpu
def test_one_graph_serves_every_number_of_keys_in_triton(on_generation, device):
    args, _ = case(torch.bfloat16, device, tokens=1000, slots=12, per_slot=304, heads=3)
    *_, valid = args
    graph, out = captured(on_generation, *args)
    for keys in (304, 3648, 1, 0, 1000, 64, 65, 5000):
        valid.fill_(keys)
        graph.replay()
        assert torch.equal(out, on_generation(*args))
        if keys:
            assert error(out, truth(*args)) <= 5e-3
