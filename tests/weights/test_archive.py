"""What a torch file's directory must say before it is mapped, and what its checksums find afterwards."""

import hashlib
import re
import struct
import zipfile
import zlib

import pytest
import torch
from safetensors.torch import save_file

from longlive_optimized.weights import CheckpointError
from longlive_optimized.weights.archive import check_archive, verify_archive
from longlive_optimized.weights.files import tensors_in, verify

TENSORS = {
    "model.a": torch.arange(1000.0),
    "model.b": torch.arange(60).bfloat16().view(6, 10),
    "model.c": torch.nn.Parameter(torch.ones(3)),
    "model.d": torch.tensor(2.0),
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"generator": TENSORS, "step": 4, "notes": ["x", None, {"y": 1.5}]}, path)
    return path


def entry(data, name):
    """Where the archive's directory describes a record."""
    return data.rindex(b"weights/" + name) - 46


def rewrite(path, change, compression=zipfile.ZIP_STORED):
    """The archive written again by Python's own library; ``change(name, body)`` gives what is written, or None."""
    with zipfile.ZipFile(path) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, body in records:
            if (body := change(name.partition("/")[2], body)) is not None:
                archive.writestr(name, body)


def refused(path, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        tensors_in(path, ("generator",))
    assert str(path) in str(caught.value)


def test_a_healthy_file(path):
    records = check_archive(path)
    assert {f"data/{i}" for i in range(4)} | {"data.pkl"} < records.keys()
    assert records["data/0"].size == 4000 and verify_archive(path) == 0
    for key, tensor in tensors_in(path, ("generator",)).items():
        assert torch.equal(tensor, TENSORS[key])


def test_archives_of_other_tools_and_settings(path):
    rewrite(path, lambda name, body: body)  # neither alignment nor descriptors
    assert all(torch.equal(tensor, TENSORS[key]) for key, tensor in tensors_in(path, ("generator",)).items())
    assert verify(path) == "all checksums are right"
    for old in (False, True):
        torch.save(TENSORS, path, _use_new_zipfile_serialization=not old)
        assert all(torch.equal(tensor, TENSORS[key]) for key, tensor in tensors_in(path).items())
    assert verify(path) == "has no checksum to compare with"
    torch.save({"a": torch.zeros(4).to(torch.float8_e4m3fn), "b": torch.zeros(0), "c": torch.ones(6, 4)[1:, :2]}, path)
    assert [tuple(tensor.shape) for tensor in tensors_in(path).values()] == [(4,), (0,), (5, 2)]


def test_more_than_4_gib(tmp_path):
    path = tmp_path / "large.pt"
    with torch.serialization.skip_data():  # a hole in the file
        torch.save({"a": torch.empty(7), "b": torch.empty(5 << 30, dtype=torch.uint8), "c": torch.empty(9)}, path)
    records = check_archive(path)
    assert records["data/1"].size == 5 << 30 < records["data/2"].offset
    assert {key: tensor.numel() for key, tensor in tensors_in(path).items()} == {"a": 7, "b": 5 << 30, "c": 9}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: body[: len(body) // 2], "its record data/0 has 2000 bytes, model.a asks for 4000"),
        (lambda body: b"", "its record data/0 has 0 bytes, model.a asks for 4000"),
        (lambda body: body * 2, "its record data/0 has 8000 bytes, model.a asks for 4000"),
        (lambda body: None, "its record data/0 is missing, model.a asks for 4000"),
    ],
)
def test_records_of_another_size(path, change, message):
    rewrite(path, lambda name, body: change(body) if name == "data/0" else body)
    refused(path, message)


def test_compressed_records(path):
    rewrite(path, lambda name, body: body, zipfile.ZIP_DEFLATED)
    refused(path, r"is compressed or encrypted \(weights/data.pkl\)")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (("<H", 10), 8, "compressed or encrypted"),
        (("<H", 8), 0x809, "compressed or encrypted"),
        (("<L", 16), 7, "data/1 does not end where it is said to"),  # CRC
        (("<2L", 20), (60, 60), "data/1 does not end where it is said to"),
        (("<2L", 20), (120, 121), "compressed or encrypted"),
        (("<2L", 20), (1 << 31, 1 << 31), "data/1 does not end where it is said to"),
        (("<2L", 20), (0xFFFFFFFF, 0xFFFFFFFF), "the directory's entry of weights/data/1 has no size"),
        (("<L", 42), 0, "is said to begin at 0"),
        (("<L", 42), 1 << 31, "is said to begin at"),
        (("<H", 28), 5, "of its directory is none|lie in 2 folders|is said to begin"),
        (("<H", 32), 9, "of its directory is none"),
    ],
)
def test_a_directory_that_lies(path, field, value, message):
    data = bytearray(path.read_bytes())
    struct.pack_into(
        field[0], data, entry(data, b"data/1") + field[1], *(value if isinstance(value, tuple) else [value])
    )
    path.write_bytes(data)
    refused(path, message)


