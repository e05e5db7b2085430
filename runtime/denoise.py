"""The denoising loop: from noise to latents with any denoiser, any scheduler, and classifier-free guidance.

It follows the numbers of diffusers' `SanaVideoPipeline` and `SanaImageToVideoPipeline`: latents, guidance and the
scheduler's step are fp32, whatever the denoiser computes in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import BackendError

Denoise = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(latents [B, C, F, H, W], timesteps [B] or [B, F], text [B, T, D], text mask [B, T]) -> velocity [B, C, F, H, W]"""


@dataclass(frozen=True)
class Step:
    """One step of the loop, for observers. Tensors are fp32 [1, channels, frames, height, width] in latent cells.

    `timestep` is in 0..1000; with a given first frame, that frame is at timestep 0 in every step. `uncond` and `cond`
    are the velocities before guidance (`uncond` is None where guidance is off), `next_latents` what the scheduler made
    of them.
    """

    index: int
    timestep: float
    latents: Tensor
    uncond: Tensor | None
    cond: Tensor
    next_latents: Tensor


@torch.no_grad()
def denoise(
    denoiser: Denoise,
    latents: Tensor,
    scheduler: Any,
    text: Tensor,
    text_mask: Tensor,
    *,
    guidance: float,
    first_frame: Tensor | None = None,
    observe: Callable[[Step], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Denoises `latents` through all timesteps of a scheduler that `schedule.load_scheduler` made ready.

    latents: fp32 noise [1, channels, frames, height, width]. text [2, tokens, channels] and text_mask [2, tokens] hold
    the unconditional and the conditional half; at guidance <= 1 only the conditional half runs. first_frame: latents
    [1, channels, 1, height, width] of an image; they replace frame 0, which is shown to the denoiser at timestep 0 and
    never stepped. `progress(done, total)` is called after each step. Raises BackendError on NaN or infinity.
    """
    guided = guidance > 1
    if not guided:
        text, text_mask = text[1:], text_mask[1:]
    batch, fixed = len(text), 0
    moving = torch.ones(latents.shape[2], device=latents.device)
    if first_frame is not None:
        fixed = 1
        latents = torch.cat([first_frame.to(latents), latents[:, :, 1:]], dim=2)
        moving[0] = 0

    total = len(scheduler.timesteps)
    for index, timestep in enumerate(scheduler.timesteps):
        times = (timestep * moving).expand(batch, -1) if fixed else timestep.float().expand(batch)
        halves = denoiser(latents.expand(batch, -1, -1, -1, -1), times.to(latents.device), text, text_mask).float()
        if not halves.isfinite().all():
            where = f"step {index + 1} of {total}, timestep {float(timestep):g}"
            fix = "the number format or the weights overflow; compare with bf16"
            raise BackendError("Denoiser returned NaN or infinity", where=where, expected="finite", fix=fix)
        uncond, cond = halves.chunk(2) if guided else (None, halves)
        velocity = cond if uncond is None else uncond + guidance * (cond - uncond)

        stepped = scheduler.step(velocity[:, :, fixed:], timestep, latents[:, :, fixed:], return_dict=False)[0]
        next_latents = torch.cat([latents[:, :, :fixed], stepped], dim=2)
        if observe is not None:
            observe(Step(index, float(timestep), latents, uncond, cond, next_latents))
        if progress is not None:
            progress(index + 1, total)
        latents = next_latents
    return latents


def initial_noise(shape: tuple[int, int, int, int], seed: int) -> Tensor:
    """fp32 noise [1, channels, frames, height, width] on the CPU, so that a seed means the same on every device."""
    return torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
