"""DoRA, LoHa, LoKr and plain differences: against float64, and against PEFT's own modules."""

import dataclasses

import pytest
import torch
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
        (["lora_down.weight", "lora_up.weight", "lora_mid.weight"], "is a Tucker decomposition"),
        (["hada_w1_a", "hada_t1"], "is a Tucker decomposition"),
        (["lokr_w1", "lokr_t2"], "is a Tucker decomposition"),
        (["lora_embedding_A"], "is a LoRA of an embedding"),
        (["set_weight"], "is a patch that sets weights"),
        (["weight", "bias"], "holds tensors that are not changes of weights but whole ones"),
        (["modules_to_save.weight"], "holds tensors that are not changes of weights but whole ones"),
        (["hra_u"], "holds tensors that are of an unknown kind"),
    ],
)
def test_what_is_refused_is_named_by_its_kind(path, names, kind):
    good = {f"{K}.lora_A.weight": torch.zeros(1, 256), f"{K}.lora_B.weight": torch.zeros(256, 1)}
    for spelling in (f"diffusion_model.{Q}", "transformer.blocks.0.attn1.to_q", "lycoris_blocks_0_attn1_to_q"):
        lora = UserLora(write(path, good | {f"{spelling}.{name}": torch.ones(2, 2) for name in names}), 0.0)
        with pytest.raises(CheckpointError, match=f"{path} {kind}, which is not supported: {spelling}"):
            open_user_loras([lora], SHAPES)


@pytest.mark.parametrize(
    "name", ["transformer.blocks.0.attn1.to_qkv.lokr_w1", "lora_unet_blocks_0_attn2_to_kv.lora_down.weight"]
)
def test_fused_projections_are_refused(path, name):
    with pytest.raises(CheckpointError, match="is a LoRA of fused projections"):
        open_user_loras([UserLora(write(path, {name: torch.ones(2, 2)}))], SHAPES)


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
