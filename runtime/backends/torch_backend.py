"""The torch denoiser: LinearDiT with plain or quantized weights, on the CPU or a CUDA GPU."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..errors import BackendError, InputError
from ..quantized_linear import load_denoiser_model


def choose_device(device: str | None) -> torch.device:
    """The device asked for, or CUDA where there is one. Raises BackendError for CUDA without a GPU."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise BackendError("No CUDA GPU here", where="device", expected="an NVIDIA GPU and its driver", got=device)
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise InputError("Unknown device", where="device", expected="cpu, cuda or cuda:N", got=device) from error


class TorchDenoiser:
    """LinearDiT in bf16 (default) or fp32."""

    def __init__(self, folder: Path, *, device: str | None = None, dtype: torch.dtype | None = None) -> None:
        dtype = dtype or torch.bfloat16
        if dtype not in (torch.bfloat16, torch.float32):
            raise InputError("Denoiser cannot run in this dtype", expected="bfloat16 or float32", got=dtype)
        self.device = choose_device(device)
        self.model = load_denoiser_model(folder, dtype=dtype, device=self.device)
        self.name = f"torch {str(dtype).removeprefix('torch.')} on {self.device}"

    def __call__(self, latents: Tensor, timesteps: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        return self.model(latents, timesteps, text, text_mask)

    def close(self) -> None:
        del self.model
