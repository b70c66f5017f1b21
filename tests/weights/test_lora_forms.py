"""DoRA, LoHa, LoKr and plain differences: against float64, and against PEFT's own modules."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from longlive_optimized.weights import CheckpointError, user_lora
from longlive_optimized.weights.load import load_generator, refill_generator
from longlive_optimized.weights.terms import merge
from longlive_optimized.weights.user_lora import UserLora, open_user_loras
from support.loras import FFN, SHAPES, Q, write

K = "blocks.0.cross_attn.k"
PATCH = "patch_embedding"


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def applied(plain, *loras):
    """The weights with ``loras``, by key, of those that change."""
    weights = dict(plain)
    adapters = open_user_loras(loras, SHAPES)
    for key in {key for adapter in adapters for key in adapter}:
        weights[key] = merge(plain[key], [term for adapter in adapters for term in adapter.get(key, ())])
    return weights


def check(found, plain, wanted):
    """``found`` is ``wanted``, and what is not there is untouched."""
    for key, tensor in found.items():
        if key not in wanted:
            assert torch.equal(tensor, plain[key]), key
            continue
        assert (wanted[key] - plain[key]).norm() > 1e-3 * plain[key].norm(), key
        torch.testing.assert_close(tensor.double(), wanted[key].double(), rtol=0, atol=3e-6)


def factors(kind, module):
    """Tensors of one module's LoHa or LoKr, the change that they stand for, and the rank that divides alpha."""
    rows, columns = SHAPES[f"{module}.weight"]
    if kind == "loha":
        parts = {
            f"hada_w{i}_{h}": random(*s, seed=3 * i) for i in (1, 2) for h, s in (("a", (rows, 3)), ("b", (3, columns)))
        }
        one, two = (parts[f"hada_w{i}_a"].double() @ parts[f"hada_w{i}_b"].double() for i in (1, 2))
        return parts, one * two, 3
    outer, inner = (4, 8), (rows // 4, columns // 8)
    parts, matrices = {}, []
    for i, (size, whole) in enumerate([(outer, kind in ("lokr", "lokr whole")), (inner, kind == "lokr whole")], 1):
        a, b = random(size[0], 2, seed=i) * 5, random(2, size[1], seed=i + 9) * 5
        parts |= {f"lokr_w{i}": a @ b} if whole else {f"lokr_w{i}_a": a, f"lokr_w{i}_b": b}
        matrices.append((a @ b).double() if whole else a.double() @ b.double())
    return parts, torch.kron(*matrices), None if kind == "lokr whole" else 2


@pytest.mark.parametrize("prefix", ["", "lycoris_", "base_model.model."])
@pytest.mark.parametrize("alpha", [None, 5.0])
@pytest.mark.parametrize("kind", ["loha", "lokr", "lokr whole", "lokr both"])
def test_products(plain, path, kind, alpha, prefix):
    """alpha / rank acts once, as when trainers run it; LyCORIS writes alpha beside whole matrices and ignores it."""
    tensors, wanted = {}, {}
    for module in (Q, FFN):
        parts, change, rank = factors(kind, module)
        name = prefix + (module.replace(".", "_") if prefix.endswith("_") else module)
        tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
        if alpha:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
        strength = 0.5 * (alpha / rank if alpha and rank else 1)
        wanted[f"{module}.weight"] = plain[f"{module}.weight"].double() + strength * change
    check(applied(plain, UserLora(write(path, tensors), 0.5)), plain, wanted)


def dora(weight, change, magnitude, over):
    adapted = weight.double() + change
    return adapted * (magnitude.double() / adapted.norm(dim=over, keepdim=True))


@pytest.mark.parametrize("scale", [1.0, 0.5, -2.0])
@pytest.mark.parametrize(
    ("name", "over"),
    [
        (lambda m: {"lora_magnitude_vector": m}, 1),
        (lambda m: {"lora_magnitude_vector.default.weight": m}, 1),
        (lambda m: {"magnitude": m}, 1),
        (lambda m: {"dora_scale": m[:, None]}, 1),
        (lambda m: {"dora_scale": m[None]}, 0),
    ],
    ids=["peft", "peft old", "toolkit", "lycoris", "by columns"],
)
@pytest.mark.parametrize("kind", ["lora", "lokr"])
def test_doras(plain, path, kind, name, over, scale):
    """The strength is the change's; the norms stay as trained."""
    weight, magnitude = plain[f"{Q}.weight"], random(256, seed=4).abs() + 0.5
    parts = {"lora_A.weight": random(2, 256), "lora_B.weight": random(256, 2, seed=1)}
    change = parts["lora_B.weight"].double() @ parts["lora_A.weight"].double()
    if kind == "lokr":
        parts, change, _ = factors("lokr", Q)
    tensors = {
        f"{Q}.{part}": tensor for part, tensor in (parts | name(magnitude) | {"alpha": torch.tensor(6.0)}).items()
    }
    wanted = dora(weight, scale * 3 * change, magnitude[:, None] if over else magnitude[None], over)
    check(applied(plain, UserLora(write(path, tensors), scale)), plain, {f"{Q}.weight": wanted})
    assert torch.equal(applied(plain, UserLora(path, 0.0))[f"{Q}.weight"], weight)


def test_doras_add_up_in_any_order(plain, tmp_path):
    """Each takes its norms from the weight without the others, as PEFT runs several."""
    loras = []
    for i in range(3):
        tensors = {f"{Q}.lora_A.weight": random(2, 256, seed=i), f"{Q}.lora_B.weight": random(256, 2, seed=i + 5)}
        tensors |= {f"{Q}.dora_scale": random(256, 1, seed=i).abs() + 0.5} if i else {}
        loras.append(UserLora(write(tmp_path / f"{i}.pt", tensors), 0.7))
    weight = plain[f"{Q}.weight"]
    alone = [applied(plain, lora)[f"{Q}.weight"].double() - weight for lora in loras]
    for order in ([0, 1, 2], [2, 0, 1]):
        found = applied(plain, *(loras[i] for i in order))
        check(found, plain, {f"{Q}.weight": weight.double() + sum(alone)})


def test_a_row_of_zeros_stays_one(path):
    tensors = {f"{Q}.lora_A.weight": torch.zeros(1, 256), f"{Q}.lora_B.weight": torch.zeros(256, 1)}
    [adapter] = open_user_loras([UserLora(write(path, tensors | {f"{Q}.dora_scale": torch.ones(256, 1)}))], SHAPES)
    weight = torch.zeros(256, 256)
    weight[1:] = 2
    assert merge(weight, adapter[f"{Q}.weight"])[:2, 0].tolist() == [0, 1 / 16]


DIFFERENCES = {  # the tensor of the model that each changes
    f"{Q}.diff": f"{Q}.weight",
    f"{Q}.diff_b": f"{Q}.bias",
    "blocks.1.norm3.diff": "blocks.1.norm3.weight",
    "blocks.1.norm3.diff_b": "blocks.1.norm3.bias",
    "blocks.0.cross_attn.norm_k.diff": "blocks.0.cross_attn.norm_k.weight",
    "blocks.0.self_attn.norm_q.w_norm": "blocks.0.self_attn.norm_q.weight",
    "blocks.0.norm3.w_norm": "blocks.0.norm3.weight",
    "blocks.0.norm3.b_norm": "blocks.0.norm3.bias",
    "patch_embedding.diff": "patch_embedding.weight",
    "blocks.1.diff_m": "blocks.1.modulation",
    "blocks.0.modulation.diff": "blocks.0.modulation",
    "head.diff_m": "head.modulation",
    "transformer.blocks.1.norm2.diff": "blocks.1.norm3.weight",
    "transformer.blocks.1.attn2.norm_q.diff": "blocks.1.cross_attn.norm_q.weight",
    "transformer.blocks.1.scale_shift_table.diff": "blocks.1.modulation",
    "transformer.scale_shift_table.diff": "head.modulation",
    "transformer.proj_out.diff_b": "head.head.bias",
    "lora_unet_blocks_1_ffn_0.diff_b": "blocks.1.ffn.0.bias",
    "lora_unet_blocks_0_attn1_to_out_0.diff": "blocks.0.self_attn.o.weight",
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_differences_are_added(plain, path, name):
    key = DIFFERENCES[name]
    difference = random(*SHAPES[key])
    write(path, {name: difference})
    check(applied(plain, UserLora(path, -1.5)), plain, {key: plain[key].double() - 1.5 * difference.double()})


def test_every_slot_of_the_model_takes_a_difference(plain, path):
    suffix = {"weight": "diff", "bias": "diff_b", "modulation": "diff_m"}
    tensors, wanted = {}, {}
    for key, shape in SHAPES.items():
        module, _, leaf = key.rpartition(".")
        tensors[f"diffusion_model.{module}.{suffix[leaf]}"] = random(*shape)
        wanted[key] = plain[key].double() + random(*shape).double()
    check(applied(plain, UserLora(write(path, tensors))), plain, wanted)


def test_bias_of_b_acts_as_strongly_as_b(plain, path):
    tensors = {
        f"{Q}.lora_A.weight": random(2, 256),
        f"{Q}.lora_B.weight": random(256, 2),
        f"{Q}.alpha": torch.tensor(6.0),
    }
    found = applied(plain, UserLora(write(path, tensors | {f"{Q}.lora_B.bias": random(256)}), 0.5))
    wanted = (
        plain[f"{Q}.weight"].double() + 1.5 * (tensors[f"{Q}.lora_B.weight"] @ tensors[f"{Q}.lora_A.weight"]).double()
    )
    bias = plain[f"{Q}.bias"].double() + 1.5 * random(256).double()
    check(found, plain, {f"{Q}.weight": wanted, f"{Q}.bias": bias})


@pytest.mark.parametrize("flat", [False, True])
def test_the_patch_embedding_which_is_a_convolution(plain, path, flat):
    a, b = random(3, 16, 1, 2, 2), random(256, 3, 1, 1, 1)
    change = (b.flatten(1).double() @ a.flatten(1).double()).view(256, 16, 1, 2, 2)
    tensors = {
        f"{PATCH}.lora_A.weight": a.flatten(1) if flat else a,
        f"{PATCH}.lora_B.weight": b.flatten(1) if flat else b,
    }
    key = f"{PATCH}.weight"
    check(applied(plain, UserLora(write(path, tensors))), plain, {key: plain[key].double() + change})
    magnitude = random(256).abs() + 0.5
    wanted = dora(plain[key].flatten(1), change.flatten(1), magnitude[:, None], 1).view(256, 16, 1, 2, 2)
    for shape in ((256,), (256, 1, 1, 1, 1), (1, 256, 1, 1, 1)):
        write(path, tensors | {f"{PATCH}.dora_scale": magnitude.view(shape)})
        check(applied(plain, UserLora(path)), plain, {key: wanted})


class Two(nn.Module):
    """Two of the model's linears, for PEFT to adapt."""

    def __init__(self, plain):
        super().__init__()
        self.q, self.k = nn.Linear(256, 256), nn.Linear(256, 256)
        for name, module in (("q", Q), ("k", K)):
            getattr(self, name).weight.data.copy_(plain[f"{module}.weight"])
            getattr(self, name).bias.data.copy_(plain[f"{module}.bias"])

    def forward(self, x):
        return self.k(self.q(x))


PEFT = {
    "dora": ("LoraConfig", {"r": 4, "lora_alpha": 6, "use_dora": True, "init_lora_weights": False}),
    "dora rs": (
        "LoraConfig",
        {"r": 4, "lora_alpha": 6, "use_dora": True, "use_rslora": True, "init_lora_weights": False},
    ),
    "bias": ("LoraConfig", {"r": 4, "lora_alpha": 6, "lora_bias": True, "init_lora_weights": False}),
    "patterns": (
        "LoraConfig",
        {"r": 4, "lora_alpha": 6, "alpha_pattern": {"q": 2}, "rank_pattern": {"k": 8}, "init_lora_weights": False},
    ),
    "loha": ("LoHaConfig", {"r": 4, "alpha": 6, "init_weights": False}),
    "lokr": ("LoKrConfig", {"r": 4, "alpha": 6, "init_weights": False}),
    "lokr both": ("LoKrConfig", {"r": 4, "alpha": 6, "decompose_both": True, "init_weights": False}),
    "lokr whole": ("LoKrConfig", {"r": 64, "alpha": 6, "init_weights": False}),
    "lokr patterns": ("LoKrConfig", {"r": 64, "alpha": 6, "alpha_pattern": {"q": 2}, "init_weights": False}),
}


@pytest.mark.parametrize("scale", [1.0, 0.5, -0.8])
@pytest.mark.parametrize("kind", PEFT)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_peft_saves_and_merges(plain, tmp_path, kind, scale):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    name, arguments = PEFT[kind]
    wrapped = peft.get_peft_model(Two(plain), getattr(peft, name)(target_modules=["q", "k"], **arguments))
    for parameter_name, parameter in wrapped.named_parameters():
        if "magnitude" in parameter_name:
            parameter.data *= 1 + 0.3 * torch.rand(256)
    wrapped.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    content = {key: tensor.clone() for key, tensor in user_lora.tensors_in(file).items()}
    names = {".model.q.": f".model.{Q}.", ".model.k.": f".model.{K}."}
    for old, new in names.items():
        content = {key.replace(old, new): tensor for key, tensor in content.items()}
    write(file, content)
    for layer in wrapped.modules():
        if isinstance(layer, peft.tuners.tuners_utils.BaseTunerLayer):
            layer.set_scale("default", scale)
    merged = wrapped.merge_and_unload()
    wanted = {
        f"{m}.{leaf}": getattr(getattr(merged, n), leaf).detach()
        for n, m in (("q", Q), ("k", K))
        for leaf in ("weight", "bias")
    }
    if kind != "bias":
        wanted = {key: tensor for key, tensor in wanted.items() if key.endswith("weight")}
    check(applied(plain, UserLora(file, scale)), plain, wanted)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["oft_blocks"], "is an OFT"),
        (["oft_R.weight"], "is an OFT"),
        (["boft_R"], "is an OFT"),
        (["a1.weight", "a2.weight", "b1.weight", "b2.weight"], "is a GLoRA"),
        (["weight", "on_input"], r"is an \(IA\)³"),
        (["ia3_l"], r"is an \(IA\)³"),
        (["vera_lambda_b"], "is a VeRA"),
        (["lora_A", "lora_B", "lora_E"], "is an AdaLoRA"),
        (["lambda_layer", "p_layer.weight", "q_layer.weight"], "is a T-LoRA"),
        (["lora_A.scale_weight"], "is stored as integers or 8-bit floats with scales beside them"),
        (["lora_down.weight_scale"], "is stored as integers or 8-bit floats with scales beside them"),
        (["lora_A.weight.absmax", "lora_A.weight.quant_map"], "is stored as integers or 8-bit floats with scales"),
        (["lora_embedding_A"], "is a LoRA of an embedding"),
        (["set_weight"], "is a patch that sets weights"),
        (["weight", "bias"], "holds tensors that are not changes of weights but whole ones"),
        (["modules_to_save.weight"], "holds tensors that are not changes of weights but whole ones"),
        (["hra_u"], "holds tensors that are of an unknown kind"),
        (["lora_A.bias"], "holds tensors that are of an unknown kind"),
    ],
)
def test_what_is_refused_is_named_by_its_kind(path, names, kind):
    good = {f"{K}.lora_A.weight": torch.zeros(1, 256), f"{K}.lora_B.weight": torch.zeros(256, 1)}
    for spelling in (f"diffusion_model.{Q}", "transformer.blocks.0.attn1.to_q", "lycoris_blocks_0_attn1_to_q"):
        lora = UserLora(write(path, good | {f"{spelling}.{name}": torch.ones(2, 2) for name in names}), 0.0)
        with pytest.raises(CheckpointError, match=f"{path} {kind}.*, which is not supported: {spelling}"):
            open_user_loras([lora], SHAPES)


