import pytest

from longlive_optimized.weights.random_tokenizer import write_tokenizer


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "google" / "umt5-xxl"
    write_tokenizer(folder)
    return folder
