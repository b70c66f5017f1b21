"""Reading by threads: the bytes of a mapped read, in order, straight into their place, and every bad file."""

import os

import pytest
import torch
from safetensors.torch import save_file

from longlive_optimized.weights import CheckpointError, reader
from longlive_optimized.weights.files import tensors_in
from longlive_optimized.weights.reader import Piece, Reader, offsets_in, pieces_of, safetensors_header

CPU = torch.device("cpu")
GPU = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes = {"a": (300, 40), "b": (7,), "c": (1, 1), "d": (64, 33), "e": (2, 3, 5), "empty": (0, 4)}
    made = {key: torch.randn(shape).bfloat16() for key, shape in shapes.items()}
    return made | {"f": torch.randn(11, 13), "g": torch.randn(8, 9).to(torch.float8_e4m3fn)}


def bits(t: torch.Tensor) -> bytes:
    return t.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.fixture(params=["x.pth", "x.safetensors"])
def path(request, tmp_path):
    made = tmp_path / request.param
    content = tensors()
    if made.suffix == ".pth":
        del content["empty"]  # has no place in an archive
    (torch.save if made.suffix == ".pth" else save_file)(content, made)
    return made


def test_offsets_are_where_the_bytes_lie(path):
    found, data = tensors_in(path), path.read_bytes()
    offsets = offsets_in(path, found)
    assert offsets.keys() == found.keys()
    assert all(data[offsets[key] :].startswith(bits(t)) for key, t in found.items())


def read_all(path, device=CPU, into=False) -> dict[str, bytes]:
    found, got, order = tensors_in(path), {}, []
    places = {key: torch.full((max(t.nbytes, 1),), 0xAA, dtype=torch.uint8) for key, t in found.items()}

    def wanted():
        for key, t in found.items():
            for piece in pieces_of(key, t.nbytes, t.itemsize * (t.shape[-1] if t.dim() else 1)):
                order.append(piece.key)
                yield piece._replace(into=places[key][piece.start : piece.stop]) if into else piece

    seen = []
    for piece, raw in Reader(path, found, device).pieces(wanted()):
        seen.append(piece.key)
        assert raw.device.type == device.type and raw.dtype == torch.uint8
        got[piece.key] = got.get(piece.key, b"") + raw.cpu().numpy().tobytes()
    assert seen == order
    if into:
        assert all(bits(places[key])[: t.nbytes] == bits(t) for key, t in found.items())
    return got


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("into", [False, True])
@pytest.mark.parametrize("size", [1, 512, 1 << 22])
@pytest.mark.parametrize("threads", [1, 5])
def test_reads_what_is_there(path, monkeypatch, threads, size, into, device):
    if into and device == "cuda":
        pytest.skip("only what stays on the host is read straight into its place")
    monkeypatch.setattr(reader, "PIECE", size)
    monkeypatch.setattr(reader, "_THREADS", threads)
    got = read_all(path, torch.device(device), into)
    assert got == {key: bits(t) for key, t in tensors_in(path).items() if t.numel()}


@pytest.mark.parametrize("into", [False, True])
def test_what_lies_in_no_one_piece_is_read_from_the_mapping(tmp_path, into, monkeypatch):
    """Transposed, and of a storage that others use too; and in the form of torch 1.5, which cannot be mapped."""
    monkeypatch.setattr(reader, "PIECE", 64)
    base = torch.randn(24, 16)
    content = {"t": base.T, "part": base[8:], "plain": torch.randn(5, 8)}
    torch.save(content, tmp_path / "x.pth")
    offsets = offsets_in(tmp_path / "x.pth", tensors_in(tmp_path / "x.pth"))
    assert offsets.keys() == {"part", "plain"}
    assert read_all(tmp_path / "x.pth", into=into) == {key: bits(t) for key, t in content.items()}
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert offsets_in(tmp_path / "old.pth", tensors_in(tmp_path / "old.pth")) == {}
    assert read_all(tmp_path / "old.pth", into=into) == {key: bits(t) for key, t in content.items()}


def test_storages_that_no_tensor_of_ours_uses_leave_the_mapping(tmp_path):
    torch.save({"model": {"a": torch.randn(4, 8)}, "other": {"b": torch.randn(16)}}, tmp_path / "x.pth")
    found = tensors_in(tmp_path / "x.pth", ("model",))
    assert offsets_in(tmp_path / "x.pth", found) == {}


@pytest.mark.parametrize(("nbytes", "row"), [(0, 8), (8, 8), (2**23 + 6, 2), (10240 * 4096 * 2, 8192), (99 * 7, 7)])
def test_pieces_are_whole_rows_and_words(nbytes, row):
    pieces = list(pieces_of("k", nbytes, row))
    assert [p.start for p in pieces] == [0, *(p.stop for p in pieces[:-1])] if pieces else nbytes == 0
    assert all(p.start % row == p.start % 8 == 0 for p in pieces) and (not pieces or pieces[-1].stop == nbytes)
    assert all(p.stop - p.start <= max(reader.PIECE, 8 * row) for p in pieces)


def test_a_file_that_is_cut_short_is_an_error(path):
    found = tensors_in(path)
    pieces = Reader(path, found, CPU)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=f"{path} has changed while it was read"):
        list(pieces.pieces(Piece(key, 0, t.nbytes) for key, t in found.items() if t.numel()))


def test_threads_end_with_an_error_of_who_reads(path, monkeypatch):
    import threading

    monkeypatch.setattr(reader, "PIECE", 8)
    found = tensors_in(path)
    pieces = Reader(path, found, CPU).pieces(p for k, t in found.items() for p in pieces_of(k, t.nbytes, 2))
    next(pieces)
    assert any(t.name.startswith("longlive-read") for t in threading.enumerate())
    pieces.close()
    assert not any(t.name.startswith("longlive-read") for t in threading.enumerate())


@pytest.mark.parametrize(
    "content", [b"", b"\1", b"\377" * 16, b"\2\0\0\0\0\0\0\0{]", b"\2\0\0\0\0\0\0\0[]", b"\2\0\0\0\0\0\0\0\377\377"]
)
def test_a_header_that_is_none(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.safetensors is damaged or no safetensors file"):
        safetensors_header(tmp_path / "x.safetensors")