FUSED = {
    "transformer.blocks.0.attn1.to_qkv.": "self_attn.qkv",
    "diffusion_model.blocks.0.self_attn.qkv_proj.": "self_attn.qkv",
    "lora_unet_blocks_0_self_attn_qkv.": "self_attn.qkv",
    "lycoris_blocks_0_attn1_to_qkv.": "self_attn.qkv",
    "base_model.model.blocks.0.attn2.to_kv.": "cross_attn.kv",
    "lora_unet_blocks_0_cross_attn_kv_proj.": "cross_attn.kv",
}


def fused_parts(kind, rows):
    """Tensors of a module with so many rows, and the changes that they stand for, by the suffix of the weight's key."""
    low_rank = {"lora_down.weight": random(3, 256), "lora_up.weight": random(rows, 3, seed=1)}
    change = low_rank["lora_up.weight"].double() @ low_rank["lora_down.weight"].double()
    if kind == "loha":
        halves = {f"hada_w{i}_{h}": random(*s, seed=i) for i in (1, 2) for h, s in (("a", (rows, 3)), ("b", (3, 256)))}
        one, two = (halves[f"hada_w{i}_a"].double() @ halves[f"hada_w{i}_b"].double() for i in (1, 2))
        return halves | {"alpha": torch.tensor(6.0)}, {"weight": 2 * one * two}
    if kind == "everything":
        differences = {"diff": random(rows, 256, seed=2), "diff_b": random(rows, seed=3)}
        whole = {"weight": 2 * change + differences["diff"].double(), "bias": differences["diff_b"].double()}
        return low_rank | differences | {"alpha": torch.tensor(6.0)}, whole
    return low_rank, {"weight": change}


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("kind", ["lora", "loha", "everything"])
def test_fused_projections_are_taken_apart(plain, path, kind, name):
    """q, k and v, or k and v, one below the other, as torch.cat of their weights makes one linear of several."""
    room, _, letters = FUSED[name].partition(".")
    parts, changes = fused_parts(kind, 256 * len(letters))
    write(path, {name + part: tensor for part, tensor in parts.items()})
    keys = {leaf: [f"blocks.0.{room}.{letter}.{leaf}" for letter in letters] for leaf in changes}
    wanted = {
        key: plain[key].double() + 0.5 * change
        for leaf, changed in changes.items()
        for key, change in zip(keys[leaf], changed.split(256), strict=True)
    }
    check(applied(plain, UserLora(path, 0.5)), plain, wanted)


