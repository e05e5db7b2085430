"""One prompt and seed through one denoiser: free-running, and teacher-forced along a reference's run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...runtime.backends import Denoiser
from ...runtime.denoise import Step, denoise
from ...runtime.errors import BackendError
from ...runtime.text import Conditioning
from . import metrics

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Run:
    """A denoising run, fp32 on the CPU: for S steps, S + 1 latents of [1, channels, frames, height, width].

    `velocities` has a tensor [halves, channels, frames, height, width] a step: (uncond, cond), or (cond,) without
    guidance. `seconds` is the wall time of each step, scheduler included.
    """

    latents: list[Tensor]
    timesteps: list[float]
    velocities: list[Tensor]
    seconds: list[float]


@dataclass(frozen=True)
class ForcedErrors:
    """A candidate's velocities along a reference's run: cosine and relative error a step, for both guidance halves."""

    cond_cosine: list[float]
    uncond_cosine: list[float]
    cond_error: list[float]
    uncond_error: list[float]


def free_run(
    denoiser: Denoiser,
    noise: Tensor,
    scheduler: Any,
    conditioning: Conditioning,
    guidance: float,
    progress: Progress | None = None,
) -> Run:
    """Denoises `noise` and keeps every step. `scheduler` is ready for its steps, on the denoiser's device."""
    at = denoiser.device
    latents, timesteps, velocities, seconds = [noise], [], [], []
    last = time.perf_counter()

    def observe(step: Step) -> None:
        nonlocal last
        halves = step.cond if step.uncond is None else torch.cat([step.uncond, step.cond])
        velocities.append(halves.cpu())
        latents.append(step.next_latents.cpu())
        timesteps.append(step.timestep)
        now = time.perf_counter()
        seconds.append(now - last)
        last = now

    text, mask = conditioning.text.to(at), conditioning.mask.to(at)
    denoise(denoiser, noise.to(at), scheduler, text, mask, guidance=guidance, observe=observe, progress=progress)
    return Run(latents, timesteps, velocities, seconds)


@torch.no_grad()
def teacher_forced(
    denoiser: Denoiser, reference: Run, conditioning: Conditioning, progress: Progress | None = None
) -> ForcedErrors:
    """Shows the denoiser what the reference saw at every step, and compares the velocities."""
    at, total = denoiser.device, len(reference.timesteps)
    batch = len(reference.velocities[0])
    text, mask = conditioning.text[-batch:].to(at), conditioning.mask[-batch:].to(at)
    errors = ForcedErrors([], [], [], [])
    for index, (timestep, wanted) in enumerate(zip(reference.timesteps, reference.velocities, strict=True)):
        latents = reference.latents[index].to(at).expand(batch, -1, -1, -1, -1)
        times = torch.full((batch,), timestep, device=at)
        got = denoiser(latents, times, text, mask).float().cpu()
        if not got.isfinite().all():
            where = f"{denoiser.name}, step {index + 1} of {total}"
            raise BackendError("Denoiser returned NaN or infinity", where=where, expected="finite")
        errors.cond_cosine.append(metrics.cosine(wanted[-1], got[-1]))
        errors.cond_error.append(metrics.relative_error(wanted[-1], got[-1]))
        if batch == 2:
            errors.uncond_cosine.append(metrics.cosine(wanted[0], got[0]))
            errors.uncond_error.append(metrics.relative_error(wanted[0], got[0]))
        if progress is not None:
            progress(index + 1, total)
    return errors


def drift(reference: Run, candidate: Run) -> list[float]:
    """Relative error of the candidate's latents after each step."""
    pairs = zip(reference.latents[1:], candidate.latents[1:], strict=True)
    return [metrics.relative_error(a, b) for a, b in pairs]
