"""The network's dimensions, as the base model's config.json states them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

PATCH = 2  # a token is one 2x2 patch of one latent frame


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
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
                raise ValueError(f"{field.name} must be a positive number, got {value!r}")
        if self.dim % (2 * self.num_heads):
            raise ValueError(f"dim must be a multiple of 2 * num_heads, got {self.dim} and {self.num_heads}")

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @classmethod
    def from_json(cls, path: str | Path) -> ModelConfig:
        """Read config.json; keys that are not dimensions (``model_type``, versions) are passed over.

        Raises ValueError naming the file and the dimension that is missing or not a positive number.
        """
        try:
            raw = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(raw, dict):
            raise ValueError(f"{path} must hold a JSON object with the model's dimensions")
        # The published file leaves text_dim to the constructor's default.
        missing = [f.name for f in dataclasses.fields(cls) if f.name not in raw and f.name != "text_dim"]
        if missing:
            raise ValueError(f"{path} lacks {', '.join(missing)}")
        try:
            return cls(**{f.name: raw[f.name] for f in dataclasses.fields(cls) if f.name in raw})
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def to_json(self, path: str | Path) -> None:
        """Write the published form of config.json."""
        Path(path).write_text(json.dumps({"model_type": "t2v", **dataclasses.asdict(self)}, indent=2) + "\n")
