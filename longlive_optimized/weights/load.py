"""Checkpoint files to networks.

Every name and shape is checked before a byte is copied. Tensors go one by one from the mapped file to the device and
are rounded there, once; host memory holds no second copy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..model.config import ModelConfig
from ..model.control import ControlBranch, control_shapes
from ..model.slot import Slot
from ..model.transformer import Transformer, generator_shapes
from ..vae.autoencoder import Autoencoder
from ..vae.config import TaeConfig, VaeConfig
from ..vae.tae import Tae, last_rows
from ..vae.wan.model import WanVae
from . import CheckpointError
from .files import Reading, check_tensors, model_config, some, tensors_in
from .locate import ModelFiles
from .lora import open_adapter
from .terms import Adapter, Term, merge
from .text import BytesDone, open_text
from .unmerged import Unmerged
from .user_lora import UserLora, open_user_loras


def check(files: ModelFiles, control: bool = False) -> None:
    """Check every file of a model, and that they fit together, without loading any; VACE's module with ``control``.

    Raises CheckpointError for the first file that does not fit, FileNotFoundError for one that is gone.
    """
    config = model_config(files.config)
    _open_generator(files, config)
    _open_vae(files, config)
    open_text(files, config)
    if control:
        _open_control(files, config)


def check_loras(files: ModelFiles, loras: Sequence[UserLora], control: bool = False) -> None:
    """Check that ``loras`` fit the model of ``files``, with VACE's module or without, and load neither; raises what
    open_user_loras raises."""
    open_user_loras(loras, _adaptable(model_config(files.config), control))


def outline(files: ModelFiles) -> tuple[ModelConfig, Autoencoder]:
    """The dimensions of a model's transformer, and its VAE on the meta device; raises as ``check`` does."""
    config = model_config(files.config)
    return config, _open_vae(files, config)[1]


def load_generator(
    files: ModelFiles,
    device: torch.device | str,
    dtype: torch.dtype,
    progress: BytesDone | None = None,
    loras: Sequence[UserLora] = (),
    int8_only: bool = False,
    control: bool = False,
) -> Transformer:
    """The diffusion transformer with LongLive's LoRA and then ``loras`` folded in (float32, rounded once).

    control: ``loras`` may adapt VACE's module too, alone even; ``load_control`` takes what is for it. With
    ``int8_only`` each weight that may run in 8 bits is quantised as it comes from the file, and held so alone.
    Raises CheckpointError, what open_user_loras raises, and what Transformer raises with ``int8_only``.
    """
    config, reading = model_config(files.config), _reading(files, loras)
    tensors, own, users = _open_generator(files, config, loras, control)
    model = Transformer(config, device=device, dtype=dtype, int8_only=int8_only)
    _fill(model.checkpoint_slots(), tensors, reading, progress, (own, users))
    model.adapted = frozenset(users)
    return model


def load_control(
    files: ModelFiles,
    device: torch.device | str,
    dtype: torch.dtype,
    progress: BytesDone | None = None,
    loras: Sequence[UserLora] = (),
    int8_only: bool = False,
) -> ControlBranch:
    """VACE's module, with what ``loras`` name of it folded in; LongLive's LoRA is not for it. ``int8_only``, and what
    is raised, as load_generator's."""
    config, reading = model_config(files.config), _reading(files, loras, control=True)
    tensors, users = _open_control(files, config), _joined(open_user_loras(loras, _adaptable(config, True)))
    branch = ControlBranch(config, device=device, dtype=dtype, int8_only=int8_only)
    _fill(branch.checkpoint_slots(), tensors, reading, progress, (users,))
    return branch