def test_a_fused_dora(plain, path):
    """Its norms are of rows, which belong to one projection each."""
    names = [f"blocks.1.self_attn.{letter}.weight" for letter in "qkv"]
    weight, magnitude = torch.cat([plain[name] for name in names]), random(768, seed=4).abs() + 0.5
    down, up = random(2, 256), random(768, 2, seed=1)
    tensors = {"lora_A.weight": down, "lora_B.weight": up, "lora_magnitude_vector": magnitude}
    write(path, {f"blocks.1.attn1.to_qkv.{part}": tensor for part, tensor in tensors.items()})
    wanted = dora(weight, up.double() @ down.double(), magnitude[:, None], 1)
    check(applied(plain, UserLora(path)), plain, dict(zip(names, wanted.split(256), strict=True)))


def test_alpha_of_a_fused_projection_by_its_name(plain, path):
    down, up = random(2, 256), random(768, 2, seed=1)
    tensors = {
        "transformer.blocks.0.attn1.to_qkv." + k: t for k, t in {"lora_A.weight": down, "lora_B.weight": up}.items()
    }
    fields = {"transformer.lora_alpha": 2, "transformer.r": 2, "transformer.alpha_pattern": {"attn1.to_qkv": 10}}
    save_file(tensors, path, {"lora_adapter_metadata": json.dumps(fields)})
    change = 5 * (up.double() @ down.double())
    keys = [f"blocks.0.self_attn.{letter}.weight" for letter in "qkv"]
    wanted = {key: plain[key].double() + own for key, own in zip(keys, change.split(256), strict=True)}
    check(applied(plain, UserLora(path)), plain, wanted)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"lokr_w1": (12, 4), "lokr_w2": (64, 64)}, "several projections as one, .* its lokr_w1 is of all of them"),
        (
            {"lora_A.weight": (2, 256), "lora_B.weight": (768, 2), "dora_scale": (1, 256)},
            "several projections as one, .* its magnitude is of columns",
        ),
        ({"lora_A.weight": (2, 256), "lora_B.weight": (769, 2)}, r"q\.B is \[257, 2\], expected \[256, 2\]"),
        ({"lora_A.weight": (2, 256), "lora_B.weight": (512, 2)}, r"q\.B is \[171, 2\], expected \[256, 2\]"),
        ({"weight": (768, 256)}, "not changes of weights but whole ones"),
    ],
)
def test_fused_projections_that_cannot_be_taken_apart(path, parts, message):
    write(path, {f"blocks.0.attn1.to_qkv.{part}": torch.ones(shape) for part, shape in parts.items()})
    with pytest.raises(CheckpointError, match=message):
        open_user_loras([UserLora(path)], SHAPES)


