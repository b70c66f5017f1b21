"""The parts of csrc/common that kernels share: products in every type, and types that do not compile."""

import shutil
import subprocess

import pytest
import torch

from support.emulated import NATIVE, ROOT, compiler, run, run_on_a_cpu


def test_products_on_a_cpu(tmp_path):
    run_on_a_cpu(tmp_path, "products.cu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_products_on_hopper(tmp_path):
    if shutil.which("nvcc") is None or torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("no nvcc, or no Hopper")
    flags = ["-std=c++20", "-gencode=arch=compute_90a,code=sm_90a", "--expt-relaxed-constexpr", f"-I{ROOT / 'csrc'}"]
    run("nvcc", *flags, NATIVE / "products.cu", "-o", tmp_path / "products")
    run(tmp_path / "products")


@pytest.mark.parametrize(
    ("header", "use", "message"),
    [
        ("vec.cuh", "Vec<int8_t> x;", "Vec converts float32 and bfloat16"),
        ("sm90/tensor_map.h", "auto x = sm90::matrix_map<float>(nullptr, 1, 1, 1, 1);", "all types of one byte"),
    ],
    ids=["vec", "tensor_map"],
)
def test_a_type_that_would_be_misread_does_not_compile(tmp_path, header, use, message):
    source = tmp_path / "source.cpp"
    source.write_text(f'#include "common/{header}"\nnamespace longlive {{\n{use}\n}}\n')
    done = subprocess.run([*compiler(), "-fsyntax-only", source], capture_output=True, text=True)
    assert done.returncode != 0 and message in done.stderr, done.stderr
