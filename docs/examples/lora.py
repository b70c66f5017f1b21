"""A LoRA, merged into the weights, at other strengths while it runs: ``python docs/examples/lora.py --blocks 2``

The file is made on the spot, with random numbers and the names that trainers write, so it only disturbs the picture.
"""

import tempfile
from pathlib import Path

import torch
import typer
from safetensors.torch import save_file

from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig
from longlive_optimized.weights.user_lora import UserLora


def make_lora(path: Path, layers: int, width: int, rank: int = 4) -> None:
    """Low-rank changes of the attention's four projections in every layer."""
    random = torch.Generator().manual_seed(0)
    tensors = {}
    for module in (f"blocks.{i}.self_attn.{part}" for i in range(layers) for part in "qkvo"):
        tensors[f"diffusion_model.{module}.lora_A.weight"] = torch.randn(rank, width, generator=random) / width**0.5
        tensors[f"diffusion_model.{module}.lora_B.weight"] = torch.randn(width, rank, generator=random)
    save_file(tensors, path)


def main(model: str = "tiny", blocks: int = 2) -> None:
    engine = LongLiveEngine(model, OptimizationConfig.preset("balanced", height=64, width=96))

    def video() -> torch.Tensor:
        engine.reset()
        request = BlockRequest("a red circle moves left over a green field")
        return torch.cat([engine.generate_block(request) for _ in range(blocks)]).float()

    without = video()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "style.safetensors"
        make_lora(file, engine.model.config.num_layers, engine.model.config.dim)
        # Given at construction as LongLiveEngine(..., loras=[UserLora(file)]), it would be there from the first block.
        for scale in (0.5, 1.0, 0.0):
            engine.set_loras([UserLora(file, scale)])  # the weights are merged anew, in place
            print(f"scale {scale}: pixels differ by {(video() - without).abs().mean():.2f} of 255 on average")


if __name__ == "__main__":
    typer.run(main)
