"""How strongly a LoRA acts: alpha and rank wherever trainers write them."""

import json
import math

import pytest
import torch

from longlive_optimized.weights import CheckpointError
from longlive_optimized.weights.user_lora import UserLora, open_user_loras
from support.loras import SHAPES, Q, diffusers, dotted, kohya, write

RANK = 4
OTHER = "blocks.1.cross_attn.v"


def strengths(path, naming, header=None, more=None):
    """What B A of Q and of OTHER, whose rank is 8, are multiplied with."""
    tensors = dict(more or {})
    for module, rank in ((Q, RANK), (OTHER, 2 * RANK)):
        name, down, up = naming(module)
        tensors |= {f"{name}.{down}": torch.ones(rank, 256), f"{name}.{up}": torch.ones(256, rank)}
    [adapter] = open_user_loras([UserLora(write(path, tensors, header))], SHAPES)
    return [adapter[f"{module}.weight"][0].scale for module in (Q, OTHER)]


def packed(**fields):
    return {"lora_adapter_metadata": json.dumps(fields)}


COMFY, WAN = dotted("diffusion_model."), diffusers(dotted("transformer."))


@pytest.mark.parametrize("naming", [COMFY, WAN, dotted("base_model.model.")], ids=["comfy", "diffusers", "peft"])
@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ({"transformer.r": "4", "transformer.lora_alpha": "16"}, [4, 2]),
        ({"r": "4", "lora_alpha": "16.0"}, [4, 2]),
        ({"lora_alpha": "16"}, [4, 2]),
        ({"alpha": "16"}, [4, 2]),
        ({"network_alpha": "16", "network_dim": "4"}, [4, 2]),
        ({"diffusion_model.lora_alpha": "16"}, [4, 2]),
        ({"lora_alpha": "8", "use_rslora": "True"}, [4, 8 / math.sqrt(8)]),
        ({"lora_alpha": "8", "use_rslora": "False"}, [2, 1]),
        ({"lora_alpha": "8", "alpha_pattern": '{"blocks.0.self_attn.q": 2}'}, [0.5, 1]),
        ({"text_encoder.lora_alpha": "99", "transformer.lora_alpha": "16"}, [4, 2]),
        ({"text_encoder.lora_alpha": "99", "transformer_2.lora_alpha": "99"}, [1, 1]),
        ({"lora_alpha": "None"}, [1, 1]),
        ({"format": "pt", "modelspec.title": "alpha"}, [1, 1]),
        (packed(**{"transformer.r": 4, "transformer.lora_alpha": 16}), [4, 2]),
        (packed(r=4, lora_alpha=16), [4, 2]),
        (packed(**{"transformer.lora_alpha": 8, "transformer.use_rslora": True}), [4, 8 / math.sqrt(8)]),
        (packed(**{"transformer.lora_alpha": 8, "transformer.alpha_pattern": {"blocks.0.attn1.to_q": 2}}), [0.5, 1]),
        (packed(**{"transformer.lora_alpha": 8, "transformer.alpha_pattern": {"self_attn.q": 2, "o_q": 7}}), [0.5, 1]),
        (packed(**{"transformer.lora_alpha": 8, "transformer.alpha_pattern": {"^blocks.0.attn1.to_q$": 2}}), [0.5, 1]),
        (packed(**{"transformer.lora_alpha": 8, "text_encoder.alpha_pattern": {"to_q": 2}}), [2, 1]),
        (packed(**{"transformer.lora_alpha": 8}) | {"lora_alpha": "99"}, [2, 1]),
    ],
)
def test_alpha_in_the_header(path, naming, header, wanted):
    assert strengths(path, naming, header) == pytest.approx(wanted)


def test_a_modules_own_alpha_comes_first(path):
    more = {f"diffusion_model.{Q}.alpha": torch.tensor(2.0)}
    assert strengths(path, COMFY, {"lora_alpha": "16"}, more) == [0.5, 2]
    more = {f"diffusion_model.{Q}.lora_alpha": torch.tensor(2.0), f"diffusion_model.{Q}.lora_rank": torch.tensor(4)}
    assert strengths(path, COMFY, None, more) == [0.5, 1]


