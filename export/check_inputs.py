"""Inputs to compare the twin and the torch model on: random ones, and states of a real denoising trajectory."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..runtime.denoise import Step, denoise, initial_noise
from ..runtime.linear_dit import LinearDiT
from ..runtime.pipeline import default_settings
from ..runtime.schedule import TEXT_TO_VIDEO, load_scheduler
from ..runtime.text import encode_prompts, with_motion_score
from .graph import DenoiserShape

PROMPT = "a red circle moves left to right on a blue background."
STEPS = 4

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
"""(latents, timesteps [batch, frames], text, text mask), fp32, of the graph's static shapes."""


def random_inputs(model: LinearDiT, shape: DenoiserShape, seed: int = 0) -> Inputs:
    """Gaussian latents and text, one timestep a frame as in image-to-video, and a mask that hides half of one text."""
    generator = torch.Generator().manual_seed(seed)
    sizes = shape.inputs(model.config)
    timesteps = 1000 * torch.rand(sizes["timesteps"][0], 1, generator=generator).expand(sizes["timesteps"]).clone()
    timesteps[:, 0] = 0
    mask = torch.ones(sizes["text_mask"])
    mask[0, shape.text_tokens // 2 :] = 0
    latents, text = (torch.randn(sizes[name], generator=generator) for name in ("latents", "text"))
    return latents, timesteps, text, mask


def realistic_inputs(model: LinearDiT, shape: DenoiserShape, checkpoint: Path, seed: int = 0) -> Inputs:
    """The model's input in the middle of a short trajectory of its own, with an encoded prompt and its negative."""
    settings = default_settings(checkpoint)
    [conditioning] = encode_prompts(checkpoint, [with_motion_score(PROMPT, settings.motion_score)], dtype=torch.float32)
    steps: list[Step] = []
    denoise(
        model,
        initial_noise(shape.latents, seed),
        load_scheduler(checkpoint, TEXT_TO_VIDEO, STEPS),
        conditioning.text,
        conditioning.mask,
        guidance=settings.guidance,
        observe=steps.append,
    )
    middle = steps[STEPS // 2]
    rows = torch.arange(shape.batch) % 2
    timesteps = torch.full((shape.batch, shape.latents[1]), middle.timestep)
    latents = middle.latents.expand(shape.batch, -1, -1, -1, -1)
    return latents, timesteps, conditioning.text[rows].float(), conditioning.mask[rows].float()