def test_fused_and_single_projections_of_one_module(path):
    tensors = {
        "blocks.0.attn1.to_qkv.lora_A.weight": random(2, 256),
        "blocks.0.attn1.to_qkv.lora_B.weight": random(768, 2),
    }
    write(path, tensors | {f"{Q}.lora_A.weight": random(2, 256), f"{Q}.lora_B.weight": random(256, 2)})
    with pytest.raises(CheckpointError, match=r"holds blocks\.0\.self_attn\.q twice, one of them in blocks\.0\.attn1"):
        open_user_loras([UserLora(path)], SHAPES)


def tucker(kind):
    """Tensors of the patch embedding as LyCORIS writes them with use_tucker, and the change: sums over the core."""
    core, rows, columns = random(3, 3, 1, 2, 2) * 10, random(256, 3, seed=1), random(3, 16, seed=2)
    change = torch.einsum("ijtyx,pi,jr->prtyx", core.double(), rows.double(), columns.double())
    if kind == "lora":
        up, down = rows.view(256, 3, 1, 1, 1), columns.view(3, 16, 1, 1, 1)
        return {"lora_mid.weight": core, "lora_up.weight": up, "lora_down.weight": down}, change
    if kind == "loha":  # its factors of the rows are transposed
        halves = {f"hada_w{i}_{h}": t for i in (1, 2) for h, t in (("a", rows.T.contiguous()), ("b", columns))}
        return halves | {"hada_t1": core, "hada_t2": -core}, -(change**2)
    outer, inner = random(8, 2) * 5, random(3, 32, seed=1)
    small = torch.einsum("ijtyx,ip,jr->prtyx", core.double(), inner.double(), columns[:, :8].double()).contiguous()
    parts = {"lokr_w1": outer, "lokr_w2_a": inner, "lokr_w2_b": columns[:, :8].contiguous(), "lokr_t2": core}
    return parts, torch.kron(outer.double()[..., None, None, None].contiguous(), small)