def test_kohyas_alpha(path):
    """Converters fold it into PEFT's names and keep the header: it counts beside kohya's own names alone."""
    header = {"ss_network_alpha": "16", "ss_network_dim": "4", "ss_network_module": "networks.lora"}
    assert strengths(path, kohya("lora_unet_"), header) == [4, 2]
    assert strengths(path, lambda m: (f"diffusion_model.{m}", "lora_down.weight", "lora_up.weight"), header) == [4, 2]
    assert strengths(path, COMFY, header) == strengths(path, WAN, header) == [1, 1]
    assert strengths(path, kohya("lora_unet_"), header | {"ss_network_alpha": "None"}) == [1, 1]
    own = {f"lora_unet_{Q.replace('.', '_')}.alpha": torch.tensor(2.0)}
    assert strengths(path, kohya("lora_unet_"), header, own) == [0.5, 2]


def test_lycoris_with_rs_lora(path):
    """alpha stands in the file already multiplied by sqrt(rank); of whole LoKr matrices the rank is in nothing else."""
    whole = {"lokr_w1": torch.ones(4, 4), "lokr_w2": torch.ones(64, 64), "alpha": torch.tensor(27.0)}
    tensors = {f"lora_unet_{Q.replace('.', '_')}.{part}": tensor for part, tensor in whole.items()}
    arguments = {"ss_network_module": "lycoris.kohya", "ss_network_args": '{"algo": "lokr", "rs_lora": "True"}'}
    header_alpha = {"ss_network_alpha": "16", "ss_network_dim": "4"}
    for header, wanted in [
        (arguments, 3),
        (arguments | {"ss_network_module": "other"}, 1),
        (header_alpha, 1),
        (None, 1),
    ]:
        [adapter] = open_user_loras([UserLora(write(path, tensors, header))], SHAPES)
        assert adapter[f"{Q}.weight"][0].scale == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"lora_alpha": "strong"}, "header of .*: lora_alpha must be a number other than 0, got 'strong'"),
        ({"lora_alpha": "nan"}, "header of .*: lora_alpha must be a number"),
        ({"transformer.lora_alpha": "1e999"}, "header of .*: lora_alpha must be a number"),
        ({"lora_alpha": "0"}, "header of .*: lora_alpha must be a number other than 0"),
        ({"lora_alpha": "8", "alpha_pattern": "{"}, "header of .*: alpha_pattern is not valid JSON"),
        ({"lora_adapter_metadata": "{"}, "header of .*: lora_adapter_metadata is not valid JSON"),
        ({"lora_adapter_metadata": "[" * 100_000}, "header of .*: lora_adapter_metadata is not valid JSON"),
        ({"lora_adapter_metadata": "[]"}, "header of .*: lora_adapter_metadata must hold a JSON object"),
        (packed(lora_alpha=True), "header of .*: lora_alpha must be a number"),
        (packed(lora_alpha=10**400), "header of .*: lora_alpha must be a number"),
        (packed(lora_alpha=8, alpha_pattern={"q": None}), "header of .*: alpha_pattern must be a number"),
        (packed(lora_alpha=8, alpha_pattern={".*q": 1}), "alpha_pattern names modules by an expression"),
        (packed(lora_alpha=8, rank_pattern={"q": -4}), "header of .* says a negative rank"),
        (packed(peft_type="OFT"), "header of .* says peft_type 'OFT', which is not supported"),
        (
            packed(**{"transformer.init_lora_weights": "pissa"}),
            "says init_lora_weights 'pissa', which changes the base",
        ),
        (packed(**{"transformer.init_lora_weights": "olora"}), "says init_lora_weights 'olora'"),
        (packed(**{"transformer.use_dora": True}), "was trained as a DoRA, but its magnitudes are missing"),
    ],
)
def test_headers_that_cannot_be_used(path, header, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        strengths(path, COMFY, header)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("start", [True, False, "gaussian", "eva", "orthogonal"])
def test_initialisations_that_leave_the_base_alone(path, start):
    assert strengths(path, WAN, packed(**{"transformer.init_lora_weights": start})) == [1, 1]
