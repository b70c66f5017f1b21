"""LoRA files as trainers write them, with random numbers, for the tiny checkpoint."""

import json
import math

import torch
from safetensors.torch import save_file

from longlive_optimized.model.transformer import generator_shapes
from longlive_optimized.weights.load import load_generator
from longlive_optimized.weights.locate import locate
from longlive_optimized.weights.random_checkpoint import TINY
from support.networks import stored

SHAPES = generator_shapes(TINY)
LINEARS = [key.removesuffix(".weight") for key, s in SHAPES.items() if key.endswith(".weight") and len(s) == 2]
Q, FFN = "blocks.0.self_attn.q", "blocks.1.ffn.0"


def halves(modules, seed=0, dtype=torch.float32):
    """A and B of each module, of another rank for each, as large together as a tenth of the weight."""
    generator, made = torch.Generator().manual_seed(seed), {}
    for i, module in enumerate(modules):
        (rows, columns), rank = SHAPES[f"{module}.weight"], 1 + i % 5
        a = torch.randn(rank, columns, generator=generator) / math.sqrt(columns)
        made[module] = a.to(dtype), (torch.randn(rows, rank, generator=generator) * 0.1).to(dtype)
    return made


def dotted(prefix="", infix=""):
    return lambda module: (f"{prefix}{module}", f"lora_A{infix}.weight", f"lora_B{infix}.weight")


def kohya(prefix):
    return lambda module: (prefix + module.replace(".", "_"), "lora_down.weight", "lora_up.weight")


def diffusers(naming):
    """``naming`` of what WanTransformer3DModel calls a module of the published checkpoint."""
    return lambda module: naming(_diffusers_name(module))


def _diffusers_name(module):
    outside = {
        "text_embedding.0": "condition_embedder.text_embedder.linear_1",
        "text_embedding.2": "condition_embedder.text_embedder.linear_2",
        "time_embedding.0": "condition_embedder.time_embedder.linear_1",
        "time_embedding.2": "condition_embedder.time_embedder.linear_2",
        "time_projection.1": "condition_embedder.time_proj",
        "head.head": "proj_out",
    }
    if module in outside:
        return outside[module]
    _, layer, room, leaf = module.split(".")
    rooms = {"self_attn": "attn1", "cross_attn": "attn2"}
    if room == "ffn":
        return f"blocks.{layer}.ffn.net." + {"0": "0.proj", "2": "2"}[leaf]
    leaves = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
    return f"blocks.{layer}.{rooms[room]}.{leaves.get(leaf, leaf)}"


BARE = dotted()


def tensors_of(pairs, naming=BARE, alpha=None):
    tensors = {}
    for module, (a, b) in pairs.items():
        name, down, up = naming(module)
        tensors |= {f"{name}.{down}": a, f"{name}.{up}": b}
        if alpha is not None:
            tensors[f"{name}.alpha"] = alpha
    return tensors


def write(path, tensors, header=None):
    """``tensors`` as a file of the form that the suffix names, ``header`` in a safetensors file's."""
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    save_file(tensors, path, metadata=header) if path.suffix == ".safetensors" else torch.save(tensors, path)
    return path


def for_the_built_in_model(path, seed=0):
    """A file with random numbers for all queries of the built-in model."""
    config = json.loads(locate("tiny").config.read_text())
    random, tensors = torch.Generator().manual_seed(seed), {}
    for module in (f"diffusion_model.blocks.{i}.self_attn.q" for i in range(config["num_layers"])):
        tensors[f"{module}.lora_A.weight"] = torch.randn(4, config["dim"], generator=random)
        tensors[f"{module}.lora_B.weight"] = torch.randn(config["dim"], 4, generator=random)
    return write(path, tensors)


def merged(model_files, *loras, dtype=torch.float32):
    return stored(load_generator(model_files, "cpu", dtype, loras=loras))


def check_merge(found, plain, pairs, strength=lambda rank: 1.0):
    """``found`` is ``plain``, plus ``strength(rank) B A`` where there is a pair, in float64."""
    for key, tensor in found.items():
        if (module := key.removesuffix(".weight")) not in pairs:
            assert torch.equal(tensor, plain[key]), key
            continue
        a, b = pairs[module]
        delta = strength(len(a)) * (b.double() @ a.double())
        assert delta.norm() > 1e-3 * plain[key].norm(), key
        torch.testing.assert_close(tensor.double(), plain[key].double() + delta, rtol=0, atol=2e-6)
