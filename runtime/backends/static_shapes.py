"""Calling a graph of fixed shapes: inputs are checked against it and split into its batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..errors import InputError

INPUTS = ("latents", "timesteps", "text", "text_mask")
OUTPUT = "velocity"


def call_static(
    run: Callable[..., Tensor], shapes: Mapping[str, tuple[int, ...]], where: str, *inputs: Tensor
) -> Tensor:
    """Runs a graph whose `shapes` are fixed on latents, timesteps [B] or [B, F], text and text mask.

    Inputs go in as contiguous fp32, timesteps per frame. A batch that is a multiple of the graph's runs in parts, so
    that a graph of batch 1 serves guidance as well. Raises InputError for any other shape.
    """
    latents, timesteps, text, text_mask = inputs
    if timesteps.ndim == 1:
        timesteps = timesteps[:, None].expand(-1, latents.shape[2])
    tensors = dict(zip(INPUTS, (latents, timesteps, text, text_mask), strict=True))
    batch = shapes["latents"][0]
    for name, tensor in tensors.items():
        if tuple(tensor.shape[1:]) != shapes[name][1:] or len(tensor) % batch:
            expected, got = list(shapes[name]), list(tensor.shape)
            fix = "export again for this size; a graph of batch 2 needs guidance above 1"
            raise InputError(
                "Graph was made for other shapes", where=f"{where}: {name}", expected=expected, got=got, fix=fix
            )
    parts = zip(*(t.float().contiguous().split(batch) for t in tensors.values()), strict=True)
    return torch.cat([run(*part) for part in parts])
