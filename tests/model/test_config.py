"""config.json: the published one is read, and no number in it can cost time, memory or another picture."""

import json

import pytest

from longlive_optimized.model.config import ModelConfig

PUBLISHED = {
    "_class_name": "WanModel",
    "_diffusers_version": "0.30.0",
    "dim": 1536,
    "eps": 1e-06,
    "ffn_dim": 8960,
    "freq_dim": 256,
    "in_dim": 16,
    "model_type": "t2v",
    "num_heads": 12,
    "num_layers": 30,
    "out_dim": 16,
    "text_len": 512,
}
WHOLE = ["dim", "ffn_dim", "freq_dim", "in_dim", "num_heads", "num_layers", "out_dim", "text_len"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "config.json"


def refused(path, text, message):
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        ModelConfig.from_json(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 500


def test_the_published_one(path):
    path.write_text(json.dumps(PUBLISHED))
    assert ModelConfig.from_json(path) == ModelConfig()
    path.write_text("\ufeff" + json.dumps(PUBLISHED))  # as some editors save it
    assert ModelConfig.from_json(path) == ModelConfig()


@pytest.mark.parametrize("field", WHOLE)
@pytest.mark.parametrize(
    "value",
    [
        "1e999",
        "0",
        "-1",
        "1536.0",
        "0.5",
        str(2**63),
        "1000000000",
        "1" + "0" * 400,
        '"12"',
        "null",
        "true",
        "[]",
        "{}",
    ],
)
def test_numbers_that_are_none(path, field, value):
    text = json.dumps(PUBLISHED | {field: "@"}).replace('"@"', value)
    refused(path, text, f"{field} must be a whole number from 1 to [0-9]+, got ")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1" + "0" * 5000])
def test_numbers_that_are_no_json(path, value):
    refused(path, json.dumps(PUBLISHED | {"dim": "@"}).replace('"@"', value), "is not valid JSON")


@pytest.mark.parametrize("value", ["1e-5", "0", "1", "1e999", "true", "null", "[]"])
def test_eps(path, value):
    refused(path, json.dumps(PUBLISHED | {"eps": "@"}).replace('"@"', value), "eps must be ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 6}, "num_heads must be 12 where dim is 1536, got 6"),
        ({"num_heads": 24}, "num_heads must be 12 where dim is 1536, got 24"),
        ({"text_len": 511}, "text_len must be 512 beside umT5-XXL, got 511"),
        ({"freq_dim": 255}, "freq_dim must be even, got 255"),
        ({"num_layers": 129}, "num_layers must be a whole number from 1 to 128, got 129"),
        ({"text_dim": 1 << 20}, "text_dim must be a whole number"),
    ],
)
def test_what_no_tensor_could_tell(path, change, message):
    refused(path, json.dumps(PUBLISHED | change), message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested too deep"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deep"),
        (" " * ((1 << 20) + 1), "is larger than 1048576 bytes"),
        ("null", "must hold a JSON object, got None"),
        ("{}", "lacks dim, ffn_dim"),
    ],
)
def test_what_is_no_config(path, text, message):
    refused(path, text, message)


def test_a_sparse_gigabyte(path):
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ValueError, match="is larger than"):
        ModelConfig.from_json(path)
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        ModelConfig.from_json(path)
