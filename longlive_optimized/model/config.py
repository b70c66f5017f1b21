"""The network's dimensions, as the base model's config.json states them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from ..json_file import json_object, read_bounded, whole_number

PATCH = 2  # a token is one 2x2 patch of one latent frame
HEAD_DIM, EPS = 128, 1e-6  # of every published Wan
_LARGEST = 1 << 20  # bytes of a config.json
# Several times what any published Wan has: what is beyond would take hours or all memory to build.
_MOST = {
    "dim": 16384, "ffn_dim": 65536, "freq_dim": 4096, "in_dim": 256, "out_dim": 256,
    "num_heads": 128, "num_layers": 128, "text_len": 4096, "text_dim": 16384,
}  # fmt: skip


@dataclass(frozen=True)
class ModelConfig:
    """Dimensions of the diffusion transformer; the defaults are Wan2.1-T2V-1.3B (docs/model.md 1.1)."""

    dim: int = 1536
    ffn_dim: int = 8960
    freq_dim: int = 256
    in_dim: int = 16
    out_dim: int = 16
    num_heads: int = 12
    num_layers: int = 30
    text_len: int = 512
    text_dim: int = 4096
    eps: float = 1e-6

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            whole_number(getattr(self, name), 1, most, name)
        if not isinstance(self.eps, float) or not 0 < self.eps < 1:
            raise ValueError(f"eps must be a number between 0 and 1, got {self.eps!r:.40}")
        if self.freq_dim % 2:
            raise ValueError(f"freq_dim must be even, got {self.freq_dim}")
        if self.dim % (2 * self.num_heads):
            raise ValueError(f"dim must be a multiple of 2 * num_heads, got {self.dim} and {self.num_heads}")

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @classmethod
    def from_json(cls, path: str | Path) -> ModelConfig:
        """Read config.json; keys that are not dimensions (``model_type``, versions) are passed over.

        What no tensor's shape can confirm must be as in every Wan: the width of a head, eps, and beside umT5-XXL
        text_len. Raises ValueError naming the file and the dimension that is missing or out of range.
        """
        raw = json_object(read_bounded(path, _LARGEST), path)
        # The published file leaves text_dim to the constructor's default.
        missing = [f.name for f in dataclasses.fields(cls) if f.name not in raw and f.name != "text_dim"]
        if missing:
            raise ValueError(f"{path} lacks {', '.join(missing)}")
        try:
            config = cls(**{f.name: raw[f.name] for f in dataclasses.fields(cls) if f.name in raw})
            config._check_what_no_shape_tells()
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return config

    def _check_what_no_shape_tells(self) -> None:
        heads = max(1, self.dim // HEAD_DIM)
        if self.num_heads != heads:
            raise ValueError(f"num_heads must be {heads} where dim is {self.dim}, got {self.num_heads}")
        if self.eps != EPS:
            raise ValueError(f"eps must be {EPS}, got {self.eps}")
        if self.text_dim == 4096 and self.text_len != 512:
            raise ValueError(f"text_len must be 512 beside umT5-XXL, got {self.text_len}")

    def to_json(self, path: str | Path) -> None:
        """Write the published form of config.json."""
        Path(path).write_text(json.dumps({"model_type": "t2v", **dataclasses.asdict(self)}, indent=2) + "\n")
