"""Files of umT5 to a text encoder, in the precision and the place that are asked for.

Weights become int8 piece by piece while their file is read, so that nothing but the result is ever held whole.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from ..kernels.int8_block_linear import BLOCK, quantize_blocks
from ..model.config import ModelConfig
from ..plain import dtype_name
from ..text.encoder import TABLE, TextEncoder, checkpoint_shapes, config_of, is_linear, may_be_narrow
from ..text.footprint import Footprint, footprint
from ..text.linear import Blocks
from ..text.parked import CudaLink, residence_on
from ..text.tokenizer import Tokenizer
from . import CheckpointError
from .files import Reading, check_tensors, model_config, some, tensors_in
from .host_memory import pinned_empty
from .kept import Kept, check_room, checksum, kept_path, open_kept, parts_of, remove_abandoned, write_kept
from .locate import ModelFiles
from .reader import Piece, Reader, pieces_of

BytesDone = Callable[[int, int], None]  # (bytes done, bytes in all), of the weights as they are held

_IN_CACHE = 1 << 18  # numbers: 1 MiB in float32
_ALIGNED = 256  # bytes: where a tensor begins in memory that several share
_log = logging.getLogger(__name__)


def load_text_encoder(
    files: ModelFiles,
    device: torch.device | str,
    dtype: torch.dtype,
    progress: BytesDone | None = None,
    precision: str = "auto",
    residence: str = "auto",
    keep: bool = False,
) -> TextEncoder:
    """The umT5 encoder with its tokenizer; its embeddings are on ``device``, in ``dtype``.

    precision: ``bf16`` is the file's own, as far as ``dtype`` can hold it; ``int8`` has the weights of linears and the
        embedding table in int8 blocks, made from the file while it is read; ``fp8`` is that of a float8 file, which is
        never widened but for one linear's use; ``auto`` is the file's.
    residence: ``gpu``; ``parked``, in pinned host memory but for the time of a prompt; ``cpu``, where it then computes,
        too; ``auto`` is the device.
    keep: leave what was made int8 in a file beside its source, for the next time. One that is there already is used,
        whatever ``keep`` says, if it is whole and of this very source; else the log says what is wrong with it.

    Raises CheckpointError, what check_text raises, and OSError where the system pins no more memory, or the file cannot
    be kept.
    """
    device = torch.device(device)
    tensors, tokenizer = open_text(files, model_config(files.config))
    precision, residence = _precision(files.text, tensors, precision), residence_on(device, residence)
    stored = _allocate(_forms(tensors, precision, dtype), residence, device)
    if precision != "int8" or not _read_kept(files.text, tensors, stored, device, progress):
        _fill(files.text, tensors, stored, device, progress)
        if keep:
            write_kept(files.text, _as_in_the_file(stored, tensors))
    link = CudaLink(device) if residence == "parked" else None
    return TextEncoder(stored, tokenizer, dtype, device, link)


def check_text(
    files: ModelFiles, device: torch.device | str, precision: str = "auto", residence: str = "auto", keep: bool = False
) -> None:
    """Check that ``load_text_encoder`` can do what it is asked for, without loading anything.

    Raises ValueError naming ``text_precision``, ``text_residence`` or ``keep_text_int8``, OSError naming the last one,
    and CheckpointError.
    """
    tensors, _ = open_text(files, model_config(files.config))
    found = _precision(files.text, tensors, precision)
    residence_on(torch.device(device), residence)
    if keep and found != "int8":
        raise ValueError(f"keep_text_int8 must be false or text_precision must be int8, it is {found}")
    if keep:
        remove_abandoned(files.text)
        forms = _forms(tensors, found, torch.bfloat16)
        if not _is_kept(files.text, tensors):
            check_room(files.text, sum(_nbytes(form) for each in forms.values() for form in each))


def check_kept(files: ModelFiles, verify: bool = False) -> Path | None:
    """The file that the int8 weights of a model are kept in, which ``load_text_encoder`` would use; None if there is
    none. ``verify``: all of it is read and compared with its checksums.

    Raises CheckpointError saying what is wrong with it or with the model, and OSError.
    """
    path, (tensors, _) = kept_path(files.text), open_text(files, model_config(files.config))
    if not path.is_file() or any(tensors[key].itemsize == 1 for key in tensors):
        return None
    kept = _open_kept(files.text, tensors)
    if verify:
        sums = dict.fromkeys(kept.tensors, 0)
        wanted = (piece for key, t in kept.tensors.items() for piece in _pieces(key, t))
        for piece, raw in Reader(path, kept.tensors, torch.device("cpu")).pieces(wanted):
            sums[piece.key] += int(checksum(raw))
        _compare(kept, {key: value % 2**64 for key, value in sums.items()})
    return path


def text_footprint(
    files: ModelFiles, device: torch.device | str, dtype: torch.dtype, precision: str = "auto", residence: str = "auto"
) -> Footprint:
    """What ``load_text_encoder`` would take, told by the shapes in the file; raises what check_text raises."""
    config = model_config(files.config)
    tensors, _ = open_text(files, config)
    found = _precision(files.text, tensors, precision)
    shapes = {key: t.shape for key, t in tensors.items()}
    known = found if found in ("bf16", "int8", "fp8", "float32") else "float32"
    return footprint(shapes, known, residence_on(torch.device(device), residence), dtype, config.text_len)


def open_text(files: ModelFiles, model: ModelConfig) -> tuple[dict[str, Tensor], Tokenizer]:
    """The encoder's tensors, mapped, and its tokenizer, which must fit them and ``model``; CheckpointError."""
    tensors = tensors_in(files.text)
    stat = (files.tokenizer / "tokenizer.json").stat()
    tokenizer = _tokenizer(files.tokenizer, model.text_len, stat.st_mtime_ns, stat.st_size)
    try:
        config = config_of({key: tensor.shape for key, tensor in tensors.items()})
    except ValueError as error:
        raise CheckpointError(f"{files.text}: {error}") from error
    check_tensors(files.text, tensors, checkpoint_shapes(config), "a umT5 encoder")
    if config.d_model != model.text_dim:
        expected = f"{files.config} has text_dim {model.text_dim}"
        raise CheckpointError(f"{files.text} makes embeddings of width {config.d_model}, {expected}")
    if tokenizer.vocabulary > config.vocab_size:
        ids = f"{files.tokenizer / 'tokenizer.json'} has {tokenizer.vocabulary} ids"
        raise CheckpointError(f"{ids}, the token_embedding.weight of {files.text} only {config.vocab_size} rows")
    return tensors, tokenizer


