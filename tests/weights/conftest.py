import shutil

import pytest
import torch

from longlive_optimized.weights.load import load_generator
from longlive_optimized.weights.locate import locate
from longlive_optimized.weights.random_checkpoint import make_checkpoint
from support.networks import stored


@pytest.fixture(scope="session")
def pristine(tmp_path_factory):
    """A tiny checkpoint; nobody may write to it."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "pristine", "tiny")


@pytest.fixture
def folder(pristine, tmp_path):
    """A copy of it, to be spoiled."""
    return shutil.copytree(pristine, tmp_path / "model")


@pytest.fixture
def files(folder):
    return locate(folder)


@pytest.fixture
def edit():
    """``edit(path, function)`` saves a torch file's content as the function leaves it, or what it returns instead."""

    def change(path, function):
        content = torch.load(path, weights_only=True)
        changed = function(content)
        torch.save(content if changed is None else changed, path)

    return change


@pytest.fixture(scope="session")
def model_files(pristine):
    return locate(pristine)


@pytest.fixture(scope="session")
def plain(model_files):
    """The generator without users' LoRAs, float32; nobody may write to it."""
    return stored(load_generator(model_files, "cpu", torch.float32))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "style.safetensors"
