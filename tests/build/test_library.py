"""The compiled library: what it needs, what it holds, and that no kernel spills."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from longlive_optimized.kernels import native

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"


@pytest.fixture(scope="module")
def library() -> Path:
    if not native.load():
        pytest.skip("built without nvcc")
    import longlive_optimized._C as library

    return Path(library.__file__)


def cuobjdump() -> str:
    """From CUDA, or the one that comes with Triton."""
    found = shutil.which("cuobjdump")
    if found is None:
        triton = pytest.importorskip("triton")
        found = str(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")
    if not Path(found).is_file():
        pytest.skip("no cuobjdump")
    return found


def test_registers_what_it_declares(library):
    import longlive_optimized._C as module

    assert module.build_info()["cuda"] >= 12000
    schema = torch.ops.longlive_C.qk_norm_rope_store.default._schema
    written = [a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write]
    assert written == ["k_ring", "v_ring", "k_sink"]
    assert torch.ops.longlive_C.modulate_norm.default._schema.arguments[0].name == "x"


def test_needs_no_torch_newer_than_2_9(library):
    if shutil.which("torch-abi-audit", path=Path(sys.executable).parent) is None:
        pytest.skip("torch-abi-audit is not installed")
    command = [Path(sys.executable).parent / "torch-abi-audit", "--check", "torch", library]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Min torch:\s+2\.9\.", done.stdout), done.stdout


def test_no_kernel_spills(library):
    dump = subprocess.run([cuobjdump(), "-res-usage", library], capture_output=True, text=True, check=True).stdout
    kernels = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+)", dump)
    operators = re.findall(r'm\.def\(\s*"(\w+)\(', (CSRC / "register.cpp").read_text())
    assert operators
    for operator in operators:
        [source] = (path for path in CSRC.glob("*/*.cu") if f'm.impl("{operator}"' in path.read_text())
        assert any(f"{source.stem}_kernel" in name for name, _, _ in kernels), operator
    for name, registers, stack in kernels:
        assert stack == "0", name
        # 32 warps of 64 registers fill a multiprocessor: enough loads in flight to keep memory busy. The kernels with
        # products have one CTA there, of 384 threads with 168 registers or 512 with 128, which they share out anew.
        shared_out = re.search("(ring_attention|ring_attention_fp8|causal_conv|int8_linear)_kernel", name)
        most = 168 if shared_out else 64 if "bfloat16" in name else 96
        if "kernel_int8" in name or "quantize_keys" in name:
            most = max(most, 80)  # 24 warps: they keep their keys until the scales of eight are known
        assert int(registers) <= most, name


@pytest.fixture(scope="module")
def kernels(library) -> list[str]:
    """Machine code, each beginning with its name."""
    code = subprocess.run([cuobjdump(), "-sass", library], capture_output=True, text=True, check=True).stdout
    return code.split("Function : ")[1:]


def products(kernel: str) -> tuple[int, int]:
    """How many there are, and how many signal: the last of a group. Where registers are short each does, and waits."""
    assert "UTMALDG" in kernel and not re.search(r"\b(LDL|STL|HMMA)\b", kernel)
    found = [line for line in kernel.splitlines() if re.search(r"\b[HIQ]GMMA", line)]
    return len(found), sum("gsb0" in line for line in found)


def test_attention_runs_on_hoppers_own_units(kernels):
    found = [products(k) for k in kernels if "ring_attention_kernel" in k.split("\n", 1)[0]]
    assert sorted(found) == [(2 * (8 + 12), 4), (3 * (4 + 12), 6)]  # of bfloat16, and of int8 with bfloat16 values


def test_attention_with_values_in_8_bits_runs_on_hoppers_own_units(kernels):
    """q k^T in five places, p v and the sums of p in four: tiles' halves in the loop, and each half alone."""
    [kernel] = (k for k in kernels if "ring_attention_fp8_kernel" in k.split("\n", 1)[0])
    assert products(kernel) == (5 * 4 + 4 * (2 + 2), 5 + 4)
    assert len(re.findall("IGMMA", kernel)) == 5 * 4 and len(re.findall("QGMMA", kernel)) == 4 * (2 + 2)


def test_convolution_runs_on_hoppers_own_units(kernels):
    """Two products of each block of pixels in one group, but all nine taps at once for pictures; of int8 three."""
    found = [products(k) for k in kernels if "causal_conv_kernel" in k.split("\n", 1)[0]]
    assert sorted(found) == [(2, 1), (3, 1), *[(4, 1)] * 3, (6, 1), (8, 1), (8, 1), (12, 1), (9 * 8, 1)]


def test_int8_products_run_on_hoppers_own_units(kernels):
    """Four in a stage: first and later ones of a group, or of four groups in the loop with two sets of sums; or one for
    each slot of the epilogue before, and later ones. No fence of the whole chip."""
    found = [k for k in kernels if "int8_linear_kernel" in k.split("\n", 1)[0]]
    of_slots = [(4 * (slots + 1), slots + 1) for slots in (6, 7, 12)]
    assert sorted(products(k) for k in found) == sorted([(8, 2), (4 * 8, 4 * 2), *of_slots])
    assert not any("MEMBAR.ALL.GPU" in k for k in found)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_machine_has_the_library():
    """Guards against a suite that passes on references alone."""
    assert native.load(), "the CUDA library was not built: install again where nvcc is (CUDACXX or PATH)"
