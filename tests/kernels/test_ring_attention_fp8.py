"""ring_attention_fp8 against softmax in float64: of the numbers that it is given, and of what they stand for.

What is not valid holds NaN, always: values, and the scales of keys of which no token is valid.
"""

import math
import random

import pytest
import torch
import torch.nn.functional as F

from longlive_optimized.kernels.ring_attention_fp8 import ring_attention_fp8 as OP
from support import attention_data
from support.attention_data import REAL, by_head, error_of_spread, int8_case, logits_of, softmax_of, unquantised
from support.emulated import run_on_a_cpu
from support.graphs import captured

ORDER = [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15]  # of a group's tokens
NAN = 0x7F
POISON = 0x7F


def number(code):
    """An e4m3 number: 1 bit of sign, 4 of exponent, 3 of mantissa."""
    exponent, mantissa = code >> 3 & 15, code & 7
    if code & 0x7F == NAN:
        return float("nan")
    size = (8 + mantissa) * 2.0 ** (exponent - 10) if exponent else mantissa * 2.0**-9
    return -size if code & 0x80 else size


NUMBERS = [number(code) for code in range(256)]

# Of p, the kernel's share of its error. Rounding a code to a whole one is off by at most half a step of 2^(1/8), and a
# mantissa is up to 1.0607 times what its bits say as a logarithm: [0.9576, 1.1077], of which a sum of p takes the
# middle, leaving 7.55 %. The largest p so far of a row is at code 78 or above; what is below code 8 is lost in part,
# by at most 2^-7 where the largest is 2^(78 / 8 - 7). The reference's p is float32's, of logits of up to 1500.
OF_P = {"reference": (1e-3, 0.0), "cuda": (0.0755, 2**-9.7)}
# Bits below the largest product where the tensor core cuts others off: a p that is smaller adds to the sum of p alone.
# It shows where the values' offset, which comes back last, all but cancels the rest.
CUT_OFF = {"reference": math.inf, "cuda": 13}
ROUNDING = 2**-8 * 1.01  # of the result to bfloat16
SPLIT_FROM = 3072  # tokens, from which on several CTAs take keys of the same rows, each with a shift of its own


def encode(x):
    """Float32 numbers as codes; NaN as NaN."""
    return x.to(torch.float8_e4m3fn).view(torch.uint8) & torch.where(x.isnan(), 0x7F, 0xFF).byte()


def ring_of(codes, places):
    """codes [tokens, H, hd] as a ring of values [H, hd, places]."""
    x = F.pad(codes.permute(1, 2, 0), (0, places - len(codes)), value=POISON).unflatten(-1, (-1, 16))
    return x[..., ORDER].flatten(-2).contiguous().view(torch.float8_e4m3fn)


def values_of(v_ring, v_scale, v_offset):
    """[places, H, hd], in float64."""
    numbers = torch.tensor(NUMBERS, dtype=torch.float64, device=v_ring.device)[v_ring.view(torch.uint8).long()]
    tokens = torch.empty_like(numbers).unflatten(-1, (-1, 16))
    tokens[..., ORDER] = numbers.unflatten(-1, (-1, 16))
    values = v_offset.double()[..., None] + v_scale.double()[..., None] * tokens.flatten(-2)
    return values.permute(2, 0, 1)


