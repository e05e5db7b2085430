"""The checkpoint's VAE in fp32: latents to frames, and the first image to latents.

It stays fp32 with TF32 off, because in lower precision it costs quality and is no part of what is quantized.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checkpoint import TensorFiles, read_json
from .errors import ArtefactError, InputError


def load_vae(checkpoint: Path, *, device: str | torch.device = "cpu") -> Any:
    """The fp32 VAE of a checkpoint folder: AutoencoderKLWan (480p) or AutoencoderKLLTX2Video (720p).

    Raises InputError for another class and ArtefactError for weights that are unreadable or do not fit the config.
    """
    import diffusers

    folder = checkpoint / "vae"
    config = read_json(folder / "config.json")
    name = config.get("_class_name")
    if name not in ("AutoencoderKLWan", "AutoencoderKLLTX2Video"):
        expected = "AutoencoderKLWan or AutoencoderKLLTX2Video"
        raise InputError("Unsupported VAE", where=folder, expected=expected, got=name)
    vae = getattr(diffusers, name).from_config(config).float()
    with TensorFiles(folder) as tensors:
        try:
            vae.load_state_dict({name: tensors[name] for name in vae.state_dict()})
        except RuntimeError as error:
            raise ArtefactError("VAE weights do not fit their config", where=folder, got=error) from error
    return vae.to(device).eval().requires_grad_(False)


@torch.no_grad()
def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """Latents [1, channels, frames, height, width] of the denoiser -> fp32 frames [F, H, W, 3] in 0..1, on the CPU."""
    latents = latents.to(vae.device, torch.float32)
    mean, std = _statistics(vae)
    with _full_fp32():
        video = vae.decode(latents * std + mean, return_dict=False)[0]
    return (video[0] * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 3, 0).cpu()


@torch.no_grad()
def encode_image(vae: Any, image: np.ndarray) -> Tensor:
    """A uint8 image [H, W, 3] -> normalized fp32 latents [1, channels, 1, height, width], the posterior's mode."""
    pixels = torch.from_numpy(image).to(vae.device, torch.float32).permute(2, 0, 1) / 255 * 2 - 1
    mean, std = _statistics(vae)
    with _full_fp32():
        latents = vae.encode(pixels[None, :, None]).latent_dist.mode()
    return (latents - mean) / std


def to_uint8(frames: Tensor) -> np.ndarray:
    """fp32 frames in 0..1 -> uint8 frames of the same shape, rounded to nearest."""
    return (frames * 255).round().to(torch.uint8).numpy()


def _statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents [1, channels, 1, 1, 1]: buffers in LTX2's VAE, config in Wan's."""
    source = dict(vae.config) | dict(vae.named_buffers())
    values = (source["latents_mean"], source["latents_std"])
    mean, std = (torch.as_tensor(v, dtype=torch.float32, device=vae.device).view(1, -1, 1, 1, 1) for v in values)
    return mean, std


@contextmanager
def _full_fp32() -> Iterator[None]:
    """Switches TF32 off for convolutions and matrix products, and restores what was set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