@pytest.mark.parametrize("name", [PATCH, f"lycoris_{PATCH}"])
@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
def test_tucker_decompositions_of_the_patch_embedding(plain, path, kind, name):
    parts, change = tucker(kind)
    write(path, {f"{name}.{part}": tensor for part, tensor in (parts | {"alpha": torch.tensor(1.5)}).items()})
    key = f"{PATCH}.weight"
    check(applied(plain, UserLora(path, -2.0)), plain, {key: plain[key].double() - change})


@pytest.mark.parametrize(
    ("core", "message"),
    [
        ((3, 2, 1, 2, 2), r"patch_embedding: core is \[3, 2, 1, 2, 2\], expected \[3, 3, 1, 2, 2\]"),
        ((3, 3, 2, 2, 1), r"core is \[3, 3, 2, 2, 1\], expected"),
        ((3, 3), r"core is \[3, 3\], expected"),
        ((2, 3, 1, 2, 2), r"patch_embedding\.B is \[256, 3\], expected \[256, 2\]"),
    ],
)
def test_a_core_of_another_shape(path, core, message):
    parts = {part: t for part, t in tucker("lora")[0].items() if "mid" not in part} | {"lora_mid.weight": random(*core)}
    write(path, {f"{PATCH}.{part}": tensor for part, tensor in parts.items()})
    with pytest.raises(CheckpointError, match=f"{path} does not fit this model.*{message}"):
        open_user_loras([UserLora(path)], SHAPES)


