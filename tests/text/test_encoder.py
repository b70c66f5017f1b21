"""The encoder against the conformance vector and against a float64 network written from docs/model.md 6."""

import subprocess
import sys

import pytest
import torch
from torch.nn import Linear

from longlive_optimized.text.encoder import TextEncoder, build, checkpoint_shapes, config_of, is_linear, network_keys
from longlive_optimized.text.tokenizer import Tokenizer
from support.vectors import check, parameter


class Ids:
    """Stands in for a tokenizer where a test brings its own ids."""

    text_len = 40


def shapes(vocabulary=100, width=32, inner=32, ffn=48, heads=4, layers=3):
    """Section 6.3, written down a second time."""
    keys = {"token_embedding.weight": (vocabulary, width), "norm.weight": (width,)}
    for i in range(layers):
        keys |= {f"blocks.{i}.{norm}.weight": (width,) for norm in ("norm1", "norm2")}
        keys |= {f"blocks.{i}.attn.{name}.weight": (inner, width) for name in "qkv"}
        keys[f"blocks.{i}.attn.o.weight"] = (width, inner)
        keys[f"blocks.{i}.pos_embedding.embedding.weight"] = (32, heads)
        keys |= {f"blocks.{i}.ffn.{name}.weight": (ffn, width) for name in ("gate.0", "fc1")}
        keys[f"blocks.{i}.ffn.fc2.weight"] = (width, ffn)
    return keys


def random_weights(dims, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def value(key, shape):
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        return 1 + 0.1 * noise if "norm" in key else noise / shape[-1] ** 0.5 if "pos" not in key else noise

    return {key: value(key, shape) for key, shape in shapes(**dims).items()}


def bucket(delta):
    """Section 6.2's table of edges."""
    edges = (8, 12, 16, 23, 32, 46, 64, 91)
    d = abs(delta)
    return (16 if delta > 0 else 0) + (d if d < 8 else 7 + sum(d >= edge for edge in edges))


def plain_encoder(w, ids, heads):
    """Section 6.2 in the weights' dtype."""

    def norm(x, g):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * g

    def gelu(z):
        return 0.5 * z * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3)))

    x = w["token_embedding.weight"][ids]
    n = len(ids)
    buckets = torch.tensor([[bucket(k - q) for k in range(n)] for q in range(n)])
    for i in range(sum(key.endswith("norm1.weight") for key in w)):
        p = f"blocks.{i}."
        h = norm(x, w[p + "norm1.weight"])
        q, k, v = ((h @ w[f"{p}attn.{name}.weight"].T).unflatten(-1, (heads, -1)) for name in "qkv")
        scores = torch.einsum("qhd,khd->hqk", q, k)
        scores = scores + w[p + "pos_embedding.embedding.weight"][buckets].permute(2, 0, 1)
        y = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)
        x = x + y @ w[p + "attn.o.weight"].T
        h = norm(x, w[p + "norm2.weight"])
        f = (h @ w[p + "ffn.fc1.weight"].T) * gelu(h @ w[p + "ffn.gate.0.weight"].T)
        x = x + f @ w[p + "ffn.fc2.weight"].T
    return norm(x, w["norm.weight"])


def test_conformance_vector():
    weights = {key: parameter(key, torch.Size(s), 0.2, "norm" in key).float() for key, s in shapes().items()}
    encoder = TextEncoder(weights, Ids())
    out = torch.zeros(40, 32)
    out[:30] = encoder.encode_ids(torch.tensor([(7 * i + 3) % 100 for i in range(30)]))
    check(out, -0.123255, 0.831107, [0.61390, 0.82338, 0.11079, 0.04932])
    torch.testing.assert_close(out[29, :3], torch.tensor([-0.15030, 0.62559, 0.49565]), rtol=0, atol=5e-5)


@pytest.mark.parametrize("length", [1, 2, 131])
def test_float64_network(length):
    dims = {"vocabulary": 57, "width": 24, "inner": 40, "ffn": 36, "heads": 5, "layers": 2}
    weights = random_weights(dims)
    ids = torch.randint(57, (length,), generator=torch.Generator().manual_seed(length))
    truth = plain_encoder(weights, ids, heads=5)
    out = TextEncoder(weights, Ids()).encode_ids(ids)
    # transformers keeps the mean square in float32 whatever the dtype
    torch.testing.assert_close(out, truth, rtol=1e-5, atol=1e-5)


