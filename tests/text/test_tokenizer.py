"""Prompt to ids: what umT5's tokenizer promises, and the same ids as transformers gives."""

import base64
import json
import struct

import pytest

from longlive_optimized.text.tokenizer import EOS, Tokenizer, _errors

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


def test_what_is_left_out_is_said_once(tokenizer_folder, caplog):
    tokenizer = Tokenizer(tokenizer_folder, text_len=8)
    whole = Tokenizer(tokenizer_folder)("w x y z " * 5)
    for _ in range(3):
        ids = tokenizer("w x y z " * 5)
    assert ids == [*whole[:7], EOS]
    said = f"the prompt has {len(whole)} tokens: the last {len(whole) - 8} are left out (w x y z w x y z w x y"
    assert len(caplog.records) == 1 and caplog.records[0].message.startswith(said)
    tokenizer("v " * 50)
    assert len(caplog.records) == 2  # another prompt
    assert len(tokenizer("w")) <= 8 and len(caplog.records) == 2


def edited(raw, path, value):
    """``raw`` with what is at ``path`` replaced by ``value``."""
    raw = json.loads(json.dumps(raw))
    place = raw
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return raw


def trie(units, texts=b"x\0"):
    return base64.b64encode(struct.pack(f"<L{len(units)}L", 4 * len(units), *units) + texts).decode()


def sequence(*steps):
    return {"type": "Sequence", "normalizers": list(steps)}


def replace(pattern, content=""):
    return {"type": "Replace", "pattern": pattern, "content": content}


GROWING = replace({"String": "a"}, "aaaaaaaa")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["normalizer"], replace({"String": "a"}, "a" * 9), r"normalizer\.content must be a text of at most 8"),
        (["normalizer"], sequence(GROWING, GROWING, GROWING), "may make a text 512 times as long"),
        (["normalizer"], sequence(*[{"type": "NFC"}] * 17), r"normalizer\.normalizers must be a list of at most 16"),
        (["normalizer"], replace({"Regex": "(a+)+$"}), r"normalizer\.pattern must be a repeated character"),
        (["normalizer"], replace({"Regex": ".*.*x"}), "repeated character"),
        (["normalizer"], replace({"Regex": "a{1000000000}"}), "repeated character"),
        (["normalizer"], replace({"String": ""}), "must not be empty"),
        (["normalizer"], {"type": "ByteLevel"}, r"normalizer\.type must be one of"),
        (["normalizer"], sequence(sequence(sequence(sequence()))), "must be one of"),
        (["normalizer"], {"type": "Prepend", "prepend": "a" * 9}, r"normalizer\.prepend"),
        (["normalizer"], {"type": "Precompiled", "precompiled_charsmap": "!"}, "precompiled_charsmap is damaged"),
        (["normalizer"], {"type": "Precompiled", "precompiled_charsmap": None}, "precompiled_charsmap is damaged"),
        (["normalizer"], {"type": "Precompiled", "precompiled_charsmap": trie([])}, "leads outside"),
        (["normalizer"], {"type": "Precompiled", "precompiled_charsmap": trie([1 << 20] * 256)}, "leads outside"),
        (["normalizer"], {"type": "Precompiled", "precompiled_charsmap": trie([0x100] * 256)}, "point to no text"),
        (["normalizer"], {"type": "Precompiled", "precompiled_charsmap": trie([0xFFFFFFFF] * 256)}, "leads outside"),
        (["pre_tokenizer"], {"type": "Split"}, r"pre_tokenizer\.type must be one of"),
        (["pre_tokenizer", "replacement"], "ab", r"pre_tokenizer\.replacement"),
        (["post_processor"], [], "post_processor must be"),
        (
            ["post_processor", "special_tokens", "</s>", "ids"],
            [1 << 20],
            r"special_tokens\['</s>'\]\.ids must be a whole",
        ),
        (["post_processor", "single"], [{"Sequence": {"id": "A", "type_id": 0}}], "must append </s>"),
        (
            ["added_tokens", 2, "id"],
            10**9,
            r"added_tokens\[2\]\.id must be a whole number from 0 to \d+, got 1000000000",
        ),
        (["model", "type"], "BPE", r"model\.type must be Unigram"),
        (["model", "unk_id"], None, r"model\.unk_id must be a whole number"),
        (["model", "unk_id"], 1 << 63, r"model\.unk_id must be a whole number"),
        (
            ["model", "vocab", 7, 1],
            "x",
            r"model\.vocab\[7\] must be a text of at most 256 characters and a finite number",
        ),
        (["model", "vocab", 7, 0], "a" * 257, r"model\.vocab\[7\] must be a text of at most 256 characters"),
        (["added_tokens", 0, "content"], "a" * 257, r"added_tokens\[0\]\.content"),
        (["model", "vocab", 7], ["x"], r"model\.vocab\[7\]"),
        (["model", "vocab"], {}, r"model\.vocab must be a list"),
    ],
)
def test_parts_that_are_not_plain(tmp_path, tokenizer_folder, path, value, message):
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(edited(json.loads((tokenizer_folder / "tokenizer.json").read_text()), path, value)))
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer(tmp_path)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        sequence({"type": "Precompiled", "precompiled_charsmap": trie([0] * 256)}, {"type": "NFKC"}),
        sequence(replace({"Regex": " {2,}"}, "▁"), {"type": "Strip", "strip_left": False, "strip_right": True}),
        sequence(replace({"Regex": "\\s+"}, " "), replace({"String": "``"}, '"'), {"type": "Lowercase"}),
    ],
)
def test_steps_that_umt5_is_made_of(tmp_path, tokenizer_folder, value):
    raw = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    long = {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None}
    raw |= {"normalizer": value, "padding": long | {"pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}}
    raw["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, raw["pre_tokenizer"]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    assert Tokenizer(tmp_path)("a fox")[-1] == EOS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deep"),
        (" " * ((1 << 26) + 1), "is larger than"),
        ("[1]", "must hold a JSON object, got a list"),
        ('{"a": NaN}', "NaN is no number"),
    ],
)
def test_what_is_no_json_object(tmp_path, text, message):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        Tokenizer(tmp_path)


def test_a_panic_of_the_library():
    class PanicException(BaseException):  # the library's own cannot be imported
        pass

    with pytest.raises(ValueError, match="x cannot be read: index out"), _errors("x cannot be read"):
        raise PanicException("index out of bounds")
    with pytest.raises(KeyboardInterrupt), _errors("x"):
        raise KeyboardInterrupt
