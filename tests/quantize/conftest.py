"""A tiny checkpoint with random weights, and a calibration of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from sana_edge.calibration_data.trajectories import calibrate
from sana_edge.runtime.artefact import link_tree
from sana_edge.runtime.checkpoint import COMPONENTS, NANO, to_diffusers
from sana_edge.runtime.linear_dit import DiTConfig, LinearDiT
from sana_edge.runtime.shapes import VideoShape

TINY = {
    "in_channels": 16,
    "out_channels": 16,
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "num_layers": 2,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 32,
    "caption_channels": 192,
    "mlp_ratio": 3.0,
    "patch_size": [1, 2, 2],
}


def make_model() -> LinearDiT:
    return LinearDiT(DiTConfig.from_diffusers(TINY)).eval().requires_grad_(False)


@pytest.fixture
def random_model() -> Callable[[], LinearDiT]:
    """Makes tiny models with fresh random weights."""
    return make_model


def write_checkpoint(folder: Path, model: LinearDiT) -> Path:
    """A pipeline folder of `model` and nano's other components."""
    for name in COMPONENTS:
        link_tree(NANO / name, folder / name)
    (folder / "model_index.json").write_bytes((NANO / "model_index.json").read_bytes())
    (folder / "transformer").mkdir()
    (folder / "transformer/config.json").write_text(json.dumps(TINY))
    tensors = to_diffusers(model.state_dict(), model.config)
    save_file(tensors, folder / "transformer/diffusion_pytorch_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint whose activations have an outlier channel, as those of real transformers do."""
    model = make_model()
    for block in model.blocks:
        block.scale_shift_table[1, 5] += 20
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), model)


@pytest.fixture(scope="session")
def calibration(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibration") / "calibration"
    calibrate(checkpoint, folder, samples=2, steps=3, shape=VideoShape(9, 64, 96), guidance=3.0, device="cpu")
    return folder


@pytest.fixture
def batch() -> tuple[torch.Tensor, ...]:
    """Random inputs of the tiny model: two halves of a 3-frame video of 8x8 latent cells."""
    mask = torch.ones(2, 9)
    mask[0, 4:] = 0
    return torch.randn(2, 16, 3, 8, 8), torch.tensor([900.0, 30.0]), torch.randn(2, 9, 192), mask
