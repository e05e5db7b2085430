"""A report of invented numbers over really rendered videos, so that the page can be tested without a model."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sana_edge.calibration_data.moving_shapes import caption, held_out_contents, place, render
from sana_edge.runtime.video import write_video
from sana_edge.tools.report.gate import apply_gates, read_thresholds
from sana_edge.tools.report.schema import VERSION, Adherence, Clip, Protocol, Report, Side

STEPS, FRAMES = 12, 17
LAYERS = ("attn1.to_qkv", "attn1.to_out", "attn2.to_q", "ff.conv_inverted", "ff.conv_point")


def invented_report(folder: Path, *, cosine: float = 0.985, seed: int | None = None, clips: int = 2) -> Report:
    """A report with one candidate whose teacher-forced cosines average `cosine`; its videos are written to `folder`."""
    rng = random.Random(seed)
    contents = rng.sample(held_out_contents(), clips)
    yes = Adherence(shape=True, colour=True, background=True, direction=True, speed=True, adheres=True)

    def clip(index: int, name: str, noise: float) -> Clip:
        video = render([place(contents[index], random.Random(index), frames=FRAMES)], frames=FRAMES)[0]
        frames = ((video.permute(1, 2, 3, 0).numpy() + 1) * 127.5).round()
        frames = np.clip(frames + np.random.default_rng(index).normal(0, noise, frames.shape), 0, 255).astype(np.uint8)
        path = f"videos/{name}-{index}.mp4"
        write_video(folder / path, frames)
        steps = range(STEPS if noise else 0)
        error = [rng.uniform(0.08, 0.14) + 0.15 * math.exp(-s / 2) for s in steps]
        return Clip(
            prompt=caption(contents[index]),
            seed=0,
            video=path,
            seconds=rng.uniform(3, 4),
            adherence=yes,
            cond_cosine=[cosine for _ in steps],
            uncond_cosine=[cosine for _ in steps],
            cond_error=error,
            uncond_error=[e * 0.8 for e in error],
            drift=[0.01 * (s + 1) ** 1.3 + rng.uniform(0, 0.02) for s in steps],
            psnr=[rng.uniform(22, 31) for _ in range(FRAMES if noise else 0)],
            ssim=[rng.uniform(0.8, 0.95) for _ in range(FRAMES if noise else 0)],
        )

    def side(name: str, noise: float, layers: dict[str, str]) -> Side:
        measured = bool(noise)
        return Side(
            name=name,
            source=f"/checkpoints/{name}",
            kind="quantized" if measured else "checkpoint",
            digest=f"{rng.getrandbits(256):064x}",
            runs="torch bfloat16 on cpu",
            format="nvfp4" if measured else "bf16",
            layers=layers,
            bytes=4_110_000 if measured else 12_300_000,
            step_seconds=0.31,
            adherence=1.0,
            cosine_mean=cosine if measured else None,
            cosine_min=cosine - 0.02 if measured else None,
            error_mean=0.12 if measured else None,
            drift_final=0.21 if measured else None,
            psnr_mean=26.1 if measured else None,
            ssim_mean=0.91 if measured else None,
            gates=[],
            clips=[clip(i, name, noise) for i in range(clips)],
        )

    layers = {f"blocks.{b}.{kind}": "fp8" if b in (0, 7) else "nvfp4" for b in range(8) for kind in LAYERS}
    report = Report(
        version=VERSION,
        created="2026-11-23T22:00:00+00:00",
        passed=False,
        protocol=Protocol([caption(c) for c in contents], [0], STEPS, 6.0, FRAMES, 128, 192, 16, "dpm-solver++"),
        timesteps=[1000 - 80.0 * s for s in range(STEPS)],
        environment={"Python": "3.11.7", "torch": "2.13.0", "Processor": "2 cores"},
        reference=side("nano", 0.0, {}),
        candidates=[side("nano-nvfp4", 9.0, layers)],
        baseline=None,
    )
    return apply_gates(report, read_thresholds())


@pytest.fixture
def invent() -> Callable[..., Report]:
    """`invented_report`, for tests that choose its numbers."""
    return invented_report


@pytest.fixture(scope="session")
def report_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the videos of `report` lie: do not write into it."""
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="session")
def report(report_folder: Path) -> Report:
    return invented_report(report_folder)