@pytest.mark.parametrize("without", ["lora_down.weight", "lora_up.weight"])
def test_a_core_alone(path, without):
    parts = {f"{PATCH}.{part}": tensor for part, tensor in tucker("lora")[0].items() if part != without}
    with pytest.raises(CheckpointError, match="lacks patch_embedding"):
        open_user_loras([UserLora(write(path, parts))], SHAPES)


def test_a_core_where_nothing_is_convolved(path):
    tensors = {"lora_down.weight": random(2, 256), "lora_up.weight": random(256, 2), "lora_mid.weight": random(2, 2)}
    write(path, {f"{Q}.{part}": tensor for part, tensor in tensors.items()})
    with pytest.raises(CheckpointError, match=r"1 unexpected \(blocks\.0\.self_attn\.q\.core\)"):
        open_user_loras([UserLora(path)], SHAPES)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float4_e2m1fn_x2])
@pytest.mark.parametrize("part", ["lora_A.weight", "alpha"])
def test_numbers_that_cannot_be_read_are_refused(tmp_path, part, dtype):
    tensor = torch.zeros(2, 256, dtype=torch.uint8).view(dtype) if dtype.itemsize == 1 else torch.ones(2, dtype=dtype)
    file = write(tmp_path / "x.pt", {f"{Q}.{part}": tensor})
    with pytest.raises(CheckpointError, match=f"holds tensors of {dtype}, which is not supported"):
        open_user_loras([UserLora(file)], SHAPES)


