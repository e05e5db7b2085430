"""Distances between a reference and a candidate: of velocities and latents, and of decoded frames.

Pure functions of arrays. Velocities and latents are compared in fp64, so that the metric's own rounding is far below
what a number format does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

IDENTICAL_PSNR = 100.0
"""dB for identical frames, whose PSNR is infinite; one unit in one channel of a 480x832 frame is 108 dB, capped too."""


def cosine(reference: Tensor, candidate: Tensor) -> float:
    """Cosine of the angle between two tensors of one shape, read as vectors: 1 is the same direction.

    0 where just one of them is zero, 1 where both are.
    """
    a, b = reference.double().flatten(), candidate.double().flatten()
    norms = float(a.norm() * b.norm())
    if norms == 0:
        return float(a.norm() == b.norm())
    return max(-1.0, min(1.0, float(a @ b) / norms))


def relative_error(reference: Tensor, candidate: Tensor) -> float:
    """|candidate - reference| / |reference| in the 2-norm; 0 is equal, 1 is as wrong as a zero tensor.

    Where the reference is zero: 0 for an equal candidate, else 1.
    """
    a, b = reference.double(), candidate.double()
    norm, error = float(a.norm()), float((b - a).norm())
    return error / norm if norm else float(error > 0)


def psnr(reference: np.ndarray, candidate: np.ndarray) -> list[float]:
    """Peak signal-to-noise ratio in dB of each frame of uint8 videos [F, H, W, 3], at most `IDENTICAL_PSNR`."""
    difference = reference.astype(np.float64) - candidate.astype(np.float64)
    error = np.square(difference).mean(axis=(1, 2, 3))
    floor = 255.0**2 / 10 ** (IDENTICAL_PSNR / 10)
    return [float(v) for v in 10 * np.log10(255.0**2 / np.maximum(error, floor))]


def ssim(reference: np.ndarray, candidate: np.ndarray) -> list[float]:
    """Structural similarity of each frame of uint8 videos [F, H, W, 3]; 1 is identical.

    Gaussian window of sigma 1.5 over the colour channels' mean, as in Wang et al., 2004.
    """
    from skimage.metrics import structural_similarity

    return [
        float(
            structural_similarity(
                a, b, channel_axis=-1, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
            )
        )
        for a, b in zip(reference, candidate, strict=True)
    ]


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of at least one value."""
    return sum(values) / len(values)
