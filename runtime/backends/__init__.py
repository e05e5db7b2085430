"""Ways to make a denoiser: torch, ONNX Runtime, TensorRT-RTX. The artefact and the hardware decide, or the caller."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..artefact import MANIFEST, Manifest, read_manifest, verify_payloads
from ..errors import BackendError, InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

log = logging.getLogger(__name__)

TORCH, ONNXRUNTIME, TENSORRT_RTX = "torch", "onnxruntime", "tensorrt-rtx"
CAPABLE = {"checkpoint": (TORCH,), "export": (ONNXRUNTIME,), "build": (TENSORRT_RTX, ONNXRUNTIME)}
"""Backends that run an artefact of a stage, best first; plain and quantized checkpoints are `checkpoint`."""


class Denoiser(Protocol):
    """A loaded denoiser: `name` says what runs, `device` where it expects its inputs and leaves its output."""

    name: str
    device: torch.device

    def __call__(self, latents: Tensor, timesteps: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """Velocity of latents [B, C, F, H, W] at timesteps [B] or [B, F]; text [B, T, D], text_mask [B, T]."""
        ...

    def close(self) -> None:
        """Frees weights and device memory."""
        ...


def read_stage(folder: Path) -> tuple[str, Manifest | None]:
    """What a folder is: `checkpoint`, `export` or `build`, with its manifest if it has one."""
    if not (folder / MANIFEST).exists():
        return "checkpoint", None
    manifest = read_manifest(folder, verify=False)
    stage = "checkpoint" if manifest.stage == "quantize" else manifest.stage
    if stage not in CAPABLE:
        expected = "a checkpoint, an ONNX folder or a bundle"
        raise InputError("Artefact makes no video", where=folder, expected=expected, got=f"stage {stage}")
    return stage, manifest


def choose_backend(folder: Path, backend: str = "auto") -> str:
    """The backend that will run a folder; `auto` takes the best that can and logs why.

    Cheap: nothing is loaded. Raises InputError for a backend that cannot run this artefact, BackendError for one
    that cannot run on this machine.
    """
    stage, manifest = read_stage(folder)
    capable = CAPABLE[stage]
    if backend not in ("auto", *capable):
        expected = ", ".join(("auto", *capable))
        raise InputError("Backend cannot run this artefact", where=folder, expected=expected, got=backend)
    chosen, reason = (capable[0] if backend == "auto" else backend), f"the only one for stage {stage}"
    if chosen == TENSORRT_RTX and manifest is not None:
        from .tensorrt_rtx_backend import choose_engine

        try:
            reason = f"{choose_engine(manifest)} fits this GPU"
        except BackendError as error:
            if backend != "auto":
                raise
            chosen, reason = ONNXRUNTIME, " ".join(str(error).split())
    if backend == "auto":
        log.info("backend %s: %s", chosen, reason)
    return chosen


def open_denoiser(
    source: Path, backend: str = "auto", *, device: str | None = None, dtype: torch.dtype | None = None
) -> Denoiser:
    """Loads the denoiser of a checkpoint (plain or quantized), ONNX folder or bundle, after checking its digests.

    device and dtype (bf16 by default) concern torch; the others run where and as they were made. Raises InputError,
    ArtefactError or BackendError.
    """
    chosen = choose_backend(source, backend)
    _, manifest = read_stage(source)
    if chosen == TORCH:
        from .torch_backend import TorchDenoiser

        verify_part(source, manifest, lambda name: name.startswith("transformer/"))
        return TorchDenoiser(source, device=device, dtype=dtype)
    if chosen == ONNXRUNTIME:
        from .onnxruntime_backend import OnnxRuntimeDenoiser

        verify_part(source, manifest, lambda name: "/" not in name)  # graphs and the weights they share
        return OnnxRuntimeDenoiser(source / "twin.onnx")
    from .tensorrt_rtx_backend import TensorRtRtxDenoiser, choose_engine

    assert manifest is not None
    engine = choose_engine(manifest)
    verify_part(source, manifest, lambda name: name == engine)
    return TensorRtRtxDenoiser(source / engine)


def verify_part(folder: Path, manifest: Manifest | None, is_used: Callable[[str], bool]) -> None:
    """Checks the digests of those payloads that are about to be used. Raises ArtefactError."""
    if manifest is not None:
        used = {name: digest for name, digest in manifest.payloads.items() if is_used(name)}
        verify_payloads(folder, replace(manifest, payloads=used))
