"""A text encoder in each precision: made while it is read, kept, found again, and every wish that cannot be met."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file

from longlive_optimized.kernels.int8_block_linear import quantize_blocks
from longlive_optimized.text.linear import Blocks
from longlive_optimized.weights import CheckpointError, kept, reader, text
from longlive_optimized.weights.kept import kept_path
from longlive_optimized.weights.locate import locate
from longlive_optimized.weights.text import check_kept, check_text, load_text_encoder, text_footprint
from support.memory import LiveBytes
from support.umt5 import write_fp8

PROMPTS = ["A red kite climbs over a wheat field.", "snow"]
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def tensors_of(path):
    return torch.load(path, weights_only=True)


def held(encoder) -> dict[str, torch.Tensor]:
    network = encoder._network
    parts = encoder.table if isinstance(encoder.table, Blocks) else (encoder.table,)
    return dict([*network.named_parameters(), *network.named_buffers(), *enumerate(parts)])


def nbytes(encoder) -> int:
    return sum(t.nbytes for t in held(encoder).values())


@pytest.mark.parametrize("piece", [256, 1 << 22])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_int8_is_that_of_the_files_numbers(pristine, monkeypatch, piece, dtype):
    """Whatever the engine's dtype, and into however many pieces a tensor is divided."""
    monkeypatch.setattr(reader, "PIECE", piece)
    monkeypatch.setattr(text, "_IN_CACHE", 64 * 7)
    files = locate(pristine)
    encoder, stored = load_text_encoder(files, "cpu", dtype, precision="int8"), tensors_of(files.text)
    assert (encoder.precision, encoder.residence) == ("int8", "cpu")
    assert all(map(torch.equal, encoder.table, quantize_blocks(stored["token_embedding.weight"])))
    layer = encoder._network.block[1].layer[1].DenseReluDense
    for module, key in ((layer.wi_0, "gate.0"), (layer.wi_1, "fc1"), (layer.wo, "fc2")):
        values, scale = quantize_blocks(stored[f"blocks.1.ffn.{key}.weight"])
        assert torch.equal(module.values, values) and torch.equal(module.scale, scale)
    plain = load_text_encoder(files, "cpu", dtype).encode(PROMPTS).double()
    error = (encoder.encode(PROMPTS).double() - plain).norm() / plain.norm()
    assert 0.001 < error < 0.05
    assert not kept_path(files.text).exists()


@pytest.mark.parametrize(
    ("precision", "dtype", "name"),
    [("auto", torch.float32, "bf16"), ("bf16", torch.bfloat16, "bf16"), ("int8", torch.float32, "int8")],
)
def test_the_footprint_is_what_it_takes(pristine, precision, dtype, name):
    files = locate(pristine)
    encoder = load_text_encoder(files, "cpu", dtype, precision=precision)
    found = text_footprint(files, "cpu", dtype, precision)
    assert encoder.precision == name and (found.gpu, found.host) == (0, nbytes(encoder))


@pytest.mark.parametrize(("precision", "dtype"), [("auto", torch.bfloat16), ("int8", torch.bfloat16)])
def test_nothing_but_the_result_is_held_whole(files, edit, monkeypatch, precision, dtype):
    """While it loads: the result, what one piece is made of, and the pieces that are read ahead."""
    edit(files.text, lambda content: {k: t.repeat(50, 1) if "token" in k else t for k, t in content.items()})
    monkeypatch.setattr(reader, "PIECE", 1 << 16)
    with LiveBytes() as live:
        encoder = load_text_encoder(files, "cpu", dtype, precision=precision)
    largest = encoder.table[0].nbytes if precision == "int8" else encoder.table.nbytes
    assert largest > 50 * reader.PIECE and nbytes(encoder) > largest
    assert live.most < nbytes(encoder) + 40 * reader.PIECE


