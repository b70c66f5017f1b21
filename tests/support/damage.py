"""Damage to a model's files: seeded, one kind at a time, as disks, downloads, tools and people do it.

``damage(folder, seed)`` spoils one file of a model's folder and says which, how, and what may follow.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

# What a damaged file that is not refused may do: docs/api.md says so.
VERIFY = "found by doctor --verify"
NO_CHECKSUM = "the format has no checksum"
SAME = "must be refused, or make the same picture"

GENERATOR = Path("longlive_models/models/longlive_base.pt")
LORA = Path("longlive_models/models/lora.pt")
VAE = Path("wan_models/Wan2.1-T2V-1.3B/Wan2.1_VAE.pth")
TEXT = Path("wan_models/Wan2.1-T2V-1.3B/models_t5_umt5-xxl-enc-bf16.pth")
CONFIG = Path("wan_models/Wan2.1-T2V-1.3B/config.json")
TOKENIZER = Path("wan_models/Wan2.1-T2V-1.3B/google/umt5-xxl/tokenizer.json")
FP8 = Path("WanVideo_comfy/umt5-xxl-enc-fp8_e4m3fn.safetensors")
USER_LORA = Path("style.safetensors")
ARCHIVES = GENERATOR, LORA, VAE, TEXT


class Damage(NamedTuple):
    path: Path
    kind: str
    may: str


Kind = Callable[[Path, random.Random], "str | None"]  # spoils the file; returns what may follow if not the table's
NUMBERS = (
    "1e999",
    "-1e999",
    "NaN",
    "Infinity",
    "0",
    "-1",
    "1",
    "2",
    "3",
    "7",
    "0.5",
    "1e-300",
    "12.0",
    "9223372036854775808",
    "1000000000",
    "4294967296",
    "65536",
    "1e400",
    "1" + "0" * 400,
    "1" + "0" * 5000,
    '"12"',
    "null",
    "true",
    "[]",
    "{}",
    '"\\ud800"',
)


def _bytes(change: Callable[[bytearray, random.Random], object]) -> Kind:
    def spoil(path: Path, rng: random.Random) -> None:
        data = bytearray(path.read_bytes())
        change(data, rng)
        path.write_bytes(data)

    return spoil


def _flip(data: bytearray, rng: random.Random, start: int = 0, end: int | None = None) -> None:
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        data[rng.randrange(start, len(data) if end is None else end)] ^= 1 << rng.randrange(8)


def _flip_directory(data: bytearray, rng: random.Random) -> None:
    _flip(data, rng, max(data.find(b"PK\1\2"), 0))


def _flip_header(data: bytearray, rng: random.Random) -> None:
    places = [i for i in range(0, len(data)) if data.startswith(b"PK\3\4", i)] if len(data) < 1 << 19 else [0]
    start = rng.choice(places)
    _flip(data, rng, start, start + 40)


def _flip_beginning(data: bytearray, rng: random.Random) -> None:
    _flip(data, rng, 0, min(len(data), 20000))


def _zero_page(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data)) // 4096 * 4096
    data[start : start + 4096] = bytes(len(data[start : start + 4096]))


def _swap_pages(data: bytearray, rng: random.Random) -> None:
    a, b = (rng.randrange(max(1, len(data) // 4096)) * 4096 for _ in range(2))
    one, two = data[a : a + 4096], data[b : b + 4096]
    if len(one) == len(two):
        data[a : a + 4096], data[b : b + 4096] = two, one


def _insert(data: bytearray, rng: random.Random) -> None:
    place = rng.randrange(len(data))
    data[place:place] = rng.randbytes(rng.choice((1, 2, 8, 4096)))


def _remove(data: bytearray, rng: random.Random) -> None:
    place = rng.randrange(len(data))
    del data[place : place + rng.choice((1, 2, 8, 4096))]


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def _append(data: bytearray, rng: random.Random) -> None:
    data += rng.choice((b"\0", b"\n", bytes(4096), rng.randbytes(100), bytes(data)))


def _carriage_returns(data: bytearray, rng: random.Random) -> None:
    data[:] = data.replace(b"\n", b"\r\n")


def _replace(data: bytearray, rng: random.Random) -> None:
    data[:] = rng.choice(
        (
            b"",
            b"\0" * len(data),
            rng.randbytes(5000),
            b"<html>404</html>",
            b"PK\5\6" + bytes(18),
            b"\x80\x02}.",
            b"{}",
            b"[]",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n",
            b"\x1f\x8b" + rng.randbytes(100),
            b"PK\3\4" * 1000,
        )
    )


def _lying_entry(data: bytearray, rng: random.Random) -> None:
    """One field of one entry of the archive's directory."""
    places = [i for i in range(data.find(b"PK\1\2"), len(data)) if data.startswith(b"PK\1\2", i)]
    start = rng.choice(places)
    offset, form = rng.choice(
        ((8, "<H"), (10, "<H"), (16, "<L"), (20, "<L"), (24, "<L"), (28, "<H"), (30, "<H"), (42, "<L"))
    )
    (old,) = struct.unpack_from(form, data, start + offset)
    top = (1 << 8 * struct.calcsize(form)) - 1
    new = rng.choice((0, 1, top, top >> 1, old // 2, min(old * 2, top), max(old - 64, 0), min(old + 64, top), old ^ 8))
    struct.pack_into(form, data, start + offset, new)
    if offset == 20 and rng.random() < 0.7:  # both sizes, as one who means it
        struct.pack_into(form, data, start + 24, new)


def _rezip(path: Path, rng: random.Random) -> str | None:
    """The archive written again by another tool, with one record changed."""
    how = rng.choice(
        (
            "half",
            "empty",
            "double",
            "gone",
            "compressed",
            "all compressed",
            "renamed",
            "twice",
            "as it was",
            "pickle gone",
        )
    )
    with zipfile.ZipFile(path) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    chosen = rng.choice([name for name, body in records if "/data/" in name and body])
    with zipfile.ZipFile(path, "w") as archive:
        for name, body in records:
            packed = zipfile.ZIP_DEFLATED if how == "all compressed" or (how == "compressed" and name == chosen) else 0
            if name == chosen:
                body = {"half": body[: len(body) // 2], "empty": b"", "double": body * 2}.get(how, body)
                if how == "gone":
                    continue
                name = name + "x" if how == "renamed" else name
            if how == "pickle gone" and name.endswith("data.pkl"):
                continue
            archive.writestr(name, body, packed)
            if how == "twice" and name == chosen:
                archive.writestr(name.upper() if rng.random() < 0.5 else name, body[::-1])
    return None


class _Marker:
    def __reduce__(self):
        return os.mkdir, ("/nonexistent/never",)


def _content(path: Path, rng: random.Random) -> str | None:
    """What torch.save wrote of something else than plain tensors by name."""
    content = torch.load(path, weights_only=True)
    holder = next((content[name] for name in ("generator", "generator_lora") if name in content), content)
    key = rng.choice(list(holder))
    tensor, may = holder[key], SAME

    def sparse(t):
        return t.float().reshape(len(t), -1).to_sparse() if t.ndim else t.float().reshape(1).to_sparse()

    changes = {
        "sparse": sparse,
        "csr": lambda t: t.float().reshape(t.shape[0], -1).to_sparse_csr() if t.ndim else sparse(t),
        "nested": lambda t: torch.nested.nested_tensor([t.float().flatten(), t.float().flatten()[:1]]),
        "meta": lambda t: t.to("meta"),
        "quantized": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
        "int": lambda t: t.to(torch.int32),
        "complex": lambda t: t.to(torch.complex64),
        "bool": lambda t: t.bool(),
        "e8m0": lambda t: t.float().abs().to(torch.float8_e8m0fnu),
        "expanded": lambda t: torch.zeros(1).expand(1 << 40),
        "expanded more": lambda t: torch.zeros(1, 1).expand(1 << 30, 1 << 12),
        "empty": lambda t: t.reshape(-1)[:0],
        "scalar": lambda t: t.reshape(-1)[0].clone(),
        "nan": lambda t: torch.full_like(t, float("nan")),
        "infinite": lambda t: torch.full_like(t, float("inf")),
        "huge": lambda t: torch.full_like(t.double(), 1e300),
        "number": lambda t: 3,
        "none": lambda t: None,
        "text": lambda t: "weights",
        "object": lambda t: _Marker(),
        "path": lambda t: Path("x"),
        "numpy": lambda t: t.float().numpy(),
        "bytes": lambda t: bytearray(b"x" * 100),
        "turned": lambda t: t.t().contiguous().t() if t.ndim == 2 else t,
        "parameter": torch.nn.Parameter,
        "wider": lambda t: torch.cat((t, t)) if t.ndim else t,
        "more dimensions": lambda t: t[None],
    }
    kind = rng.choice(
        [
            *changes,
            "gone",
            "int key",
            "bytes key",
            "none key",
            "extra",
            "long name",
            "deep",
            "itself",
            "list",
            "bare",
            "old",
        ]
    )
    if kind in changes:
        holder[key] = changes[kind](tensor)
    elif kind == "gone":
        del holder[key]
    elif kind.endswith(" key"):
        holder[{"int key": 7, "bytes key": b"x", "none key": None}[kind]] = tensor
    elif kind == "extra":
        holder["surplus.weight"] = torch.zeros(1)
    elif kind == "long name":
        holder["x" * 1_000_000] = tensor
    elif kind == "deep":
        nested = []
        for _ in range(400):
            nested = [nested]
        holder["deep"] = nested
    elif kind == "itself":
        holder["itself"] = holder
    elif kind == "list":
        content = list(holder.values())
    elif kind == "bare":
        content = tensor
    old = kind == "old" or rng.random() < 0.15
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    if old and rng.random() < 0.5:
        data = bytearray(path.read_bytes())
        rng.choice((_flip, _flip_beginning, _cut, _insert, _remove, _append))(data, rng)
        path.write_bytes(data)
        may = NO_CHECKSUM
    return may


def _hostile_pickle(path: Path, rng: random.Random) -> None:
    """``data.pkl`` by hand."""
    pickles = (
        b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        b"\x80\x02}q\x00r\xff\xff\xff\xff.",
        b"\x80\x02c__builtin__\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R.",
        b"\x80\x02X\xff\xff\xff\x7fabc.",
        b"\x80\x02(X\x07\x00\x00\x00storageQ.",
        b"\x80\x02K\x01Q.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(tR.",
        b"\x80\x02ccollections\nOrderedDict\nK\x05\x85R.",
        b"\x80\x02ctorch\nSize\nK\x05\x85R.",
        b"\x80\x02.",
        b"\x80\x02}",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f}.",
        pickle.dumps({"a": 1}, 4),
        b"0" * 100,
    )
    with zipfile.ZipFile(path) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    body = rng.choice(pickles)
    with zipfile.ZipFile(path, "w") as archive:
        for name, old in records:
            archive.writestr(name, body if name.endswith("/data.pkl") else old)


def _sparse_file(path: Path, rng: random.Random) -> None:
    if rng.random() < 0.5:
        path.write_bytes(b"")
    os.truncate(path, 1 << 30)


def _config_value(path: Path, rng: random.Random) -> None:
    """One number of config.json is another."""
    raw = json.loads(path.read_text())
    field = rng.choice([key for key in raw if key != "model_type"])
    raw[field] = "@"
    path.write_text(
        json.dumps(raw).replace('"@"', rng.choice((*NUMBERS, str(rng.randrange(10_000)), str(1 << rng.randrange(63)))))
    )


def _json_shape(path: Path, rng: random.Random) -> None:
    text = path.read_text()
    deep = "[" * 100_000 + "]" * 100_000
    path.write_text(
        rng.choice(
            (
                deep,
                '{"a":' * 100_000 + "1" + "}" * 100_000,
                f"[{text}]",
                text[:-3],
                text + text,
                "\ufeff" + text,
                "null",
                "1",
                text.replace(":", f': {deep},"x":', 1),
                text.replace('"', "'"),
                "//c\n" + text,
            )
        ),
        encoding=rng.choice(("utf-8", "utf-8", "utf-8", "utf-16", "utf-32")),
    )


def _trie(units: list[int], texts: bytes) -> str:
    return base64.b64encode(struct.pack(f"<L{len(units)}L", 4 * len(units), *units) + texts).decode()


def _tokenizer_value(path: Path, rng: random.Random) -> None:
    """One part of tokenizer.json is another."""
    raw = json.loads(path.read_text())
    model, vocabulary = raw["model"], raw["model"]["vocab"]
    number = rng.choice((0, -1, 1, 7, 10**9, 2**31, 2**32, 2**63, 2**64, 10**30, 1.5, "1", None, [], True))
    piece = rng.randrange(len(vocabulary))
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": " " * 10 ** rng.randrange(7)}
    growing = {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaa"}
    regex = rng.choice(
        ("(a+)+$", "(a|a)*b", "(.*)*x", "[", "(?=", " {2,}", "\\p{L}+", "x{0,1000000}", "(?R)", "a{999999999}")
    )
    maps = (
        "",
        "AAAA",
        "!!!",
        _trie([], b""),
        _trie([0] * 256, b"x\0"),
        _trie([1 << 10] * 256, b""),
        _trie([0xFFFFFFFF] * 256, b"x"),
        _trie([rng.getrandbits(32) for _ in range(512)], b"x\0" * 50),
        _trie([0x7FFFFFFF] * 256, b""),
        7,
        None,
        _trie([0x100] * 256, b"\0"),
        base64.b64encode(b"\xff\xff\xff\xff" + bytes(100)).decode(),
        base64.b64encode(b"\1\0\0\0" + bytes(3)).decode(),
    )
    kind = rng.choice(
        (
            "padding",
            "truncation",
            "replace",
            "growing",
            "regex",
            "split",
            "map",
            "added id",
            "unk",
            "score",
            "pieces",
            "piece",
            "template id",
            "no template",
            "template",
            "model",
            "steps",
            "deep steps",
            "prepend",
            "metaspace",
            "long piece",
            "field",
        )
    )
    if kind == "padding":
        raw["padding"] = {
            "strategy": {"Fixed": number},
            "direction": "Right",
            "pad_to_multiple_of": rng.choice((None, number)),
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<pad>",
        }
    elif kind == "truncation":
        raw["truncation"] = {
            "direction": "Right",
            "max_length": number,
            "strategy": "LongestFirst",
            "stride": rng.choice((0, number)),
        }
    elif kind in ("replace", "growing", "regex", "map", "prepend"):
        step = {
            "replace": replace,
            "growing": {"type": "Sequence", "normalizers": [growing] * rng.randrange(1, 20)},
            "regex": replace | {"pattern": {"Regex": regex}, "content": "a"},
            "map": {"type": "Precompiled", "precompiled_charsmap": rng.choice(maps)},
            "prepend": {"type": "Prepend", "prepend": "a" * 10 ** rng.randrange(8)},
        }[kind]
        raw["normalizer"] = (
            {"type": "Sequence", "normalizers": [raw["normalizer"], step]} if raw["normalizer"] else step
        )
    elif kind == "split":
        raw["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    elif kind == "added id":
        raw["added_tokens"][rng.randrange(3)]["id"] = number
    elif kind == "unk":
        model["unk_id"] = rng.choice((number, len(vocabulary), len(vocabulary) - 1))
    elif kind == "score":
        vocabulary[piece][1] = rng.choice((1e308, -1e308, number, 1e-320))
    elif kind == "pieces":
        model["vocab"] = rng.choice((vocabulary[:piece], vocabulary * 2, [], vocabulary * 40, {"a": 1}, None, [[]] * 9))
    elif kind == "piece":
        vocabulary[piece] = rng.choice(
            (["", 0.0], [7, 0.0], ["x"], None, ["\u0000", -1.0], vocabulary[0], ["a", -1.0, 2])
        )
    elif kind == "template id":
        raw["post_processor"]["special_tokens"]["</s>"]["ids"] = rng.choice(
            ([number], [1, 1], [], [5], [len(vocabulary)], [1] * 10**6)
        )
    elif kind == "no template":
        raw["post_processor"] = rng.choice((None, [], {"type": "ByteLevel"}, {}))
    elif kind == "template":
        raw["post_processor"]["single"] = rng.choice(
            (raw["post_processor"]["single"] * 2, [], raw["post_processor"]["single"][::-1], number)
        )
    elif kind == "model":
        model["type"] = rng.choice(("BPE", "WordPiece", "WordLevel", None, 7, "unigram"))
    elif kind in ("steps", "deep steps"):
        part = rng.choice(("normalizer", "pre_tokenizer"))
        step = raw[part] or {"type": "Lowercase"}
        inside = "normalizers" if part == "normalizer" else "pretokenizers"
        for _ in range(100 if kind == "deep steps" else 1):
            step = {"type": "Sequence", inside: [step] * (1 if kind == "deep steps" else rng.choice((0, 1, 2, 10_000)))}
        raw[part] = step
    elif kind == "metaspace":
        raw["pre_tokenizer"] = {
            "type": "Metaspace",
            "replacement": rng.choice(("ab", "", "x", 7)),
            "prepend_scheme": "always",
            "split": True,
        }
    elif kind == "long piece":
        vocabulary[piece][0] = "a" * 10 ** rng.randrange(7)
    else:
        raw[rng.choice(list(raw))] = rng.choice((number, {}, "x"))
    path.write_text(json.dumps(raw))


def _header(path: Path, rng: random.Random) -> str:
    """The header of a safetensors file lies."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    names = [name for name in header if name != "__metadata__"]
    entry, other = header[rng.choice(names)], header[rng.choice(names)]
    kind = rng.choice(("length", "offset", "shape", "dtype", "exchange", "metadata", "gone", "name", "bytes", "flip"))
    begin, end = entry["data_offsets"]
    if kind == "offset":
        entry["data_offsets"] = rng.choice(
            (
                [begin, end // 2],
                [end, begin],
                [begin - 64, end - 64],
                [0, 2**63],
                [-1, end],
                [begin, end + 2**40],
                [0, 0],
            )
        )
    elif kind == "shape":
        entry["shape"] = rng.choice(
            (entry["shape"][::-1], [], [0], [2**40, 2**40], [-1], [1.5], "x", [1, *entry["shape"]])
        )
    elif kind == "dtype":
        entry["dtype"] = rng.choice(("F8_E5M2", "I8", "U8", "F64", "F8_E8M0", "F4", "BOOL", "x", None, 7))
    elif kind == "exchange":
        entry["data_offsets"], other["data_offsets"] = other["data_offsets"], entry["data_offsets"]
    elif kind == "metadata":
        header["__metadata__"] = rng.choice(({"a": 1}, [], "x", {"a": "b" * 10**6}, None))
    elif kind == "gone":
        del header[rng.choice(names)]
    elif kind == "name":
        header[rng.choice(("", "x" * 100_000, "\u0000"))] = header.pop(rng.choice(names))
    text = bytearray(json.dumps(header).encode())
    if kind == "flip":
        _flip(text, rng)
    length = rng.choice((0, 1, size + 8, 2**63, 2**32, 2**64 - 1, size - 1)) if kind == "length" else len(text)
    path.write_bytes(length.to_bytes(8, "little") + text + (rng.randbytes(len(body)) if kind == "bytes" else body))
    return NO_CHECKSUM if kind in ("exchange", "bytes", "flip") else SAME


RAW: list[tuple[str, Kind]] = [
    ("flipped bits", _bytes(_flip)),
    ("zeroed page", _bytes(_zero_page)),
    ("swapped pages", _bytes(_swap_pages)),
    ("inserted bytes", _bytes(_insert)),
    ("removed bytes", _bytes(_remove)),
    ("cut", _bytes(_cut)),
    ("appended", _bytes(_append)),
    ("line ends", _bytes(_carriage_returns)),
    ("something else", _bytes(_replace)),
    ("sparse gigabyte", _sparse_file),
]
ARCHIVE: list[tuple[str, Kind]] = [
    ("flipped bits of the directory", _bytes(_flip_directory)),
    ("flipped bits of a header", _bytes(_flip_header)),
    ("flipped bits of the beginning", _bytes(_flip_beginning)),
    ("lying entry", _bytes(_lying_entry)),
    ("zipped again", _rezip),
    ("content", _content),
    ("pickle", _hostile_pickle),
]
# Of each file: how often it is chosen, its kinds of damage (some several times), what may follow.
FILES: dict[Path, tuple[int, list[tuple[str, Kind]], str]] = {
    GENERATOR: (6, RAW + ARCHIVE, VERIFY),
    LORA: (3, RAW + ARCHIVE, VERIFY),
    VAE: (3, RAW + ARCHIVE, VERIFY),
    TEXT: (3, RAW + ARCHIVE, VERIFY),
    CONFIG: (5, [*RAW, *[("value", _config_value)] * 4, ("shape", _json_shape)], SAME),
    TOKENIZER: (7, [*RAW, *[("value", _tokenizer_value)] * 8, ("shape", _json_shape)], NO_CHECKSUM),
    FP8: (3, [*RAW, *[("header", _header)] * 4], NO_CHECKSUM),
    USER_LORA: (3, [*RAW, *[("header", _header)] * 4], NO_CHECKSUM),
}


def copy_with_checksums(source: Path, target: Path) -> None:
    """Copy a model; its archives are written again, as one that was made at random has no checksums."""
    shutil.copytree(source, target)
    for path in ARCHIVES:
        torch.save(torch.load(target / path, weights_only=True), target / path)
    (target / FP8).parent.mkdir()
    save_file(torch.load(target / TEXT, weights_only=True), target / FP8)
    module, draw = "diffusion_model.blocks.1.self_attn.q", torch.Generator().manual_seed(1)
    halves = {"lora_A": (4, 256), "lora_B": (256, 4)}
    save_file(
        {f"{module}.{half}.weight": torch.randn(shape, generator=draw) / 8 for half, shape in halves.items()}
        | {f"{module}.alpha": torch.tensor(4.0)},
        target / USER_LORA,
    )


def damage(pristine: Path, folder: Path, seed: int) -> Damage:
    """A copy of ``pristine`` in ``folder`` with one file damaged, the same for the same seed."""
    rng = random.Random(seed)
    path = rng.choices(list(FILES), [weight for weight, *_ in FILES.values()])[0]
    _, kinds, may = FILES[path]
    kind, spoil = rng.choice(kinds)
    for file in (file for file in pristine.rglob("*") if file.is_file()):
        relative = file.relative_to(pristine)
        (folder / relative).parent.mkdir(parents=True, exist_ok=True)
        if relative != path and not (path == FP8 and relative == TEXT):
            os.link(file, folder / relative)
    shutil.copy(pristine / path, folder / path)
    may = spoil(folder / path, rng) or may
    if path == CONFIG:
        may = NO_CHECKSUM if _text_len(folder / path) != _text_len(pristine / path) else SAME
    return Damage(path, kind, may)


def _text_len(path: Path) -> object:
    """The one number of a small model's config.json that no shape confirms."""
    try:
        return json.loads(path.read_bytes()[: 1 << 20]).get("text_len")
    except (ValueError, RecursionError, AttributeError):
        return None
