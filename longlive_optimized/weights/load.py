"""Checkpoint files to networks.

Every name and shape is checked before a byte is copied. Tensors go one by one from the mapped file to the device and
are rounded there, once; host memory holds no second copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..model.config import ModelConfig
from ..model.transformer import Transformer
from ..vae.config import VaeConfig
from ..vae.model import WanVae
from . import CheckpointError
from .files import check_tensors, some, tensors_in
from .locate import ModelFiles
from .lora import merge, open_adapter

if TYPE_CHECKING:
    from ..text.encoder import TextEncoder
    from ..text.tokenizer import Tokenizer

Progress = Callable[[int, int], None]  # (bytes done, bytes in all), of the weights as they lie on the device
Adapter = Mapping[str, tuple[Tensor, Tensor]]


def check(files: ModelFiles) -> None:
    """Check every file of a model, and that they fit together, without loading any.

    Raises CheckpointError for the first file that does not fit, FileNotFoundError for one that is gone.
    """
    config = _config(files)
    _open_generator(files, config)
    _open_vae(files, config)
    _open_text(files, config)


def load_generator(
    files: ModelFiles, device: torch.device | str, dtype: torch.dtype, progress: Progress | None = None
) -> Transformer:
    """The diffusion transformer with LongLive's LoRA folded in (float32, rounded once); CheckpointError."""
    config = _config(files)
    tensors, adapter = _open_generator(files, config)
    model = Transformer(config, device=device, dtype=dtype)
    source = f"{files.generator} merged with {files.lora}" if adapter else str(files.generator)
    _fill(model.checkpoint_views(), tensors, source, progress, adapter)
    return model


def load_vae(
    files: ModelFiles,
    device: torch.device | str,
    dtype: torch.dtype,
    encoder: bool = True,
    progress: Progress | None = None,
) -> WanVae:
    """The video autoencoder, or its decoder alone; CheckpointError."""
    tensors, config = _open_vae(files, _config(files))
    model = WanVae(config, encoder=encoder, device="meta")
    weights = _empty(model.state_dict(), device, dtype)
    _fill(weights, tensors, str(files.vae), progress)
    model.load_state_dict(weights, assign=True)
    return model


def load_text_encoder(
    files: ModelFiles, device: torch.device | str, dtype: torch.dtype, progress: Progress | None = None
) -> TextEncoder:
    """The umT5 encoder with its tokenizer; weights stored as fp8 are widened to ``dtype``; CheckpointError."""
    from ..text.encoder import TextEncoder

    tensors, tokenizer = _open_text(files, _config(files))
    weights = _empty(tensors, device, dtype)
    _fill(weights, tensors, str(files.text), progress)
    return TextEncoder(weights, tokenizer)


def _config(files: ModelFiles) -> ModelConfig:
    try:
        return ModelConfig.from_json(files.config)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _open_generator(files: ModelFiles, config: ModelConfig) -> tuple[dict[str, Tensor], Adapter]:
    stored = tensors_in(files.generator, ("generator", "generator_ema", "model"))
    tensors = {key.replace("_fsdp_wrapped_module.", "").removeprefix("model."): t for key, t in stored.items()}
    if len(tensors) < len(stored):
        raise CheckpointError(f"{files.generator} holds some tensors twice, with and without a prefix")
    shapes = {key: view.shape for key, view in Transformer(config, device="meta").checkpoint_views().items()}
    check_tensors(files.generator, tensors, shapes, files.config)
    return tensors, open_adapter(files.lora, shapes) if files.lora else {}


def _open_vae(files: ModelFiles, model: ModelConfig) -> tuple[dict[str, Tensor], VaeConfig]:
    tensors = tensors_in(files.vae)
    try:
        config = VaeConfig.from_shapes({key: tuple(tensor.shape) for key, tensor in tensors.items()})
    except ValueError as error:
        raise CheckpointError(f"{files.vae}: {error}") from error
    shapes = {key: tensor.shape for key, tensor in WanVae(config, device="meta").state_dict().items()}
    check_tensors(files.vae, tensors, shapes, f"a Wan 2.1 VAE of width {config.base}")
    if not config.z_dim == model.in_dim == model.out_dim:
        found = f"in_dim {model.in_dim}, out_dim {model.out_dim}"
        raise CheckpointError(f"{files.vae} has {config.z_dim} latent channels, {files.config} has {found}")
    return tensors, config


def _open_text(files: ModelFiles, model: ModelConfig) -> tuple[dict[str, Tensor], Tokenizer]:
    from ..text.encoder import checkpoint_shapes, config_of
    from ..text.tokenizer import Tokenizer

    tensors = tensors_in(files.text)
    try:
        tokenizer = Tokenizer(files.tokenizer, model.text_len)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    try:
        config = config_of({key: tensor.shape for key, tensor in tensors.items()})
    except ValueError as error:
        raise CheckpointError(f"{files.text}: {error}") from error
    check_tensors(files.text, tensors, checkpoint_shapes(config), "a umT5 encoder")
    if config.d_model != model.text_dim:
        expected = f"{files.config} has text_dim {model.text_dim}"
        raise CheckpointError(f"{files.text} makes embeddings of width {config.d_model}, {expected}")
    if tokenizer.vocabulary > config.vocab_size:
        ids = f"{files.tokenizer} has {tokenizer.vocabulary} ids"
        raise CheckpointError(f"{ids}, the token_embedding.weight of {files.text} only {config.vocab_size} rows")
    return tensors, tokenizer


def _empty(tensors: Mapping[str, Tensor], device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
    return {key: torch.empty(tensor.shape, device=device, dtype=dtype) for key, tensor in tensors.items()}


def _fill(
    views: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    source: str,
    progress: Progress | None,
    adapter: Adapter | None = None,
) -> None:
    """Copy ``tensors`` into ``views``, merging what ``adapter`` adapts; CheckpointError for NaN or infinity."""
    total, done = sum(view.nbytes for view in views.values()), 0
    sums = next(iter(views.values())).new_zeros(len(views), dtype=torch.float32)
    for i, (key, view) in enumerate(views.items()):
        weight = tensors[key].to(view.device)
        view.copy_(merge(weight, *adapter[key]) if adapter and key in adapter else weight)
        # A NaN or infinity survives summation. All sums are looked at together, so that loading syncs once.
        sums[i] = view.sum(dtype=torch.float32)
        done += view.nbytes
        if progress:
            progress(done, total)
    finite = sums.isfinite().tolist()
    bad = [key for key, good in zip(views, finite, strict=True) if not good]
    if bad:
        raise CheckpointError(f"{source} holds NaN or infinity in {some(bad)}")