def test_bf16_is_no_worse_than_plain_arithmetic():
    ids = torch.arange(64) % 100
    rounded = {key: w.bfloat16() for key, w in random_weights({"layers": 2}).items()}
    out = TextEncoder(rounded, Ids()).encode_ids(ids)
    assert out.dtype == torch.bfloat16
    truth = plain_encoder({key: w.double() for key, w in rounded.items()}, ids, heads=4)
    plain = plain_encoder(rounded, ids, heads=4)
    assert (out - truth).norm() < 1.1 * (plain - truth).norm() < 0.1 * truth.norm()


def test_a_full_size_checkpoint_has_242_tensors():
    dims = {"vocabulary": 256384, "width": 4096, "inner": 4096, "ffn": 10240, "heads": 64, "layers": 24}
    wanted = shapes(**dims)
    found = checkpoint_shapes(config_of(wanted))
    assert {key: tuple(shape) for key, shape in found.items()} == wanted
    assert len(found) == 242 and sum(shape.numel() for shape in found.values()) == 5_680_910_336


def test_a_checkpoint_has_the_networks_shapes():
    """Those of transformers' own."""
    dimensions = config_of(shapes())
    tensors = build(dimensions).state_dict()
    names = network_keys(dimensions.num_layers)
    assert checkpoint_shapes(dimensions) == {ours: tensors[theirs].shape for ours, theirs in names.items()}
    assert len(names) == len(tensors)


def test_a_checkpoint_is_checked_without_transformers(tmp_path):
    """Importing that takes seconds."""
    code = """if True:
        import sys
        from longlive_optimized.weights.load import check
        from longlive_optimized.weights.locate import locate
        check(locate("tiny"))
        assert "transformers" not in sys.modules
    """
    subprocess.run([sys.executable, "-P", "-c", code], check=True, cwd=tmp_path)


def test_keys_are_used_once():
    names = network_keys(3)
    assert len(set(names.values())) == len(names) == len(shapes())


def test_what_is_a_linear():
    """Of the network, and therefore what may stay in 8 bits."""
    network = build(config_of(shapes()))
    found = {ours for ours, theirs in network_keys(3).items() if isinstance(network.get_submodule(theirs[:-7]), Linear)}
    assert found == {key for key in shapes() if is_linear(key)} and len(found) == 7 * 3


def test_encode(tokenizer_folder):
    tokenizer = Tokenizer(tokenizer_folder, text_len=24)
    weights = {key: w.float() for key, w in random_weights({"vocabulary": tokenizer.vocabulary}).items()}
    encoder = TextEncoder(weights, tokenizer)
    prompts = ["A red kite.", "A whale rises beside a small boat", "a " * 100]
    out = encoder.encode(prompts)
    assert out.shape == (3, 24, 32) and out.dtype == torch.float32 and not out.requires_grad
    for row, prompt in zip(out, prompts, strict=True):
        length = len(tokenizer(prompt))
        assert row[length:].eq(0).all() and row[:length].ne(0).all()
        assert torch.equal(row, encoder.encode([prompt])[0])  # nothing leaks from one prompt to the next
    assert encoder.encode([]).shape == (0, 24, 32)
    assert encoder.text_dim == 32


@pytest.mark.parametrize(("prompts", "error"), [("a cat", TypeError), (["a", 3], TypeError), (["a", "  "], ValueError)])
def test_bad_prompts(tokenizer_folder, prompts, error):
    tokenizer = Tokenizer(tokenizer_folder)
    encoder = TextEncoder(random_weights({"vocabulary": tokenizer.vocabulary, "layers": 1}), tokenizer)
    with pytest.raises(error, match="prompt"):
        encoder.encode(prompts)


@pytest.mark.parametrize(
    ("key", "shape"),
    [("token_embedding.weight", None), ("blocks.0.attn.q.weight", (30, 32)), ("blocks.0.ffn.fc1.weight", (48,))],
)
def test_shapes_that_tell_no_config(key, shape):
    found = shapes()
    if shape is None:
        del found[key]
    else:
        found[key] = shape
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        config_of(found)
