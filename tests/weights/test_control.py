"""VACE's module: found, checked, loaded, adapted by users' LoRAs that name it."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file

from longlive_optimized.model.control import control_shapes
from longlive_optimized.weights import CheckpointError
from longlive_optimized.weights.load import (
    check,
    check_loras,
    load_control,
    load_generator,
    refill_generator,
)
from longlive_optimized.weights.locate import CONTROL_FILE, locate
from longlive_optimized.weights.random_checkpoint import TINY, make_checkpoint
from longlive_optimized.weights.user_lora import UserLora
from support.networks import stored


@pytest.fixture(scope="module")
def with_control(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("control") / "model", "tiny", control=True)


@pytest.fixture
def module(folder, with_control):
    """The module's tensors, and a way to write others into a copy of the model."""
    tensors = load_file(with_control / CONTROL_FILE)

    def write(tensors, path=CONTROL_FILE):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / path)
        return locate(folder, control=True)

    return tensors, write


def test_make_checkpoint_writes_it_where_it_is_asked_to(with_control, pristine, tmp_path):
    assert locate(pristine).control is None
    files = locate(with_control)
    assert files.control == with_control / CONTROL_FILE and files.control in files.paths()
    tensors = load_file(files.control)
    assert {key: tensor.shape for key, tensor in tensors.items()} == control_shapes(TINY)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    again = make_checkpoint(tmp_path / "again", "tiny", control=True)
    assert (again / CONTROL_FILE).read_bytes() == files.control.read_bytes()
    same = {path.relative_to(pristine) for path in pristine.rglob("*")} | {CONTROL_FILE.parent, CONTROL_FILE}
    assert {path.relative_to(again) for path in again.rglob("*")} == same


def test_it_is_loaded_bit_for_bit_and_says_how_far_it_is(with_control):
    files, steps = locate(with_control, control=True), []
    check(files, control=True)
    branch = load_control(files, "cpu", torch.bfloat16, progress=lambda done, total: steps.append((done, total)))
    tensors = load_file(files.control)
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in stored(branch).items())
    assert len(steps) == len(tensors) and steps[-1][0] == steps[-1][1] == sum(t.nbytes for t in tensors.values())
    narrow = load_control(files, "cpu", torch.bfloat16, int8_only=True)
    assert narrow.blocks[0].qkv.weight is None and narrow.before.weight is not None


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize(
    "path",
    [
        CONTROL_FILE,
        "Wan2.1-VACE-1.3B/diffusion_pytorch_model.safetensors",
        "wan_models/Wan2.1-VACE-1.3B/diffusion_pytorch_model.safetensors",
    ],
)
def test_a_whole_vace_checkpoint_will_do(module, path, prefix):
    tensors, write = module
    whole = {f"{prefix}{key}": tensor for key, tensor in tensors.items()} | {f"{prefix}blocks.0.x": torch.zeros(1)}
    branch = load_control(write(whole, path), "cpu", torch.bfloat16)
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in stored(branch).items())


def test_a_missing_one_is_named_with_what_gets_it(folder):
    locate(folder)
    with pytest.raises(FileNotFoundError, match=f"lacks control; looked for .*{CONTROL_FILE}") as caught:
        locate(folder, control=True)
    command = str(caught.value).splitlines()[-1].split()
    assert command == ["longlive-optimized", "download", str(folder), "--vace"]
    (folder / CONTROL_FILE).parent.mkdir()
    (folder / CONTROL_FILE).symlink_to(folder / "gone")
    assert locate(folder).control is None
    with pytest.raises(FileNotFoundError, match="a link to nothing"):
        locate(folder, control=True)