@pytest.mark.parametrize("bit", range(8))
def test_any_bit_that_moves_a_record(path, bit):
    """The lengths in a record's own header say where torch looks for its bytes."""
    whole = path.read_bytes()
    for offset in (26, 27, 28, 29, 30, 34):
        data = bytearray(whole)
        data[data.index(b"weights/data/1") - 30 + offset] ^= 1 << bit
        path.write_bytes(data)
        refused(path, r"is damaged or cut short \(\d+ bytes\): ")


def test_two_records_of_one_name(path):
    with zipfile.ZipFile(path) as archive:
        body = archive.read("weights/data/1")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("weights/DATA/1", body[::-1])
    refused(path, "two records of one name")


def test_every_bit_of_what_names_the_tensors(path):
    """``data.pkl`` has a checksum, which is always compared."""
    whole = path.read_bytes()
    record = check_archive(path)["data.pkl"]
    for position in range(record.offset, record.offset + record.size, 7):
        data = bytearray(whole)
        data[position] ^= 1 << position % 8
        path.write_bytes(data)
        refused(path, "the bytes of its record data.pkl are not those that were written")


@pytest.mark.filterwarnings("ignore:`torch.jit")  # such files remain when torch writes them no more
def test_other_byte_order_and_other_programs(path):
    rewrite(path, lambda name, body: b"big" if name == "byteorder" else body)
    refused(path, "is not little-endian")
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path)
    refused(path, "is a TorchScript program")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.eye(3).to_sparse(), r"more than plain tensors \(torch._utils._rebuild_sparse_tensor\)"),
        (lambda: torch.eye(3).to_sparse_csr(), "more than plain tensors"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "more than plain tensors"),
        (lambda: torch.ones(3, device="meta"), "more than plain tensors"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "more than plain tensors"),
        (lambda: torch.ones(3).numpy(), "Python objects besides tensors"),
        (lambda: bytearray(b"xyz"), "Python objects besides tensors"),
        (lambda: torch.zeros(1, 1).expand(1 << 30, 1 << 30), r"has \d+ bytes, its tensors would take \d+"),
        (lambda: 7, "has no tensors by name under 'generator'"),
    ],
)
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.filterwarnings("ignore:.*(beta state|prototype stage|deprecated)")
def test_what_is_no_plain_tensor(path, make, message, old):
    torch.save({"generator": TENSORS | {"model.e": make()}}, path, _use_new_zipfile_serialization=not old)
    refused(path, message)


@pytest.mark.parametrize("key", [7, b"x", None, ("a", "b")])
def test_keys_that_are_no_strings(path, key):
    torch.save(TENSORS | {key: torch.ones(1)}, path)
    refused(path, "has no tensors by name")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_old_files_cut_short(path, share):
    torch.save(TENSORS, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    refused(path, "damaged or cut short")
    path.write_bytes(data + b"\0")
    refused(path, r"its tensors ask for \d+ bytes, \d+ are there")


def test_checksums_find_what_a_mapped_read_cannot(path):
    data = bytearray(path.read_bytes())
    data[check_archive(path)["data/1"].offset + 20] ^= 4
    path.write_bytes(data)
    assert not torch.equal(tensors_in(path, ("generator",))["model.b"], TENSORS["model.b"])
    with pytest.raises(CheckpointError, match=r"weights\.pt .* record data/1 are not those that were written"):
        verify(path)


def test_files_without_checksums(path, tmp_path):
    with torch.serialization.skip_data():
        torch.save(TENSORS, path)
    assert verify(path) == "4 of its records have no checksum"
    other = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(3)}, other)
    assert verify(other) == "has no checksum to compare with"


@pytest.mark.parametrize("large", [True, False])
@pytest.mark.parametrize("cached", [True, False])
def test_checksums_that_the_hub_recorded(tmp_path, large, cached):
    """git's hash is recorded of small files, SHA-256 of large ones; in the cache, or beside a local folder."""
    body = b'{"dim": 1536}'
    recorded = hashlib.sha256(body).hexdigest() if large else hashlib.sha1(b"blob 13\0" + body).hexdigest()
    if cached:
        blob, path = tmp_path / "blobs" / recorded, tmp_path / "snapshots" / "1f" / "config.json"
        blob.parent.mkdir()
        path.parent.mkdir(parents=True)
        path.symlink_to(blob)
    else:
        blob = path = tmp_path / "models" / "config.json"
        note = tmp_path / ".cache/huggingface/download/models/config.json.metadata"
        path.parent.mkdir()
        note.parent.mkdir(parents=True)
        note.write_text(f"{'0' * 40}\n{recorded}\n1764400000.0\n")
    blob.write_bytes(body)
    assert verify(path) == "as downloaded"
    blob.write_bytes(body.replace(b"6", b"7"))
    with pytest.raises(CheckpointError, match=re.escape(f"{path} is not as downloaded")):
        verify(path)


def test_checking_reads_little(path, monkeypatch):
    """A healthy file of any size is checked by its directory and headers."""
    seen, crc32 = [], zlib.crc32
    monkeypatch.setattr(zlib, "crc32", lambda data, crc=0: seen.append(len(data)) or crc32(data, crc))
    records = check_archive(path)
    assert 0 < sum(seen) < 3000 < sum(record.size for record in records.values())
