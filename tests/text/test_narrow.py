"""Encoders whose weights are held narrower than they compute: the same as with the numbers that they stand for."""

import pytest
import torch
from torch import nn

from longlive_optimized.text.encoder import TextEncoder
from support.umt5 import Ids, narrowed, weights, widened

IDS = torch.arange(3, 34)


def error(got: torch.Tensor, truth: torch.Tensor) -> float:
    return ((got.double() - truth.double()).norm() / truth.double().norm()).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("precision", ["bf16", "int8", "fp8"])
def test_is_the_network_of_what_the_weights_stand_for(precision, dtype):
    stored = narrowed(weights(), precision, dtype)
    ours, plain = TextEncoder(stored, Ids(), dtype), TextEncoder(widened(stored, dtype), Ids())
    a, b = ours.encode_ids(IDS), plain.encode_ids(IDS)
    assert a.dtype == b.dtype == dtype and (ours.precision, ours.residence) == (precision, "cpu")
    assert torch.equal(a, b) and torch.equal(ours.encode(["fox"]), plain.encode(["fox"]))
    assert not any(m.weight.is_meta for m in ours._network.modules() if isinstance(m, nn.Linear))
    wide = sum(isinstance(m, nn.Linear) for m in ours._network.modules())
    assert wide == (3 * 7 if precision == "bf16" and dtype == torch.bfloat16 else 0)


def test_errors_are_those_that_are_said():
    """Against float32 of the file's numbers: int8 costs about what bfloat16 arithmetic does, float8 four times that."""
    tensors = weights(layers=4, width=256, inner=256, ffn=512)
    truth = TextEncoder(tensors, Ids()).encode_ids(IDS)
    errors = {
        (precision, dtype): error(TextEncoder(narrowed(tensors, precision, dtype), Ids(), dtype).encode_ids(IDS), truth)
        for precision in ("bf16", "int8", "fp8")
        for dtype in (torch.float32, torch.bfloat16)
    }
    assert errors["bf16", torch.float32] < 1e-6
    assert 0.005 < errors["int8", torch.float32] < 0.025
    assert errors["fp8", torch.float32] > 3 * errors["int8", torch.float32]
    assert errors["int8", torch.bfloat16] < 2.5 * errors["bf16", torch.bfloat16]


def test_a_table_in_int8_costs_no_more_than_the_linears():
    tensors = weights(layers=4, width=256, inner=256, ffn=512)
    truth = TextEncoder(tensors, Ids()).encode_ids(IDS)
    whole = narrowed(tensors, "int8", torch.float32)
    key = "token_embedding.weight"
    alone = error(TextEncoder({**tensors, key: whole[key]}, Ids(), torch.float32).encode_ids(IDS), truth)
    linears = error(TextEncoder({**whole, key: tensors[key]}, Ids(), torch.float32).encode_ids(IDS), truth)
    assert alone < 1.2 * linears


def test_a_table_in_float8_is_widened_row_by_row():
    tensors = weights(layers=1)
    key = "token_embedding.weight"
    narrow = {**tensors, key: tensors[key].to(torch.float8_e4m3fn)}
    wide = {**tensors, key: tensors[key].to(torch.float8_e4m3fn).float()}
    a, b = (TextEncoder(each, Ids(), torch.float32).encode_ids(IDS) for each in (narrow, wide))
    assert torch.equal(a, b)


@pytest.mark.parametrize("precision", ["bf16", "int8", "fp8"])
def test_weights_are_widened_a_part_at_a_time(precision):
    """Of a linear with many rows no more than some of them is ever in float32."""
    from support.memory import LiveBytes

    tensors = weights(layers=1, width=64, ffn=8192)
    encoder = TextEncoder(narrowed(tensors, precision, torch.float32), Ids(), torch.float32)
    encoder.encode_ids(IDS)
    with LiveBytes() as live:
        encoder.encode_ids(IDS)
    activations = 6 * len(IDS) * 8192 * 4
    assert live.most < activations + 8192 * 64 * 4 // 2
