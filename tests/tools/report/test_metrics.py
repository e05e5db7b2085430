"""Metrics against closed forms, numpy in another order of operations, and a window written out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sana_edge.tools.report.metrics import IDENTICAL_PSNR, cosine, psnr, relative_error, ssim


def test_cosine_of_known_angles() -> None:
    for degrees in (0, 30, 90, 135, 180):
        angle = math.radians(degrees)
        turned = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        assert cosine(torch.tensor([2.0, 0.0]), 7 * turned) == pytest.approx(math.cos(angle), abs=1e-12)


def test_cosine_resolves_what_bf16_does() -> None:
    """Rounding to bf16 leaves 1 - cosine near 3e-6, which fp32 sums over a million values would blur."""
    velocity = torch.randn(16, 21, 60, 52)
    rounded = velocity.bfloat16().float()
    a, b = velocity.numpy().astype(np.longdouble).ravel(), rounded.numpy().astype(np.longdouble).ravel()
    expected = float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
    assert 1 - cosine(velocity, rounded) == pytest.approx(1 - expected, rel=1e-6)


def test_zero_tensors_compare_without_nan() -> None:
    zero, one = torch.zeros(3), torch.ones(3)
    assert (cosine(zero, zero), cosine(zero, one), cosine(one, zero)) == (1, 0, 0)
    assert (relative_error(zero, zero), relative_error(zero, one), relative_error(one, zero)) == (0, 1, 1)


def test_relative_error_of_a_scaled_tensor_is_the_scale() -> None:
    velocity = torch.randn(2, 16, 9, 8, 8)
    assert relative_error(velocity, 1.25 * velocity) == pytest.approx(0.25, rel=1e-6)


def test_psnr_of_a_constant_offset() -> None:
    reference = np.random.default_rng().integers(0, 200, (3, 8, 10, 3), dtype=np.uint8)
    offsets = (1, 5, 20)
    candidate = np.stack([frame + offset for frame, offset in zip(reference, offsets, strict=True)]).astype(np.uint8)
    assert psnr(reference, candidate) == pytest.approx([20 * math.log10(255 / offset) for offset in offsets])


def test_psnr_of_identical_frames_is_the_cap() -> None:
    frames = np.random.default_rng().integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    assert psnr(frames, frames) == [IDENTICAL_PSNR] * 2


def test_ssim_of_flat_frames_has_a_closed_form() -> None:
    """Without variance SSIM is its luminance term, (2ab + C1) / (a^2 + b^2 + C1)."""
    a, b, c1 = 90.0, 150.0, (0.01 * 255) ** 2
    reference, candidate = np.full((1, 32, 32, 3), a, np.uint8), np.full((1, 32, 32, 3), b, np.uint8)
    assert ssim(reference, candidate) == pytest.approx([(2 * a * b + c1) / (a * a + b * b + c1)], rel=1e-6)


def test_ssim_is_the_formula_of_wang_2004() -> None:
    """One colour channel after another with an 11 x 11 Gaussian window of sigma 1.5 in torch, as the paper states."""
    rng = np.random.default_rng()
    reference = rng.integers(0, 256, (1, 40, 48, 3), dtype=np.uint8)
    candidate = np.clip(reference + rng.normal(0, 25, reference.shape), 0, 255).astype(np.uint8)
    axis = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-(axis**2) / (2 * 1.5**2))
    window = (line[:, None] * line[None] / line.sum() ** 2)[None, None]

    def local_mean(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(x[:, None], window)

    x, y = (torch.from_numpy(v[0]).double().permute(2, 0, 1) for v in (reference, candidate))
    mx, my = local_mean(x), local_mean(y)
    vx, vy, vxy = local_mean(x * x) - mx**2, local_mean(y * y) - my**2, local_mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = ((2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()
    assert ssim(reference, candidate) == pytest.approx([float(expected)], rel=1e-6)