@functools.lru_cache(maxsize=1)  # umT5's takes seconds, and a model is checked before it is loaded
def _tokenizer(folder: Path, text_len: int, changed: int, size: int) -> Tokenizer:
    try:
        return Tokenizer(folder, text_len)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _precision(path: Path, tensors: Mapping[str, Tensor], asked: str) -> str:
    """What the encoder of a file runs in. Raises ValueError naming ``text_precision`` for what the file cannot give."""
    if asked not in ("auto", "bf16", "int8", "fp8"):
        raise ValueError(f"text_precision must be auto, bf16, int8 or fp8, got {asked!r}")
    linears = [key for key in tensors if is_linear(key)]
    if any(tensors[key].itemsize == 1 for key in linears):
        if asked in ("auto", "fp8"):
            return "fp8"
        raise ValueError(f"text_precision must be auto or fp8 with {path}, which is float8; {asked} wants a bf16 file")
    if asked == "fp8":
        raise ValueError(f"text_precision must be auto, bf16 or int8 with {path}, which is not float8")
    if asked == "int8":
        if odd := [key for key in tensors if may_be_narrow(key) and tensors[key].shape[1] % BLOCK]:
            raise ValueError(
                f"text_precision must be auto or bf16 with {path}: int8 wants multiples of {BLOCK} columns, "
                f"{some(odd)} has {tensors[odd[0]].shape[1]}"
            )
        return "int8"
    return dtype_name(tensors[linears[0]].dtype)


Form = tuple[tuple[int, ...], torch.dtype]  # shape and dtype of a tensor that is to be held


