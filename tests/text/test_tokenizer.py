"""Prompt to ids: what umT5's tokenizer promises, and the same ids as transformers gives."""

import json

import pytest

from longlive_optimized.text.tokenizer import EOS, Tokenizer

PROMPTS = ["A fox steps out of the snow.", "日本の海 ☃ café", "x", "word " * 2000, "Neon lights &amp; rain\n on  glass"]


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder):
    return Tokenizer(tokenizer_folder)


def test_same_ids_as_transformers(tokenizer, tokenizer_folder):
    from transformers import AutoTokenizer

    from longlive_optimized.text.clean import clean

    other = AutoTokenizer.from_pretrained(str(tokenizer_folder), local_files_only=True)
    for prompt in PROMPTS:
        padded = other(clean(prompt), truncation=True, max_length=512, padding="max_length", add_special_tokens=True)
        ids = tokenizer(prompt)
        assert padded["input_ids"] == ids + [0] * (512 - len(ids))
        assert sum(padded["attention_mask"]) == len(ids)


def test_ends_and_truncates(tokenizer):
    long = tokenizer("word " * 2000)
    assert len(long) == 512
    assert all(tokenizer(prompt).count(EOS) == 1 and tokenizer(prompt)[-1] == EOS for prompt in PROMPTS)
    assert all(3 <= id < tokenizer.vocabulary for prompt in PROMPTS for id in tokenizer(prompt)[:-1])  # never unknown


def test_shorter_text_len(tokenizer_folder):
    ids = Tokenizer(tokenizer_folder, text_len=8)("a b c d e f g h i j k")
    assert len(ids) == 8 and ids[-1] == EOS


def test_different_texts_have_different_ids(tokenizer):
    assert tokenizer("日") != tokenizer("月")
    assert tokenizer("A cat") != tokenizer("a cat")


def test_bad_folders(tmp_path, tokenizer_folder):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")
    with pytest.raises(ValueError, match="cannot be read"):
        Tokenizer(tmp_path)
    content = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    file.write_text(json.dumps(content | {"post_processor": None}))
    with pytest.raises(ValueError, match=r"appends? </s>"):
        Tokenizer(tmp_path)
