import json
import subprocess
import sys

import pytest
import torch

from longlive_optimized.kernels.bench import (
    int8_linear,
    int8_linear_gelu,
    modulate_norm,
    modulate_norm_int8,
    qk_norm_rope_store,
    quantize,
    quantize_keys,
    quantize_values,
    residual_norm_int8,
    ring_attention_fp8,
    ring_attention_int8,
    runner,
)
from longlive_optimized.kernels.modulate_norm import modulate_norm as modulate_norm_op
from longlive_optimized.kernels.qk_norm_rope_store import qk_norm_rope_store as qk_norm_rope_store_op
from longlive_optimized.kernels.registry import OPS


def test_rows_on_the_cpu(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "deep" / "kernels.json"
    rows = runner.run(["modulate_norm"], str(path))
    assert "no CUDA device: times are of the CPU reference" in capsys.readouterr().out
    assert [row["backend"] for row in rows] == ["reference", "published"]
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows
    for row in rows:
        assert 0 < row["p10_us"] <= row["us"] <= row["p90_us"] <= row["p99_us"]
        assert row["gb_s"] == pytest.approx(row["bytes"] / row["us"] / 1e3)


def test_an_unknown_operator_is_refused():
    with pytest.raises(ValueError, match=r"modulate_norm, .*'norm'"):
        runner.run(["norm"])


def test_each_operator_is_loaded_by_its_name_alone():
    """In processes of their own, where no other operator is loaded: here all are."""
    program = "from longlive_optimized.kernels.bench.runner import OPS, bench_of; bench_of('{0}'); OPS['{0}']"
    for name in ("modulate_norm", "int8_linear_gelu", "ring_attention_int8"):
        subprocess.run([sys.executable, "-c", program.format(name)], check=True)


def test_counted_bytes_of_the_network_are_those_of_the_tensors():
    """86 MB a layer: q, k and v of 4680 tokens of 1536 channels read and written once; tables and gains are small."""
    case = qk_norm_rope_store.BENCH.real[0]
    assert case.bytes == pytest.approx(2 * 3 * 4680 * 1536 * 2, rel=0.01)
    x, shift, scale, _ = modulate_norm.BENCH.small[0].make("cpu")
    assert modulate_norm.BENCH.small[0].bytes == sum(t.numel() * 4 for t in (x, x, shift, scale))


@pytest.mark.parametrize(
    ("bench", "op"), [(modulate_norm, modulate_norm_op), (qk_norm_rope_store, qk_norm_rope_store_op)]
)
def test_the_baseline_computes_the_operator(bench, op):
    arguments = bench.BENCH.small[0].make("cpu")
    ours = op(*arguments)
    torch.testing.assert_close(bench.BENCH.published(*arguments).view_as(ours), ours, rtol=1e-4, atol=1e-4)


INT8 = (
    quantize,
    quantize_keys,
    quantize_values,
    modulate_norm_int8,
    residual_norm_int8,
    int8_linear,
    int8_linear_gelu,
    ring_attention_fp8,
    ring_attention_int8,
)


@pytest.mark.parametrize("bench", INT8)
def test_counted_bytes_of_int8_are_those_of_the_tensors(bench):
    name = bench.__name__.rpartition(".")[2]
    case = runner.bench_of(name).small[0]
    arguments = case.make("cpu")
    results = OPS[name](*arguments)
    tensors = [t for t in (*arguments, *(results if isinstance(results, tuple) else (results,))) if torch.is_tensor(t)]
    rewritten = [arguments[0]] if name == "residual_norm_int8" else []
    assert case.bytes == sum(t.nbytes for t in tensors + rewritten)


def test_the_peers_of_int8_products_compute_them(device, monkeypatch):
    if device == "cpu":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name, product in int8_linear.peers().items():
        for runs in (1, 3):
            arguments = int8_linear.draw(48, 96, 64, runs, torch.bfloat16, device)
            ours, theirs = OPS["int8_linear"].reference(*arguments).float(), product(*arguments).float()
            assert theirs.isfinite().all() and (theirs - ours).norm() < (0.01 if name == "bf16" else 0.06) * ours.norm()


@pytest.mark.gpu
def test_rows_on_a_gpu():
    rows = runner.run(["modulate_norm"])
    assert {"triton", "reference", "published"} <= {row["backend"] for row in rows}
    assert all(row["share_of_ceiling"] > 0 for row in rows)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_samples_end_when_their_time_is_over():
    sets = [(torch.zeros(1 << 20, device="cuda"),) for _ in range(2)]
    assert len(runner.time_on_gpu(torch.neg, sets, samples=9)) == 9
    assert len(runner.time_on_gpu(torch.neg, sets, samples=9, at_most=0)) == 3