BLOCK = "vace_blocks.0.self_attn.q.weight"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda t: t | {BLOCK: t[BLOCK][:8].clone()},
            rf"of another shape \({BLOCK} is \[8, 256\]",
        ),
        (lambda t: {k: v for k, v in t.items() if k != BLOCK}, rf"1 missing \({BLOCK}"),
        (lambda t: t | {"vace_blocks.1.modulation": torch.zeros(1)}, r"1 unexpected \(vace_blocks.1.modulation"),
        (lambda t: t | {BLOCK: t[BLOCK].to(torch.int8)}, rf"not floating point \({BLOCK} is torch.int8"),
        (lambda t: {"blocks.0.modulation": torch.zeros(1, 6, 256)}, "it is no VACE; it holds blocks.0.modulation"),
    ],
)
def test_what_does_not_fit_is_named(module, spoil, message):
    tensors, write = module
    files = write(spoil(dict(tensors)))
    check(files)  # nobody asked for it
    for look in (lambda: check(files, control=True), lambda: load_control(files, "cpu", torch.float32)):
        with pytest.raises(CheckpointError, match=message) as caught:
            look()
        assert str(files.control) in str(caught.value)


def test_numbers_that_are_none_are_named(module):
    tensors, write = module
    tensors[BLOCK][3, 4] = torch.nan
    with pytest.raises(CheckpointError, match=f"NaN or infinity in {BLOCK}"):
        load_control(write(tensors), "cpu", torch.float32)


def test_a_users_lora_reaches_it_where_it_names_it(with_control, tmp_path):
    """In LongLive's names or diffusers', and LongLive's own LoRA does not."""
    files = locate(with_control, control=True)
    plain = stored(load_control(files, "cpu", torch.float32))
    a, b = torch.randn(2, 256), torch.randn(256, 2)
    names = {"native": BLOCK.removesuffix(".weight"), "diffusers": "vace_blocks.0.attn1.to_q"}
    for name, spelled in names.items():
        path = tmp_path / f"{name}.safetensors"
        save_file({f"{spelled}.lora_A.weight": a, f"{spelled}.lora_B.weight": b}, path)
        lora = UserLora(path, 0.5)
        with pytest.raises(CheckpointError, match="holds no LoRA of this model"):
            check_loras(files, [lora])
        check_loras(files, [lora], control=True)
        generator = load_generator(files, "cpu", torch.float32, loras=[lora], control=True)
        branch = load_control(files, "cpu", torch.float32, loras=[lora])
        changed = {key for key, tensor in stored(branch).items() if not torch.equal(tensor, plain[key])}
        assert changed == {BLOCK} == generator.adapted
        torch.testing.assert_close(stored(branch)[BLOCK], plain[BLOCK] + 0.5 * b @ a)
        refill_generator(generator, files, [dataclasses.replace(lora, scale=0.0)], branch=branch)
        assert all(torch.equal(tensor, plain[key]) for key, tensor in stored(branch).items())


def test_a_lora_of_the_generator_leaves_it_alone(with_control, tmp_path):
    files, path = locate(with_control, control=True), tmp_path / "style.safetensors"
    name = "blocks.0.self_attn.q"
    save_file({f"{name}.lora_A.weight": torch.randn(2, 256), f"{name}.lora_B.weight": torch.randn(256, 2)}, path)
    branch = load_control(files, "cpu", torch.float32, loras=[UserLora(path)])
    plain = stored(load_control(files, "cpu", torch.float32))
    assert all(torch.equal(tensor, plain[key]) for key, tensor in stored(branch).items())
    generator = load_generator(files, "cpu", torch.float32, loras=[UserLora(path)], control=True)
    refill_generator(generator, files, [UserLora(path, 2.0)], branch=branch)
    assert all(torch.equal(tensor, plain[key]) for key, tensor in stored(branch).items())


def test_8_bits_follow_a_lora(with_control, tmp_path):
    files, path = locate(with_control, control=True), tmp_path / "style.safetensors"
    name = BLOCK.removesuffix(".weight")
    save_file({f"{name}.lora_A.weight": torch.randn(2, 256), f"{name}.lora_B.weight": torch.randn(256, 2)}, path)
    branch = load_control(files, "cpu", torch.float32)
    branch.hold_int8()
    before = branch.blocks[0].qkv.int8_weight.clone()
    refill_generator(load_generator(files, "cpu", torch.float32), files, [UserLora(path)], branch=branch)
    loaded = load_control(files, "cpu", torch.float32, loras=[UserLora(path)])
    loaded.hold_int8()
    assert torch.equal(branch.blocks[0].qkv.int8_weight, loaded.blocks[0].qkv.int8_weight)
    assert not torch.equal(before, branch.blocks[0].qkv.int8_weight)