def test_resident_memory_stays_at_the_result(files, edit, tmp_path):
    """As the system counts it, in a process of its own: a table of 100 MB in bfloat16 becomes 53 MB."""
    rows = 100_000_000 // (64 * 2)
    edit(files.text, lambda content: content | {"token_embedding.weight": torch.ones(rows, 64).bfloat16()})
    script = """
import sys, torch
from longlive_optimized.weights.locate import locate
from longlive_optimized.weights.text import load_text_encoder
def anonymous(which):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(which)) * 1024
files = locate(sys.argv[1])
import longlive_optimized.weights.text as text
text.open_text(files, text.model_config(files.config))
text.quantize_blocks(torch.ones(64, 64))
before, most = anonymous("RssAnon"), [0]
def progress(done, total):
    most[0] = max(most[0], anonymous("RssAnon"))
encoder = load_text_encoder(files, "cpu", torch.bfloat16, progress, "int8")
print(most[0] - before)
"""
    if not os.path.exists("/proc/self/status"):
        pytest.skip("Linux alone tells")
    run = subprocess.run(
        [sys.executable, "-P", "-c", script, str(files.config.parents[2])], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    result = rows * 64 * (1 + 2 / 32)
    assert 0.9 * result < int(run.stdout) < result + 80e6  # buffers, transformers' own objects


def test_fp8_stays_as_stored(files):
    stored = tensors_of(files.text)
    fp8 = dataclasses.replace(files, text=files.text.with_name("umt5.safetensors"))
    write_fp8(fp8.text, stored)
    for precision in ("auto", "fp8"):
        encoder = load_text_encoder(fp8, "cpu", torch.float32, precision=precision)
        assert encoder.precision == "fp8" and encoder.table.dtype == torch.bfloat16
        assert [t.dtype for t in encoder._network.buffers()] == [torch.float8_e4m3fn] * 14
    for precision in ("bf16", "int8"):
        wanted = rf"^text_precision must be auto or fp8 with .*safetensors, which is float8; {precision} wants"
        for ask in (check_text, lambda f, d, p: load_text_encoder(f, d, torch.float32, precision=p)):
            with pytest.raises(ValueError, match=wanted):
                ask(fp8, "cpu", precision)


def test_wishes_that_cannot_be_met(files, edit):
    with pytest.raises(ValueError, match=r"^text_precision must be auto, bf16 or int8 with .*bf16\.pth, which is no"):
        check_text(files, "cpu", "fp8")
    with pytest.raises(ValueError, match=r"^text_precision must be auto, bf16, int8 or fp8, got 'fp16'"):
        check_text(files, "cpu", "fp16")
    with pytest.raises(ValueError, match=r"^text_residence must be auto or cpu on the device cpu, got 'parked'"):
        check_text(files, "cpu", "int8", "parked")
    with pytest.raises(ValueError, match=r"^keep_text_int8 must be false or text_precision must be int8, it is bf16"):
        check_text(files, "cpu", "auto", keep=True)

    def narrower(content):
        changed = {k: t[:48] if "fc1" in k or "gate" in k else t for k, t in content.items()}
        return {k: t[:, :48].contiguous() if "fc2" in k else t for k, t in changed.items()}

    edit(files.text, narrower)
    check_text(files, "cpu", "bf16")
    with pytest.raises(ValueError, match=r"^text_precision must .* of 32 columns, blocks\.0\.ffn\.fc2.* has 48"):
        check_text(files, "cpu", "int8")


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_in_the_file_is_named(files, edit, precision, bad):
    def spoil(content):
        content["blocks.1.ffn.fc2.weight"][5, 40] = bad

    edit(files.text, spoil)
    with pytest.raises(CheckpointError, match=r"bf16\.pth holds NaN or infinity in blocks\.1\.ffn\.fc2\.weight$"):
        load_text_encoder(files, "cpu", torch.float32, precision=precision)


def stale(path):
    os.utime(path.with_name("models_t5_umt5-xxl-enc-bf16.pth"), (1, 1))


def version(path):
    header, _ = reader.safetensors_header(path)
    meta = header["__metadata__"] | {"version": "0"}
    save_file(load_file(path), path, meta)


def no_metadata(path):
    save_file(load_file(path), path)


def no_checksums(path):
    header, _ = reader.safetensors_header(path)
    save_file(load_file(path), path, header["__metadata__"] | {"checksums": "[]"})


def cut(path):
    os.truncate(path, path.stat().st_size - 100)


def empty(path):
    path.write_bytes(b"")


def nested(path):
    header, _ = reader.safetensors_header(path)
    save_file(load_file(path), path, header["__metadata__"] | {"checksums": "[" * 100_000})


def lacks(path):
    content, (header, _) = load_file(path), reader.safetensors_header(path)
    del content["norm.weight"]
    save_file(content, path, header["__metadata__"])


def bit(path):
    data = bytearray(path.read_bytes())
    data[-1000] ^= 4
    path.write_bytes(data)


def zeros(path):
    with path.open("r+b") as file:
        file.seek(path.stat().st_size - 4096)
        file.write(bytes(4096))


BAD = {
    stale: "is stale: it was made when .* had another time",
    version: "is of another form .*version '0'.*wanted is version 1",
    no_metadata: "is of another form",
    no_checksums: "is damaged: it lacks or misshapes its checksums",
    nested: "is damaged: it lacks or misshapes its checksums",
    cut: "is damaged, cut short or no safetensors file",
    empty: "is empty",
    lacks: r"is damaged: it lacks or misshapes norm\.weight",
    bit: "is damaged: the checksums of .* are others",
    zeros: "is damaged: the checksums of .* are others",
}


class TestKept:
    @pytest.fixture
    def made(self, files):
        """A model whose int8 weights have been kept."""
        encoder = load_text_encoder(files, "cpu", torch.float32, precision="int8", keep=True)
        assert kept_path(files.text).is_file() and len(list(files.text.parent.glob(".*"))) == 0
        return files, encoder.encode(PROMPTS)

    @pytest.fixture
    def reads(self, monkeypatch):
        """The files that weights are read from."""
        seen = []
        plain = text.Reader
        monkeypatch.setattr(text, "Reader", lambda path, *rest: (seen.append(path), plain(path, *rest))[1])
        return seen

    def test_is_what_was_made(self, made, reads):
        files, wanted = made
        for keep in (False, True):
            again = load_text_encoder(files, "cpu", torch.float32, precision="int8", keep=keep)
            assert torch.equal(again.encode(PROMPTS), wanted)
        assert reads == [kept_path(files.text)] * 2
        assert load_text_encoder(files, "cpu", torch.float32).precision == "bf16"

    def test_does_not_depend_on_the_engines_dtype(self, made, tmp_path):
        files, _ = made
        first = kept_path(files.text).read_bytes()
        kept_path(files.text).unlink()
        load_text_encoder(files, "cpu", torch.bfloat16, precision="int8", keep=True)
        assert kept_path(files.text).read_bytes() == first

    def test_is_a_safetensors_file(self, made):
        files, _ = made
        found, stored = load_file(kept_path(files.text)), tensors_of(files.text)
        assert found.keys() == stored.keys() | {
            k + ".scale" for k in stored if ".attn." in k or ".ffn." in k or "tok" in k
        }
        assert all(t.dtype == torch.int8 or t.dtype == torch.bfloat16 for t in found.values())

    @pytest.mark.parametrize("spoil", BAD, ids=lambda f: f.__name__)
    def test_what_is_wrong_is_found_said_and_made_anew(self, made, reads, caplog, spoil):
        files, wanted = made
        path = kept_path(files.text)
        spoil(path)
        spoiled = path.read_bytes()
        got = load_text_encoder(files, "cpu", torch.float32, precision="int8").encode(PROMPTS)
        assert torch.equal(got, wanted) and reads[-1] == files.text and path.read_bytes() == spoiled
        (record,) = caplog.records
        assert re.search(BAD[spoil], record.getMessage()) and "keep_text_int8" in record.getMessage()
        load_text_encoder(files, "cpu", torch.float32, precision="int8", keep=True)
        assert torch.equal(load_text_encoder(files, "cpu", torch.float32, precision="int8").encode(PROMPTS), wanted)
        assert reads[-1] == path and len(caplog.records) == 2

    def test_room_and_rights_are_asked_for_first(self, files, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(kept.os, "access", lambda *_: False)
            with pytest.raises(OSError, match=r"^keep_text_int8: .* cannot be written to"):
                check_text(files, "cpu", "int8", keep=True)
        with monkeypatch.context() as patch:
            patch.setattr(kept.shutil, "disk_usage", lambda _: type("", (), {"free": 10})())
            with pytest.raises(OSError, match=r"^keep_text_int8: .* has too little room, [\d.]+ [kM]B are needed"):
                check_text(files, "cpu", "int8", keep=True)
        check_text(files, "cpu", "int8", keep=True)

    def test_what_is_there_already_wants_neither(self, made, monkeypatch):
        files, _ = made
        monkeypatch.setattr(kept.os, "access", lambda *_: False)
        check_text(files, "cpu", "int8", keep=True)
        stale(kept_path(files.text))
        with pytest.raises(OSError, match=r"^keep_text_int8: .* cannot be written to"):
            check_text(files, "cpu", "int8", keep=True)

    def test_a_folder_in_its_place_is_named_first(self, files):
        kept_path(files.text).mkdir()
        with pytest.raises(OSError, match=r"^keep_text_int8: .*int8\.safetensors is a folder"):
            check_text(files, "cpu", "int8", keep=True)
        load_text_encoder(files, "cpu", torch.float32, precision="int8")

    def test_one_that_cannot_be_read_is_not_used(self, made, monkeypatch, caplog):
        files, wanted = made

        def refuse(path, *_):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(text, "open_kept", refuse)
        got = load_text_encoder(files, "cpu", torch.float32, precision="int8", keep=True)
        assert torch.equal(got.encode(PROMPTS), wanted) and "Permission denied" in caplog.text

    def test_several_threads_write_at_once(self, files):
        def make(_):
            return load_text_encoder(files, "cpu", torch.float32, precision="int8", keep=True).encode(PROMPTS)

        with ThreadPoolExecutor(4) as pool:
            first, *others = pool.map(make, range(4))
        assert all(torch.equal(first, other) for other in others)
        assert check_kept(files, verify=True) and not list(files.text.parent.glob(".*"))

    @pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
    def test_an_interrupted_write_leaves_nothing_under_its_name(self, files, name):
        """What a kill leaves is hidden, and removed when it is old and int8 weights are to be kept again."""
        folder, before = files.text.parent, set(files.text.parent.iterdir())
        program = f"""
import os, signal, torch
from longlive_optimized.weights import kept, text
from longlive_optimized.weights.locate import locate
plain, written = kept._write, []
def write(file, tensor):
    if len(written) == 5:
        os.kill(os.getpid(), signal.{name})
    written.append(plain(file, tensor))
    return written[-1]
kept._write = write
text.load_text_encoder(locate({str(folder.parents[1])!r}), "cpu", torch.float32, precision="int8", keep=True)
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
        assert done.returncode == -getattr(signal, name), done.stderr
        left = set(folder.iterdir()) - before
        assert len(left) == (name != "SIGINT") and all(path.name.startswith(".") for path in left)
        check_text(files, "cpu", "int8", keep=True)
        assert set(folder.iterdir()) == before | left  # another process may be writing it
        other = folder / f".{kept_path(files.text).name}.Xa3b9Q"  # as rsync names what it is about to write
        other.touch()
        for path in (*left, other):
            os.utime(path, (1, 1))
        check_text(files, "cpu", "int8", keep=True)
        assert set(folder.iterdir()) == before | {other}

    def test_a_thread_that_an_exit_leaves_behind_leaves_nothing(self, files):
        """As a server's that is stopped while it loads."""
        before = set(files.text.parent.iterdir())
        program = f"""
import threading, torch
from longlive_optimized.weights import kept, text
from longlive_optimized.weights.locate import locate
begun = threading.Event()
def write(*_):
    begun.set()
    threading.Event().wait()
kept._write = write
files = locate({str(files.text.parents[2])!r})
load = lambda: text.load_text_encoder(files, "cpu", torch.float32, precision="int8", keep=True)
threading.Thread(target=load, daemon=True).start()
begun.wait()
"""
        subprocess.run([sys.executable, "-c", program], check=True, timeout=100)
        assert set(files.text.parent.iterdir()) == before

    @pytest.mark.parametrize("spoil", BAD, ids=lambda f: f.__name__)
    def test_is_checked_alone(self, made, spoil):
        files, _ = made
        path = kept_path(files.text)
        assert check_kept(files) == check_kept(files, verify=True) == path
        spoil(path)
        if spoil in (bit, zeros):
            assert check_kept(files) == path
        with pytest.raises(CheckpointError, match=BAD[spoil]):
            check_kept(files, verify=True)

    def test_none_is_no_fault(self, files):
        assert check_kept(files) is None and check_kept(files, verify=True) is None

    def test_a_write_that_fails_leaves_nothing(self, files, monkeypatch):
        monkeypatch.setattr(kept, "_write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        before = set(files.text.parent.iterdir())
        with pytest.raises(OSError, match=r"^keep_text_int8: .*int8\.safetensors cannot be written: No space left"):
            load_text_encoder(files, "cpu", torch.float32, precision="int8", keep=True)
        assert set(files.text.parent.iterdir()) == before

    def test_checksums_add_up(self):
        data = torch.randint(0, 256, (1003,), dtype=torch.uint8)
        words = sum(int.from_bytes(bytes(data[i : i + 8].tolist()), "little") for i in range(0, 1000, 8))
        wanted = (words + int(data[1000:].sum())) % 2**64
        whole = int(kept.checksum(data)) % 2**64
        parts = sum(int(kept.checksum(part)) for part in data.split(104)) % 2**64
        assert whole == parts == wanted

    def test_metadata_are_json_of_plain_texts(self, made):
        files, _ = made
        header, _ = reader.safetensors_header(kept_path(files.text))
        meta = header["__metadata__"]
        assert meta["source_name"] == files.text.name and int(meta["source_size"]) == files.text.stat().st_size
        assert all(len(value) == 16 for value in json.loads(meta["checksums"]).values())


@GPU
@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_on_a_gpu(files, precision):
    """The same weights bit for bit as a CPU makes, in every residence, and the same embeddings of the first two."""
    made = {}
    for residence in ("gpu", "parked", "cpu"):
        encoder = load_text_encoder(files, "cuda", torch.bfloat16, precision=precision, residence=residence)
        assert (encoder.precision, encoder.residence) == (precision, residence)
        made[residence] = encoder.encode(PROMPTS)
        assert made[residence].is_cuda
        on_gpu = sum(t.nbytes for t in held(encoder).values() if t.is_cuda)
        found = text_footprint(files, "cuda", torch.bfloat16, precision, residence)
        assert on_gpu == found.gpu == (nbytes(encoder) if residence == "gpu" else 0)
        host = held(load_text_encoder(files, "cpu", torch.bfloat16, precision=precision))
        stored = {str(k).replace(".layer.layer.", ".layer."): t for k, t in held(encoder).items()}
        stored = {k.replace("final_layer_norm.layer.", "final_layer_norm."): t for k, t in stored.items()}
        assert stored.keys() == {str(k) for k in host}
        assert all(torch.equal(t.cpu(), stored[str(k)].cpu()) for k, t in host.items())
    assert torch.equal(made["gpu"], made["parked"])
    far = (made["gpu"].float() - made["cpu"].float()).norm() / made["gpu"].float().norm()
    assert far < 0.05