def read_generator(files: ModelFiles, device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The generator's tensors by the checkpoint's keys, bit for bit what load_generator stores without ``loras``.

    For oracles, which need the weights and not the network. Raises CheckpointError.
    """
    reading = _reading(files)
    tensors, own, _ = _open_generator(files, model_config(files.config))
    weights = _empty(tensors, device, dtype)
    _fill(_slots(weights), tensors, reading, adapters=(own,))
    return weights


def keep_unmerged(model: Transformer, files: ModelFiles, loras: Sequence[UserLora], control: bool = False) -> Unmerged:
    """Copy into memory what refill_generator wants for any scales of ``loras``, with ``control`` in VACE's module too;
    raises what load_generator raises."""
    reading = _reading(files, loras, control)
    tensors, own, _ = _open_generator(files, model.config)
    tensors |= _open_control(files, model.config) if control else {}
    paths = {lora.path: UserLora(lora.path) for lora in loras}
    users = dict(zip(paths, open_user_loras(paths.values(), _adaptable(model.config, control)), strict=True))
    keys = model.adapted.union(*users.values())
    kept = {key: tensor for key, tensor in tensors.items() if key in keys}
    unmerged = Unmerged(kept, {key: own[key] for key in keys if key in own}, users, model.device)
    reading.check()
    return unmerged


def refill_generator(
    model: Transformer,
    files: ModelFiles,
    loras: Sequence[UserLora],
    progress: BytesDone | None = None,
    branch: ControlBranch | None = None,
    unmerged: Unmerged | None = None,
) -> None:
    """Give ``loras`` other scales in a loaded model: their weights become, bit for bit, what load_generator makes them.

    Only the weights that ``loras`` adapt, or did before, are written, in place, from ``files``, or from what
    ``unmerged`` has kept of them: addresses stay, and nothing drifts. What is held in 8 bits follows, beside them or
    alone.
    branch: VACE's module, which they may adapt too, as ``load_control`` gave it; it follows.
    ``loras`` must name all LoRAs that the model holds, at scale 0 those that are to go, and may name new ones. No pass
    may be under way; the caller computes anew what the old weights gave (keys and values).

    Raises what load_generator raises, and ValueError for ``files`` of another model, before anything is written;
    RuntimeError (OutOfMemoryError if memory ran out) if writing itself fails. The weights are then partly new: refill
    again, or load anew.
    """
    control = branch is not None
    if unmerged is not None and unmerged.covers(loras):
        reading, tensors, own, users = Reading(()), unmerged.tensors, unmerged.own, _joined(unmerged.users(loras))
    else:
        config, reading = model_config(files.config), _reading(files, loras, control)
        if config != model.config:
            raise ValueError(f"files: the model was not made from {files.config}")
        tensors, own, users = _open_generator(files, config, loras, control)
        tensors |= _open_control(files, config) if control else {}
    networks: list[Transformer | ControlBranch] = [model] if branch is None else [model, branch]
    model.adapted |= users.keys()
    every = {key: slot for network in networks for key, slot in network.checkpoint_slots().items()}
    slots = {key: slot for key, slot in every.items() if key in model.adapted}
    if not slots:
        return
    try:
        _fill(slots, tensors, reading, progress, (own, users))
        for network in networks:
            network.weights_changed()
    except Exception as error:
        kind = torch.OutOfMemoryError if isinstance(error, torch.OutOfMemoryError) else RuntimeError
        raise kind(f"the generator is partly rewritten: refill it again, or load it anew ({error})") from error
    model.adapted = frozenset(users)


def load_vae(
    files: ModelFiles,
    device: torch.device | str,
    dtype: torch.dtype,
    encoder: bool = True,
    progress: BytesDone | None = None,
) -> Autoencoder:
    """The video autoencoder of ``files.vae_type``, or its decoder alone; CheckpointError."""
    reading = Reading([files.vae])
    tensors, whole = _open_vae(files, model_config(files.config))
    model = type(whole)(whole.config, encoder=encoder, device="meta")
    weights = _empty(model.state_dict(), device, dtype)
    _fill(_slots(weights), tensors, reading, progress)
    model.load_state_dict(weights, assign=True)
    return model


def _open_generator(
    files: ModelFiles, config: ModelConfig, loras: Sequence[UserLora] = (), control: bool = False
) -> tuple[dict[str, Tensor], Adapter, Adapter]:
    """The generator's tensors, what LongLive's LoRA adds to them, and what ``loras`` then add."""
    stored = tensors_in(files.generator, ("generator", "generator_ema", "model"))
    tensors = {key.replace("_fsdp_wrapped_module.", "").removeprefix("model."): t for key, t in stored.items()}
    if len(tensors) < len(stored):
        raise CheckpointError(f"{files.generator} holds some tensors twice, with and without a prefix")
    shapes = generator_shapes(config)
    check_tensors(files.generator, tensors, shapes, files.config)
    own = open_adapter(files.lora, shapes) if files.lora else {}
    return tensors, own, _joined(open_user_loras(loras, _adaptable(config, control)))


def _open_control(files: ModelFiles, config: ModelConfig) -> dict[str, Tensor]:
    """The tensors of VACE's module, out of a whole checkpoint if need be."""
    assert files.control is not None
    stored = {key.removeprefix("model."): tensor for key, tensor in tensors_in(files.control).items()}
    tensors = {key: tensor for key, tensor in stored.items() if key.startswith("vace_")}
    if not tensors:
        raise CheckpointError(f"{files.control} has no tensors vace_...: it is no VACE; it holds {some(stored)}")
    check_tensors(files.control, tensors, control_shapes(config), files.config)
    return tensors


def _adaptable(config: ModelConfig, control: bool) -> dict[str, torch.Size]:
    """Shapes of what a user's LoRA may adapt."""
    return generator_shapes(config) | (control_shapes(config) if control else {})


def _reading(files: ModelFiles, loras: Sequence[UserLora] = (), control: bool = False) -> Reading:
    own = files.generator, files.lora, files.control if control else None
    paths = [*own, *(lora.path for lora in loras if isinstance(lora, UserLora))]
    return Reading(path for path in paths if path)


def _joined(adapters: Sequence[Adapter]) -> Adapter:
    """What several adapters add, in their order: refilling must round as loading did."""
    terms: dict[str, list[Term]] = {}
    for key, added in (item for adapter in adapters for item in adapter.items()):
        terms.setdefault(key, []).extend(added)
    return terms


def _open_vae(files: ModelFiles, model: ModelConfig) -> tuple[dict[str, Tensor], Autoencoder]:
    """The VAE's tensors, and the network that they fit, on the meta device."""
    tensors, tiny = tensors_in(files.vae), files.vae_type in ("tae", "lighttae")
    found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    try:
        if tiny:
            vae = Tae(TaeConfig.from_shapes(found, light=files.vae_type == "lighttae"), device="meta")
        else:
            vae = WanVae(VaeConfig.from_shapes(found), device="meta")
    except ValueError as error:
        raise CheckpointError(f"{files.vae}: {error}") from error
    shapes = {key: tensor.shape for key, tensor in vae.state_dict().items()}
    if tiny:
        tensors = last_rows(tensors, shapes)
    check_tensors(files.vae, tensors, shapes, vae.config)
    if not vae.config.z_dim == model.in_dim == model.out_dim:
        wanted = f"in_dim {model.in_dim}, out_dim {model.out_dim}"
        raise CheckpointError(f"{files.vae} has {vae.config.z_dim} latent channels, {files.config} has {wanted}")
    return tensors, vae


def _empty(tensors: Mapping[str, Tensor], device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
    return {key: torch.empty(tensor.shape, device=device, dtype=dtype) for key, tensor in tensors.items()}


def _slots(weights: Mapping[str, Tensor]) -> dict[str, Slot]:
    return {key: Slot(weight) for key, weight in weights.items()}


@torch.no_grad()  # a file may hold parameters
def _fill(
    slots: Mapping[str, Slot],
    tensors: Mapping[str, Tensor],
    reading: Reading,
    progress: BytesDone | None = None,
    adapters: Sequence[Adapter] = (),
) -> None:
    """Write ``tensors`` into ``slots``, merged with one of ``adapters`` after the other.

    Raises CheckpointError for NaN or infinity, and for a file that changes meanwhile.
    """
    total, done, sums = sum(slot.nbytes for slot in slots.values()), 0, []
    for key, slot in slots.items():
        reading.check()
        weight = tensors[key].to(slot.device, non_blocking=True)
        for adapter in adapters:
            if key in adapter:
                weight = merge(weight, adapter[key])
        slot.write(weight)
        # All sums are looked at together, so that loading waits for the device once.
        sums.append(slot.sum())
        done += slot.nbytes
        if progress:
            progress(done, total)
    reading.check()
    finite = torch.stack(sums).isfinite().tolist()
    bad = [key for key, good in zip(slots, finite, strict=True) if not good]
    if bad:
        raise CheckpointError(f"{reading} holds NaN or infinity in {some(bad)}")
