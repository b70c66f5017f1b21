"""The umT5 encoder: transformers' network under the key names of Wan's checkpoint (docs/model.md 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import UMT5Config

_BUCKETS, _MOST_LAYERS = 32, 128

# wi_0 is the half of the gated FFN that goes through the GELU.
_LAYER_KEYS = {
    "norm1.weight": "layer.0.layer_norm.weight",
    "attn.q.weight": "layer.0.SelfAttention.q.weight",
    "attn.k.weight": "layer.0.SelfAttention.k.weight",
    "attn.v.weight": "layer.0.SelfAttention.v.weight",
    "attn.o.weight": "layer.0.SelfAttention.o.weight",
    "pos_embedding.embedding.weight": "layer.0.SelfAttention.relative_attention_bias.weight",
    "norm2.weight": "layer.1.layer_norm.weight",
    "ffn.gate.0.weight": "layer.1.DenseReluDense.wi_0.weight",
    "ffn.fc1.weight": "layer.1.DenseReluDense.wi_1.weight",
    "ffn.fc2.weight": "layer.1.DenseReluDense.wo.weight",
}


def network_keys(layers: int) -> dict[str, str]:
    """Key in transformers' encoder by key in Wan's checkpoint."""
    keys = {"token_embedding.weight": "embed_tokens.weight", "norm.weight": "final_layer_norm.weight"}
    for i in range(layers):
        keys |= {f"blocks.{i}.{ours}": f"block.{i}.{theirs}" for ours, theirs in _LAYER_KEYS.items()}
    return keys


def config_of(shapes: Mapping[str, Sequence[int]]) -> UMT5Config:
    """The network's dimensions, read off the checkpoint's shapes; ValueError naming the key that should tell."""
    from transformers import UMT5Config

    def dims(key: str) -> Sequence[int]:
        if len(shape := shapes.get(key, ())) != 2 or 0 in shape:
            raise ValueError(f"a umT5 encoder needs a matrix called {key}")
        return shape

    vocabulary, width = dims("token_embedding.weight")
    buckets, heads = dims("blocks.0.pos_embedding.embedding.weight")
    inner = dims("blocks.0.attn.q.weight")[0]
    if not heads or inner % heads:
        raise ValueError(f"blocks.0.attn.q.weight has {inner} rows, which {heads} heads cannot share")
    if buckets != _BUCKETS:
        raise ValueError(f"blocks.0.pos_embedding.embedding.weight has {buckets} rows, umT5's has {_BUCKETS}")
    layers = len({key.split(".")[1] for key in shapes if key.startswith("blocks.")})
    if layers > _MOST_LAYERS:
        raise ValueError(f"blocks. has {layers} layers, at most {_MOST_LAYERS} are accepted")
    return UMT5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=inner // heads,
        d_ff=dims("blocks.0.ffn.fc1.weight")[0],
        num_heads=heads,
        num_layers=layers,
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=128,
        feed_forward_proj="gated-gelu",
        # The plain order of roundings: scores, bias, softmax, values, each rounded to the weights' dtype.
        attn_implementation="eager",  # pyright: ignore[reportCallIssue]
    )


def build(config: UMT5Config) -> torch.nn.Module:
    """transformers' encoder on the meta device: shapes and no memory."""
    from transformers import UMT5EncoderModel

    with torch.device("meta"):
        return UMT5EncoderModel(config).encoder.eval().requires_grad_(False)


def checkpoint_shapes(config: UMT5Config) -> dict[str, torch.Size]:
    """Shape of every tensor of a checkpoint with these dimensions."""
    tensors = build(config).state_dict()
    return {ours: tensors[theirs].shape for ours, theirs in network_keys(config.num_layers).items()}


def is_linear(key: str) -> bool:
    """Whether a tensor of Wan's checkpoint is the weight of a linear: those may stay in 8 bits."""
    return ".attn." in key or ".ffn." in key


class _Widened(torch.nn.Module):
    """A weight in another dtype, made anew for each use."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self._dtype = dtype

    def forward(self, weight: Tensor) -> Tensor:
        return weight.to(self._dtype)


class TextEncoder:
    """Prompts to embeddings [n, text_len, text_dim] in the dtype and on the device of ``weights``.

    ``weights`` are the checkpoint's tensors (``checkpoint_shapes``), used in place; the tokenizer's ids must be rows of
    its embedding table. The linears' (``is_linear``) may be float8, and are widened for each prompt then.
    """

    def __init__(self, weights: Mapping[str, Tensor], tokenizer: Tokenizer):
        config = config_of({key: tensor.shape for key, tensor in weights.items()})
        self.tokenizer, self.text_dim = tokenizer, config.d_model
        self._network = build(config)
        names = network_keys(config.num_layers)
        self._network.load_state_dict({names[key]: tensor for key, tensor in weights.items()}, assign=True)
        self._device, self._dtype = weights["norm.weight"].device, weights["norm.weight"].dtype
        narrow = [m for m in self._network.modules() if isinstance(m, torch.nn.Linear) and m.weight.itemsize == 1]
        for linear in narrow:
            parametrize.register_parametrization(linear, "weight", _Widened(self._dtype), unsafe=True)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Tensor:
        """[n, text_len, text_dim]; rows at and beyond a prompt's length are zero.

        TypeError unless ``prompts`` is a list of strings, ValueError naming the empty one.
        """
        if isinstance(prompts, str):
            raise TypeError("prompts must be a list of strings, got one string")
        ids = [self.tokenizer(prompt) for prompt in prompts]
        out = torch.zeros(len(ids), self.tokenizer.text_len, self.text_dim, device=self._device, dtype=self._dtype)
        for row, sequence in zip(out, ids, strict=True):
            row[: len(sequence)] = self.encode_ids(torch.tensor(sequence, device="cpu"))
        return out

    @torch.no_grad()
    def encode_ids(self, ids: Tensor) -> Tensor:
        """[L, text_dim] of one prompt's ids [L].

        Padding would be masked out of every softmax and zeroed at the end, so it is not computed at all; and since
        each prompt goes alone, its embedding does not depend on what is encoded beside it.
        """
        return self._network(input_ids=ids.to(self._device)[None]).last_hidden_state[0]
