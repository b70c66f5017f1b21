"""The umT5 encoder: transformers' network under the key names of Wan's checkpoint (docs/model.md 6)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..plain import dtype_name
from .linear import Blocks, linear_of, rows_of
from .parked import Link, Parked
from .tokenizer import Tokenizer

_BUCKETS, _MOST_LAYERS = 32, 128
TABLE = "token_embedding.weight"
_FP8 = torch.float8_e4m3fn, torch.float8_e5m2

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
    keys = {TABLE: "embed_tokens.weight", "norm.weight": "final_layer_norm.weight"}
    for i in range(layers):
        keys |= {f"blocks.{i}.{ours}": f"block.{i}.{theirs}" for ours, theirs in _LAYER_KEYS.items()}
    return keys


class Dimensions(NamedTuple):
    """A umT5 encoder's, as transformers' UMT5Config names them."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_heads: int
    num_layers: int


def config_of(shapes: Mapping[str, Sequence[int]]) -> Dimensions:
    """The network's dimensions, read off the checkpoint's shapes; ValueError naming the key that should tell."""

    def dims(key: str) -> Sequence[int]:
        if len(shape := shapes.get(key, ())) != 2 or 0 in shape:
            raise ValueError(f"a umT5 encoder needs a matrix called {key}")
        return shape

    vocabulary, width = dims(TABLE)
    buckets, heads = dims("blocks.0.pos_embedding.embedding.weight")
    inner = dims("blocks.0.attn.q.weight")[0]
    if not heads or inner % heads:
        raise ValueError(f"blocks.0.attn.q.weight has {inner} rows, which {heads} heads cannot share")
    if buckets != _BUCKETS:
        raise ValueError(f"blocks.0.pos_embedding.embedding.weight has {buckets} rows, umT5's has {_BUCKETS}")
    layers = len({key.split(".")[1] for key in shapes if key.startswith("blocks.")})
    if layers > _MOST_LAYERS:
        raise ValueError(f"blocks. has {layers} layers, at most {_MOST_LAYERS} are accepted")
    return Dimensions(vocabulary, width, inner // heads, dims("blocks.0.ffn.fc1.weight")[0], heads, layers)


def build(dimensions: Dimensions) -> torch.nn.Module:
    """transformers' encoder on the meta device: shapes and no memory."""
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        **dimensions._asdict(),
        relative_attention_num_buckets=_BUCKETS,
        relative_attention_max_distance=128,
        feed_forward_proj="gated-gelu",
        # The plain order of roundings: scores, bias, softmax, values, each rounded to the weights' dtype.
        attn_implementation="eager",  # pyright: ignore[reportCallIssue]
    )
    with torch.device("meta"):
        return UMT5EncoderModel(config).encoder.eval().requires_grad_(False)


def checkpoint_shapes(dimensions: Dimensions) -> dict[str, torch.Size]:
    """Shape of every tensor of a checkpoint with these dimensions, without transformers."""
    vocabulary, d, head_dim, wide, heads, layers = dimensions
    inner = heads * head_dim
    of_layer = {
        "norm1.weight": (d,),
        "attn.q.weight": (inner, d),
        "attn.k.weight": (inner, d),
        "attn.v.weight": (inner, d),
        "attn.o.weight": (d, inner),
        "pos_embedding.embedding.weight": (_BUCKETS, heads),
        "norm2.weight": (d,),
        "ffn.gate.0.weight": (wide, d),
        "ffn.fc1.weight": (wide, d),
        "ffn.fc2.weight": (d, wide),
    }
    shapes = {TABLE: (vocabulary, d), "norm.weight": (d,)}
    shapes |= {f"blocks.{i}.{key}": shape for i in range(layers) for key, shape in of_layer.items()}
    return {key: torch.Size(shape) for key, shape in shapes.items()}


def is_linear(key: str) -> bool:
    """Whether a tensor of Wan's checkpoint is the weight of a linear."""
    return ".attn." in key or ".ffn." in key


def may_be_narrow(key: str) -> bool:
    """Whether a tensor of Wan's checkpoint may stay in 8 bits: the weights of linears, and the embedding table."""
    return is_linear(key) or key == TABLE


class TextEncoder:
    """Prompts to embeddings [n, text_len, text_dim] in ``dtype`` on ``device``.

    weights: the checkpoint's tensors (``checkpoint_shapes``), used in place. Those of linears (``is_linear``) and the
        embedding table may be Blocks, or of a narrower dtype that is widened exactly when it is used; the others are of
        ``dtype``. The tokenizer's ids must be rows of the table.
    dtype: what it computes in; None is that of ``norm.weight``.
    device: where embeddings are wanted; None is where ``norm.weight`` lies. It computes where the weights lie, unless
    link: brings the layers' weights from the host, pinned, to ``device`` while they are used (``text.parked``). The
        table stays in host memory, and its rows are taken there.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor | Blocks],
        tokenizer: Tokenizer,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        link: Link | None = None,
    ):
        config = config_of({key: _values(stored).shape for key, stored in weights.items()})
        self.tokenizer, self.text_dim = tokenizer, config.d_model
        norm, query = weights["norm.weight"], weights["blocks.0.attn.q.weight"]
        assert isinstance(norm, Tensor)
        self._dtype, self._device = dtype or norm.dtype, device or norm.device
        held = _values(query).dtype
        self.precision = "fp8" if held in _FP8 else dtype_name(held)
        self.residence = "parked" if link else "gpu" if norm.is_cuda else "cpu"
        self.table = weights[TABLE]
        self._network = build(config)
        del self._network.embed_tokens  # it is given rows of the table
        for ours, theirs in network_keys(config.num_layers).items():
            if ours != TABLE:
                self._place(ours, theirs.removesuffix(".weight"), weights[ours])
        self._computes_on, self._parked = norm.device, None
        if link:
            self._computes_on = self._device
            layers = [*self._network.get_submodule("block").children(), self._network.get_submodule("final_layer_norm")]
            self._parked = Parked(layers, self._device, link)
            *blocks, last = self._parked.modules()
            self._network.block, self._network.final_layer_norm = torch.nn.ModuleList(blocks), last

    def _place(self, key: str, path: str, stored: Tensor | Blocks) -> None:
        """Put a weight into the module at ``path``, or one that can do with it in that one's place."""
        narrow = linear_of(stored, self._dtype) if is_linear(key) else None
        if narrow is not None:
            parent, _, name = path.rpartition(".")
            setattr(self._network.get_submodule(parent), name, narrow)
        else:
            assert isinstance(stored, Tensor)
            self._network.get_submodule(path).weight = torch.nn.Parameter(stored, requires_grad=False)

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
        """[L, text_dim] of one prompt's ids [L], where it computes.

        Padding would be masked out of every softmax and zeroed at the end, so it is not computed at all; and since
        each prompt goes alone, its embedding does not depend on what is encoded beside it.
        """
        rows = rows_of(self.table, ids.to(_values(self.table).device), self._dtype).to(self._computes_on)
        with self._parked.visit() if self._parked else contextlib.nullcontext():
            return self._network(inputs_embeds=rows[None]).last_hidden_state[0]


def _values(stored: Tensor | Blocks) -> Tensor:
    return stored.values if isinstance(stored, Blocks) else stored