def _forms(tensors: Mapping[str, Tensor], precision: str, dtype: torch.dtype) -> dict[str, list[Form]]:
    """What each of a file's tensors is held as: one tensor, or values and scales."""
    forms: dict[str, list[Form]] = {}
    for key, t in tensors.items():
        narrow = may_be_narrow(key)
        if narrow and precision == "int8":
            rows, columns = t.shape
            forms[key] = [((rows, columns), torch.int8), ((columns // BLOCK, rows), torch.bfloat16)]
        else:
            forms[key] = [(tuple(t.shape), t.dtype if narrow and t.itemsize < dtype.itemsize else dtype)]
    return forms


def _nbytes(form: Form) -> int:
    return prod(form[0]) * form[1].itemsize


def _allocate(forms: Mapping[str, list[Form]], residence: str, device: torch.device) -> dict[str, Tensor | Blocks]:
    """Memory for all; parked layers share one piece of pinned memory, and the embedding table is not pinned."""
    parked = [form for key, each in forms.items() for form in each if residence == "parked" and _travels(key)]
    arena = pinned_empty(sum(_aligned(form) for form in parked), device) if parked else None
    place, used = device if residence == "gpu" else "cpu", 0

    def empty(key: str, form: Form) -> Tensor:
        nonlocal used
        shape, dtype = form
        if arena is None or not _travels(key):
            return torch.empty(shape, dtype=dtype, device=place)
        start, used = used, used + _aligned(form)
        return arena[start : start + _nbytes(form)].view(dtype).view(shape)

    made = {key: [empty(key, form) for form in each] for key, each in forms.items()}
    return {key: Blocks(*each) if len(each) == 2 else each[0] for key, each in made.items()}


def _travels(key: str) -> bool:
    """Whether a parked encoder's tensor comes to the GPU for each prompt."""
    return key != TABLE


def _aligned(form: Form) -> int:
    return -(-_nbytes(form) // _ALIGNED) * _ALIGNED


@torch.no_grad()  # a file may hold parameters
def _fill(
    path: Path,
    tensors: Mapping[str, Tensor],
    stored: Mapping[str, Tensor | Blocks],
    device: torch.device,
    progress: BytesDone | None = None,
    summed: bool = False,
) -> dict[str, int]:
    """Write the tensors of a file, as they come from it by way of ``device``; if ``summed``, the checksum of each.

    Raises CheckpointError for NaN or infinity, and for a file that changes meanwhile.
    """
    reading = Reading([path])
    total, done = sum(part.nbytes for part in parts_of(stored).values()), 0
    finite: dict[str, Tensor] = {}  # by tensor: a number that is finite if all of its are
    sums: dict[str, Tensor] = {}

    def wanted():
        for key, t in tensors.items():
            for piece in _pieces(key, t):
                yield piece._replace(into=_destination(stored[key], t, piece))

    for piece, raw in Reader(path, tensors, device).pieces(wanted()):
        reading.check()
        key, source = piece.key, tensors[piece.key]
        number = _write(stored[key], source.dtype, piece, raw)
        finite[key] = finite.get(key, 0) + number
        if summed:
            sums[key] = sums.get(key, 0) + checksum(raw)
        held = sum(part.nbytes for part in _tensors_of(stored[key]))
        done += held * piece.stop // source.nbytes - held * piece.start // source.nbytes
        if progress:
            progress(done, total)
    reading.check()
    # All are looked at together, so that loading waits for the device once.
    good = torch.stack([number.to(device) for number in finite.values()]).isfinite().tolist()
    if bad := [key for key, fine in zip(finite, good, strict=True) if not fine]:
        raise CheckpointError(f"{reading} holds NaN or infinity in {some(bad)}")
    return {key: int(value) % 2**64 for key, value in sums.items()}


def _pieces(key: str, t: Tensor) -> Iterator[Piece]:
    return pieces_of(key, t.nbytes, t.itemsize * (t.shape[-1] if t.dim() else 1))


def _tensors_of(stored: Tensor | Blocks) -> tuple[Tensor, ...]:
    return tuple(stored) if isinstance(stored, Blocks) else (stored,)


def _destination(stored: Tensor | Blocks, source: Tensor, piece: Piece) -> Tensor | None:
    """Where a piece is read straight into: host memory of the file's own dtype."""
    if isinstance(stored, Blocks) or stored.dtype != source.dtype or stored.device.type != "cpu":
        return None
    return stored.view(-1).view(torch.uint8)[piece.start : piece.stop]


def _write(stored: Tensor | Blocks, source: torch.dtype, piece: Piece, raw: Tensor) -> Tensor:
    """Write a piece, unless it was read straight into its place; a float32 scalar that is finite if the piece is."""
    if isinstance(stored, Blocks):
        columns = stored.values.shape[1]
        return _write_blocks(stored, piece.start // (columns * source.itemsize), raw.view(source).view(-1, columns))
    start, stop = piece.start // source.itemsize, piece.stop // source.itemsize
    numbers = raw.view(source)
    if piece.into is None:
        numbers = numbers.to(stored.dtype)
        stored.view(-1)[start:stop] = numbers
    if stored.dtype == torch.int8:
        return torch.zeros((), dtype=torch.float32, device=raw.device)
    # Torch sums bfloat16 in float32, in place; for any other result it would copy the numbers. float8 has no sums.
    numbers = numbers if numbers.itemsize > 1 else numbers.bfloat16()
    return numbers.sum(dtype=None if numbers.dtype == torch.bfloat16 else torch.float32).float()


def _write_blocks(stored: Blocks, first: int, numbers: Tensor) -> Tensor:
    """Write rows from ``first`` on; as ``_write``."""
    # A CPU makes them in its cache; new memory for each operator of more of them takes five times as long.
    step = len(numbers) if numbers.is_cuda else max(1, _IN_CACHE // numbers.shape[1])
    sums = []
    for start in range(0, len(numbers), step):
        values, scale = quantize_blocks(numbers[start : start + step])
        rows = slice(first + start, first + start + len(values))
        stored.values[rows] = values
        _assign_columns(stored.scale, rows, scale)
        sums.append(scale.sum(dtype=torch.float32))
    return torch.stack(sums).sum()


def _assign_columns(to: Tensor, columns: slice, x: Tensor) -> None:
    """``to[:, columns] = x`` of 16-bit numbers. On the host by NumPy: torch wakes threads, for milliseconds."""
    if to.is_cuda:
        to[:, columns] = x
    else:
        to.view(torch.int16).numpy()[:, columns] = x.cpu().view(torch.int16).numpy()


def _read_kept(
    path: Path,
    tensors: Mapping[str, Tensor],
    stored: Mapping[str, Tensor | Blocks],
    device: torch.device,
    progress: BytesDone | None,
) -> bool:
    """Fill ``stored`` from the file that is kept beside its source, if there is one and it is good."""
    kept = kept_path(path)
    if not kept.is_file():
        return False
    try:
        opened = _open_kept(path, tensors)
        found = _fill(kept, opened.tensors, parts_of(stored), device, progress, summed=True)
        _compare(opened, found)
    except (CheckpointError, OSError) as error:
        _log.warning("%s; the int8 weights are made from %s instead (keep_text_int8 replaces it)", error, path.name)
        return False
    return True


def _open_kept(path: Path, tensors: Mapping[str, Tensor]) -> Kept:
    """What is kept of the file at ``path``; raises what open_kept raises."""
    stored = _allocate(_forms(tensors, "int8", torch.bfloat16), "gpu", torch.device("meta"))
    return open_kept(kept_path(path), path, parts_of(_as_in_the_file(stored, tensors)))


def _is_kept(path: Path, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file that seems good is there; its bytes are not read."""
    try:
        return kept_path(path).is_file() and bool(_open_kept(path, tensors))
    except (CheckpointError, OSError):
        return False


def _compare(kept: Kept, found: Mapping[str, int]) -> None:
    if bad := [key for key, value in kept.checksums.items() if found[key] != value]:
        raise CheckpointError(f"{kept.path} is damaged: the checksums of {some(bad)} are others")


def _as_in_the_file(stored: Mapping[str, Tensor | Blocks], tensors: Mapping[str, Tensor]) -> dict[str, Tensor | Blocks]:
    """int8 blocks as they are; the rest as in the source: what is kept does not depend on the engine's dtype."""
    return {key: one if isinstance(one, Blocks) else tensors[key] for key, one in stored.items()}