@pytest.fixture
def everything(tmp_path):
    """Three files that between them hold every form, some for the same weights."""
    lokr, loha = factors("lokr", FFN)[0], factors("loha", Q)[0]
    first = {f"{Q}.lora_A.weight": random(2, 256), f"{Q}.lora_B.weight": random(256, 2)}
    first |= {f"{Q}.dora_scale": random(256, 1).abs(), f"{Q}.diff_b": random(256), "blocks.0.norm3.diff": random(256)}
    second = {f"{FFN}.{part}": tensor for part, tensor in lokr.items()} | {f"{Q}.{part}": t for part, t in loha.items()}
    second |= {
        f"{Q}.dora_scale": random(1, 256).abs(),
        "blocks.0.norm3.b_norm": random(256),
        f"{Q}.diff_b": random(256),
    }
    third = {f"{Q}.diff": random(256, 256), "blocks.0.norm3.diff": random(256), "head.diff_m": random(1, 2, 256)}
    third |= {"patch_embedding.lora_A.weight": random(2, 64), "patch_embedding.lora_B.weight": random(256, 2)}
    files = ("a.safetensors", first), ("b.pt", second), ("c.safetensors", third)
    return [UserLora(write(tmp_path / name, tensors), 0.5) for name, tensors in files]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_refill_equals_a_fresh_load_bit_for_bit(model_files, everything, dtype):
    model = load_generator(model_files, "cpu", dtype, loras=everything)
    for scales in [(1.0, 1.0, 1.0), (-0.3, 0.0, 2.0), (0.0, 0.7, 0.0), (0.0, 0.0, 0.0)]:
        loras = [dataclasses.replace(lora, scale=scale) for lora, scale in zip(everything, scales, strict=True)]
        refill_generator(model, model_files, loras)
        fresh = load_generator(model_files, "cpu", dtype, loras=loras if any(scales) else ())
        for (key, found), wanted in zip(model.state_dict().items(), fresh.state_dict().values(), strict=True):
            assert torch.equal(found.view(torch.uint8), wanted.view(torch.uint8)), key


def test_refill_with_another_file_leaves_nothing_of_the_old_one(model_files, plain, tmp_path):
    """Someone writes another LoRA to the same path while the model runs."""
    one = UserLora(write(tmp_path / "x.safetensors", {f"{Q}.diff": random(256, 256), f"{K}.diff_b": random(256)}))
    model = load_generator(model_files, "cpu", torch.float32, loras=[one])
    write(tmp_path / "x.safetensors", {f"{K}.diff": random(256, 256)})
    for scale in (1.0, 0.0, 0.5):
        refill_generator(model, model_files, [dataclasses.replace(one, scale=scale)])
        found = {key: slot.read() for key, slot in model.checkpoint_slots().items()}
        wanted = {f"{K}.weight": plain[f"{K}.weight"].double() + scale * random(256, 256)} if scale else {}
        check(found, plain, wanted)


def test_what_is_given_is_never_written_to(model_files, everything, plain, monkeypatch):
    """Neither tensors nor dicts nor files, however often and at whatever scales they are merged."""
    given, bytes_before = {}, [lora.path.read_bytes() for lora in everything]
    opened = user_lora.tensors_in

    def kept(path, containers=()):
        return given.setdefault(path, opened(path, containers))

    monkeypatch.setattr(user_lora, "tensors_in", kept)
    first = applied(plain, *everything)
    copies = {path: {key: tensor.clone() for key, tensor in tensors.items()} for path, tensors in given.items()}
    weights = {key: tensor.clone() for key, tensor in plain.items()}
    for scale in (0.3, 1.0, 0.5):
        again = applied(plain, *(dataclasses.replace(lora, scale=scale) for lora in everything))
    assert all(torch.equal(again[key], first[key]) for key in first)
    assert all(torch.equal(plain[key], weights[key]) for key in plain)
    for path, tensors in given.items():
        assert tensors.keys() == copies[path].keys()
        assert all(torch.equal(tensor, copies[path][key]) for key, tensor in tensors.items())
    assert [lora.path.read_bytes() for lora in everything] == bytes_before