def case(device, value_uneven=0.0, value_offset=0.0, spare_places=0, **shape):
    """The operator's arguments, and the queries, keys and values [.., H, hd] that they stand for.

    Channels of values of e^value_uneven times the usual size, one way or the other, with a mean of ``value_offset``
    deviations: it becomes their offset, and 28 the largest number beside it.
    """
    (q, q_scale, k_ring, k_scale, v, valid), (plain_q, plain_k) = int8_case(torch.float32, device, **shape)
    v = v.flatten(0, 1)
    keys = min(max(int(valid), 0), len(v))
    v = (v + value_offset * torch.randn_like(v[0])) * (value_uneven * torch.randn_like(v[0])).exp()
    seen = v[: max(keys, 1)].nan_to_num()
    v_offset = seen.mean(0)
    v_scale = (seen - v_offset).abs().amax(0) / 28
    v_scale[v_scale == 0] = 1
    v_ring = ring_of(encode((v - v_offset) / v_scale), -len(v) // 16 * -16 + spare_places)
    args = q, q_scale, k_ring, k_scale, v_ring, v_scale, v_offset, valid
    return args, (plain_q, plain_k, v)


def truth(q, q_scale, k_ring, k_scale, v_ring, v_scale, v_offset, valid):
    """Of the integers and e4m3 numbers."""
    return softmax_of(logits_of(q, q_scale, k_ring, k_scale, valid), values_of(v_ring, v_scale, v_offset))


def check(got, args, backend):
    """Every result, against what p may be off by at most: sum(p e (v - result)) / sum(p (1 + e)).

    Cauchy and Schwarz bound the numerator. Of many results, the mean error too.
    """
    q, q_scale, k_ring, k_scale, *values, valid = args
    assert got.dtype == torch.bfloat16 and got.is_contiguous() and got.shape == q.shape
    logits = logits_of(q, q_scale, k_ring, k_scale, valid)
    v = values_of(*values)[: logits.shape[-1]]
    want, p = softmax_of(logits, v), logits.softmax(-1)
    if not len(v):
        assert not got.any()
        return
    of_p, lost = OF_P[backend]
    off = of_p * p + p.clamp(max=p.amax(-1, keepdim=True) * lost)
    left = 1 - off.sum(-1).T[..., None]  # of sum(p (1 + e)); what is lost of p may be nearly all
    bound = (off.sum(-1).T[..., None] * spread_of(off, v, want)).sqrt() / left
    cut_off = 2.0 ** -CUT_OFF[backend]
    cut = torch.where(p < 2 * cut_off * p.amax(-1, keepdim=True), p, cut_off * p)
    cut = torch.einsum("hnm,mhd->nhd", cut, (v - values[2].double()).abs())
    wrong = (got.double() - want).abs() > (bound + cut + ROUNDING * want.abs() + 1e-5).where(left > 0, torch.inf)
    assert not wrong.any(), f"{int(wrong.sum())} of {wrong.numel()}, the first at {wrong.nonzero()[0].tolist()}"
    if backend == "cuda" and k_ring.shape[0] * k_ring.shape[1] < SPLIT_FROM:
        # But for a code that float32 rounds to the other side.
        off = (got.double() - softmax_of(rounded(logits), v)).norm(dim=-1)
        of_spread = spread_of(p.square(), v, want).sum(-1).sqrt()
        wrong = off > 0.03 * of_spread + ROUNDING * want.norm(dim=-1) + 1e-5
        assert wrong.sum() <= 2 + 0.02 * wrong.numel(), f"{int(wrong.sum())} of {wrong.numel()} rows, as a model"


def spread_of(weights, v, centre):
    """sum_j weights[h, n, j] (v[j, h, d] - centre[n, h, d])^2, as [n, h, d]."""
    first, second = (torch.einsum("hnm,mhd->nhd", weights, x) for x in (v, v.square()))
    total = weights.sum(-1).T[..., None]
    return (second - 2 * centre * first + centre.square() * total).clamp(min=0)


def rounded(logits):
    """Logarithms of p as the kernel rounds it: a whole number of eighths of a binade as the bits of an e4m3 number.

    It takes 64 keys at a time; a shift puts the largest of the first ones, and of later ones that exceed 126, at 111
    to 118.
    """
    numbers = torch.tensor(NUMBERS, dtype=torch.float64, device=logits.device)
    parts = (logits * (8 / math.log(2))).split(64, dim=-1)
    shift = ((parts[0].amax(-1, keepdim=True) - 118) / 8).ceil() * 8
    result = []
    for part in parts:
        largest = part.amax(-1, keepdim=True)
        shift = shift.where(largest - shift <= 126, ((largest - 118) / 8).ceil() * 8)
        codes = (part - shift).round().clamp(min=0).long()
        result.append(numbers[codes].log() + shift * (math.log(2) / 8))
    return torch.cat(result, dim=-1)


CASES = attention_data.CASES | {
    "one token": {"tokens": 1, "slots": 1, "per_slot": 8, "valid": 1, "spare": 3},
    "eight tokens": {"tokens": 1, "slots": 1, "per_slot": 8, "spare": 3},
    "half a group": {"slots": 1, "per_slot": 24, "spare": 1},
    "an odd number of scales": {"slots": 7, "spare": 1},
    "places to spare": {"spare_places": 48},
    "whole tiles of keys": {"valid": 256},
    "a key more than whole tiles": {"valid": 257},
    "a key less than whole tiles": {"valid": 255},
    "more than one tile of queries": {"tokens": 200, "valid": 229},
    "offsets of values": {"value_offset": 30.0},
    "uneven values": {"value_uneven": 2.0},
    "one head": {"heads": 1},
}


@pytest.mark.parametrize("name", CASES)
def test_matches_float64(run, backend, device, name):
    args, _ = case(device, **CASES[name])
    check(run(*args), args, backend)


RECIPES = {
    "even": {},
    "uneven channels": {"uneven": 0.7, "value_uneven": 0.7},
    "eight large channels": {"large_channels": 10.0},
    "offsets": {"uneven": 0.7, "offset": 3.0, "value_offset": 3.0},
}
# Of the spread of results, at logits of deviation 4: integers 2.2 to 2.9 %, values 2.7 %, p 2.2 %. The project's bound
# is 5 %; of few queries it is less certain.
RECIPES_ERROR = 0.05
RECIPES_ERROR_OF_FEW = {"reference": 0.042, "cuda": 0.055}


@pytest.mark.parametrize("recipe", RECIPES)
def test_keeps_the_recipes_error(run, backend, device, recipe):
    """Of what was quantised, at logits of deviation 4."""
    args, plain = case(device, tokens=64, slots=4, per_slot=304, **RECIPES[recipe])
    assert error_of_spread(run(*args), unquantised(*plain, args[-1])) <= RECIPES_ERROR_OF_FEW[backend]


@pytest.mark.parametrize("valid", [0, -1, -1000])
def test_without_keys_the_result_is_zero(run, backend, device, valid):
    args, _ = case(device, valid=valid, value_offset=3.0)
    assert torch.equal(run(*args), torch.zeros_like(args[0], dtype=torch.bfloat16))


def test_without_queries_there_is_no_result(run, backend, device):
    (q, q_scale, *rest), _ = case(device)
    assert run(q[:0], q_scale[:, :0].contiguous(), *rest).shape == (0, *q.shape[1:])


def with_values(args, codes, scale, offset):
    """The arguments with every valid token's value of these codes [tokens, H, hd]."""
    *rest, v_ring, v_scale, _, valid = args
    codes = codes.expand(rest[2].shape[0] * rest[2].shape[1], *v_scale.shape).clone()
    codes[int(valid) :] = POISON
    full = (torch.full_like(v_scale, x) if isinstance(x, float) else x for x in (scale, offset))
    return *rest, ring_of(codes, v_ring.shape[2]), *full, valid


@pytest.mark.parametrize("valid", [320, 250])
def test_an_offset_comes_back_exactly(run, backend, device, valid):
    """Beside values of zero, and beside any that are nothing to it."""
    args, _ = case(device, valid=valid, tokens=70)
    offset = (1000 * torch.randn_like(args[6])).bfloat16()
    zeros = with_values(args, torch.tensor(0, dtype=torch.uint8, device=device), 3.0, offset.float())
    assert torch.equal(run(*zeros), offset.expand(70, -1, -1))
    *rest, v_ring, v_scale, _, count = args
    small = *rest, v_ring, torch.full_like(v_scale, 1e-9), offset.float(), count
    assert torch.equal(run(*small), offset.expand(70, -1, -1))


@pytest.mark.parametrize("code", [0x01, 0x07, 0x08, 0x38, 0x7E, 0xB9, 0xFE])
def test_a_value_that_all_tokens_share_comes_back(run, backend, device, code):
    """Whatever p is; the smallest and the largest numbers too. Sums of one sign lose what the tensor core cuts off."""
    args, _ = case(device, valid=250, tokens=70)
    args = with_values(args, torch.tensor(code, dtype=torch.uint8, device=device), 0.5, 0.0)
    want = torch.full(args[0].shape, NUMBERS[code] / 2, device=device)
    torch.testing.assert_close(run(*args).float(), want, rtol=15e-3, atol=0)


@pytest.mark.parametrize("token", [0, 1, 7, 8, 9, 15, 16, 63, 64, 127, 128, 191, 249])
def test_a_key_that_dominates_has_the_result(run, backend, device, token):
    """So that each token's value is found where it lies."""
    args, _ = case(device, valid=250, tokens=5)
    q, q_scale, k_ring, k_scale, *_ = args
    q[:], q_scale[:] = 127, 0.05
    k_ring.flatten(0, 1)[:250] = -127
    k_ring.flatten(0, 1)[token] = 127
    k_scale[:, :32] = 0.01
    want = values_of(*args[4:7])[token]
    torch.testing.assert_close(run(*args).double(), want.expand(5, -1, -1), rtol=6e-3, atol=1e-5)


@pytest.mark.parametrize("valid", [320, 250])
def test_queries_of_zeros_see_the_mean_of_values(run, backend, device, valid):
    """A scale of 0 makes all scores equal; what is not valid stays unseen."""
    (q, q_scale, *rest), _ = case(device, valid=valid)
    q[2], q_scale[:, 2] = 0, 0
    q_scale[0, 3] = 0  # with integers that are not 0, too
    got, mean = run(q, q_scale, *rest).double(), values_of(*rest[2:5])[:valid].mean(0)
    torch.testing.assert_close(got[2], mean, rtol=6e-3, atol=1e-3)
    torch.testing.assert_close(got[3, 0], mean[0], rtol=6e-3, atol=1e-3)


def test_keys_of_zeros_have_scores_of_zero(run, backend, device):
    args, _ = case(device)
    _, _, k_ring, k_scale, *_ = args
    k_ring.flatten(0, 1)[::3] = 0
    k_ring.flatten(0, 1)[40:48], k_scale[:, 5] = 0, 0
    k_scale[1, 1] = 0
    check(run(*args), args, backend)


TOKENS = [0, 9, 63, 64, 130, 255, 256]


def is_nan_at(got, *index):
    """Whether what index selects of [tokens, heads, channels] is NaN, and nothing else."""
    want = torch.zeros_like(got, dtype=torch.bool)
    want[index] = True
    return torch.equal(got.isnan(), want)


@pytest.mark.parametrize("code", [0x7F, 0xFF])
@pytest.mark.parametrize("token", TOKENS)
def test_a_value_that_is_nan_shows_in_its_channel(run, backend, device, token, code):
    args, _ = case(device, valid=257, tokens=200)
    *_, v_ring, _, _, _ = args
    at = token // 16 * 16 + ORDER.index(token % 16)
    v_ring.view(torch.uint8)[1, 77, at] = code
    assert is_nan_at(run(*args), slice(None), 1, 77)


@pytest.mark.parametrize("token", TOKENS)
def test_a_key_scale_that_is_nan_shows_in_its_head(run, backend, device, token):
    args, _ = case(device, valid=257, tokens=200)
    args[3][1, token // 8] = float("nan")
    assert is_nan_at(run(*args), slice(None), 1)


@pytest.mark.parametrize("row", [0, 63, 64, 130, 199])
def test_a_query_scale_that_is_nan_shows_in_its_row(run, backend, device, row):
    args, _ = case(device, valid=257, tokens=200)
    args[1][1, row] = float("nan")
    assert is_nan_at(run(*args), row, 1)


@pytest.mark.parametrize("which", [5, 6])
def test_a_value_scale_or_offset_that_is_nan_shows_in_its_channel(run, backend, device, which):
    args, _ = case(device, valid=257, tokens=200)
    args[which][1, 30] = float("nan")
    assert is_nan_at(run(*args), slice(None), 1, 30)


def test_codes_are_numbers_as_torch_has_them():
    ours = torch.tensor(NUMBERS)
    torch.testing.assert_close(
        ours, torch.arange(256).byte().view(torch.float8_e4m3fn).float(), rtol=0, atol=0, equal_nan=True
    )


BAD = {
    "q": [
        (0, lambda q: q[0], r"\[any, any, any\]"),
        (0, lambda q: q.bfloat16(), "int8"),
        (0, lambda q: q.transpose(0, 1).contiguous().transpose(0, 1), "contiguous"),
    ],
    "q_scale": [
        (1, lambda s: s.T.contiguous(), r"\[2, 7\]"),
        (1, lambda s: s.bfloat16(), "float32"),
        (1, lambda s: s.T.contiguous().T, "contiguous"),
        (1, lambda s: s.to("meta"), "on c"),
    ],
    "k_ring": [
        (2, lambda k: k[..., :64], r"\[any, any, 2, 128\]"),
        (2, lambda k: k.float(), "int8"),
        (2, lambda k: k[:, ::2], "contiguous"),
        (2, lambda k: k[:0], "not be empty"),
        (2, lambda k: k[:, :4].contiguous(), "multiple of 8 tokens"),
    ],
    "k_scale": [
        (3, lambda s: s[:, :-1].contiguous(), "at least 40 scales a head, got 39"),
        (3, lambda s: s[:1], r"\[2, any\]"),
        (3, lambda s: s.double(), "float32"),
        (3, lambda s: s.T.contiguous().T, "contiguous"),
    ],
    "v_ring": [
        (4, lambda v: v[:1], r"\[2, 128, any\]"),
        (4, lambda v: v[:, :64].contiguous(), r"\[2, 128, any\]"),
        (4, lambda v: v[0], r"\[2, 128, any\]"),
        (4, lambda v: v.view(torch.uint8), "float8_e4m3fn"),
        (4, lambda v: v.float(), "float8_e4m3fn"),
        (4, lambda v: v.transpose(1, 2).contiguous().transpose(1, 2), "contiguous"),
        (4, lambda v: v[..., :-16].contiguous(), "at least 320, got 304"),
        (4, lambda v: F.pad(v.view(torch.uint8), (0, 8)).view(v.dtype), "multiple of 16 tokens, at least 320, got 328"),
        (4, lambda v: v.to("meta"), "on c"),
    ],
    "v_scale": [
        (5, lambda s: s[:1], r"\[2, 128\]"),
        (5, lambda s: s[..., None], r"\[2, 128\]"),
        (5, lambda s: s.half(), "float32"),
        (5, lambda s: s.T.contiguous().T, "contiguous"),
        (5, lambda s: s.to("meta"), "on c"),
    ],
    "v_offset": [
        (6, lambda s: s[:, :64].contiguous(), r"\[2, 128\]"),
        (6, lambda s: s.double(), "float32"),
        (6, lambda s: s.T.contiguous().T, "contiguous"),
        (6, lambda s: s.to("meta"), "on c"),
    ],
    "valid": [
        (7, lambda n: n.long(), "int32"),
        (7, lambda n: n.repeat(2), r"\[1\]"),
        (7, lambda n: n[0], r"\[1\]"),
        (7, lambda n: n.to("meta"), "on c"),
    ],
}


@pytest.mark.parametrize(
    ("name", "index", "spoil", "text"), [(name, *bad) for name, all_of in BAD.items() for bad in all_of]
)
def test_bad_input_is_named(backend, device, name, index, spoil, text):
    args = list(case(device)[0])
    args[index] = spoil(args[index])
    with pytest.raises(ValueError, match=rf"^{name} must .*{text}"):
        OP.impls[backend][0](*args)


def test_registered_properly(device):
    rest = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")  # a schema's has no e4m3
    torch.library.opcheck(OP.torch_op, case(device, tokens=9)[0], test_utils=rest)


def test_compiles_to_one_graph(device):
    args, _ = case(device)
    compiled = torch.compile(lambda *a: OP(*a) + 1, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args), OP(*args) + 1)


def test_on_a_cpu(tmp_path):
    """The CUDA kernel's source, its threads and engines in random order."""
    run_on_a_cpu(tmp_path, "ring_attention_fp8.cpp", 60)


# ----------------------------------------------------------------------------------------------------------------------
# Of the CUDA kernel alone. Rings are made to measure: a multiple of 8 tokens, and any of them valid.


def draw(rng, device):
    tokens, heads = rng.choice([rng.randint(1, 400), rng.randint(1, 3000)]), rng.randint(1, 4)
    size = 8 * rng.choice([rng.randint(1, 50), rng.randint(1, 750)])
    valid = rng.choice([0, 1, size, size + 1, *(rng.randint(0, size) for _ in range(4))])
    shape = {"tokens": tokens, "slots": 1, "per_slot": size, "heads": heads, "valid": valid, "spare": -size // 8 % 4}
    of_values = {"value_offset": rng.choice([0.0, 30.0]), "value_uneven": rng.choice([0.0, 1.0])}
    return case(device, **shape, **of_values, spread=rng.choice([0.1, 1.0, 4.0, 30.0, 300.0]))[0]


def check_random_call(rng, run, backend, device):
    args = draw(rng, device)
    try:
        check(run(*args), args, backend)
    except AssertionError as error:
        shapes = [list(x.shape) for x in args[:5]], args[-1].tolist()
        raise AssertionError(f"{shapes}: {error}") from error


@pytest.mark.gpu
@pytest.mark.parametrize("part", range(10))
def test_random_shapes(kernel, device, part):
    rng = random.Random(part)
    for _ in range(100):
        check_random_call(rng, kernel, "cuda", device)


def of_head(function):
    """As ``function``, of one head after the other."""
    return lambda args: by_head(function, args, (1, 0, 2, 0, 0, 0, 0, None))


@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
def test_what_rounding_p_costs(device, spread):
    """As a model, of sqrt(sum(p^2 (v - result)^2)), in which a random error of p counts."""
    args, _ = case(device, tokens=64, slots=1, per_slot=2048, spread=spread)
    logits, v = logits_of(*args[:4], args[-1]), values_of(*args[4:7])
    want, p = softmax_of(logits, v), logits.softmax(-1)
    off = (softmax_of(rounded(logits), v) - want).norm() / spread_of(p.square(), v, want).sum().sqrt()
    assert 0.018 <= off <= 0.036


@pytest.mark.parametrize(("height", "most"), [(7, 0.03), (8, 0.03), (9, 0.05)])
def test_many_keys_far_below_one_keep_their_weight(device, height, most):
    """As a model: one key of 18720 so many nats above the mean of the others, which together weigh more than it."""
    torch.manual_seed(0)
    logits = torch.randn(1, 32, 18720, dtype=torch.float64, device=device)
    at = torch.randint(64, 18720, (1, 32, 1), device=device)
    logits.scatter_(-1, at, float(height))
    want, got = (x.softmax(-1).gather(-1, at).mean() for x in (logits, rounded(logits)))
    assert want < 0.3
    assert (got - want).abs() <= most * want


@pytest.mark.gpu
@pytest.mark.parametrize("name", REAL)
def test_real_sizes(kernel, device, name):
    """Of the spread of results: p's own error."""
    args, _ = case(device, **REAL[name])
    want = of_head(truth)(args)
    assert error_of_spread(kernel(*args), want) <= 0.026


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", REAL)
def test_real_sizes_keep_the_recipes_error(kernel, device, name, recipe, record_property):
    args, plain = case(device, **REAL[name], **RECIPES[recipe])
    found = error_of_spread(kernel(*args), by_head(unquantised, (*plain, args[-1]), (1, 1, 1, None)))
    record_property("error", found)
    assert found <= RECIPES_ERROR


@pytest.mark.gpu
@pytest.mark.parametrize("name", REAL)
def test_gives_the_same_bits_every_time(kernel, device, name):
    args, _ = case(device, **REAL[name])
    first = kernel(*args)
    for _ in range(20):
        assert torch.equal(kernel(*args), first)


@pytest.mark.gpu
def test_one_graph_serves_every_number_of_keys(kernel, device):
    args, _ = case(device, tokens=1000, slots=12, per_slot=304, heads=3)
    *_, valid = args
    graph, out = captured(kernel, *args)
    for keys in (304, 3648, 1, 1000, 192, 193, 5000, 0):
        valid.fill_(keys)
        graph.replay()
        assert torch.equal(out, kernel(*args))
        check(out, args, "cuda")
