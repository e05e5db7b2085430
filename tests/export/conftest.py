"""Tiny random LinearDiTs in every number format, exported once a session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from sana_edge.export.check_inputs import random_inputs
from sana_edge.export.graph import DenoiserShape, graph_from_model
from sana_edge.export.onnx_folder import GRAPH, TWIN, WEIGHTS
from sana_edge.export.twin import twin_from_onnx
from sana_edge.runtime.formats import E2M1_MAX, E4M3_MAX, FORMATS
from sana_edge.runtime.linear_dit import DiTConfig, LinearDiT
from sana_edge.runtime.quantized_linear import InputScales, quantize_linears
from torch import nn

CONFIG = DiTConfig(
    in_channels=16,
    out_channels=16,
    num_attention_heads=2,
    attention_head_dim=32,
    num_layers=2,
    num_cross_attention_heads=2,
    cross_attention_head_dim=32,
    caption_channels=64,
    mlp_ratio=3.0,
    patch_size=(1, 2, 2),
)
SHAPE = DenoiserShape((16, 3, 8, 8))
CASES = ("bf16", "int8", "int8 smooth", "fp8", "mxfp8", "nvfp4", "nvfp4 smooth", "mixed")
LARGEST = {"int8": 127.0, "fp8": E4M3_MAX, "nvfp4": E2M1_MAX * E4M3_MAX, "mxfp8": 1.0}


@dataclass(frozen=True)
class Exported:
    """A model, what each of its Linears was asked to be, and the folder of its graph and twin."""

    model: LinearDiT
    formats: dict[str, str]
    folder: Path

    @property
    def graph(self) -> Path:
        return self.folder / GRAPH

    @property
    def twin(self) -> Path:
        return self.folder / TWIN


def block_linears(model: LinearDiT) -> dict[str, nn.Linear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.startswith("blocks.")}


def formats_of(case: str, model: LinearDiT) -> dict[str, str]:
    """Every Linear's format: one for all Linears of the blocks, or another for each in turn."""
    formats = {n: "bf16" for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    low = ["int8", "fp8", "nvfp4", "bf16", "mxfp8"] if case == "mixed" else [case.split(maxsplit=1)[0]]
    return formats | {name: low[i % len(low)] for i, name in enumerate(block_linears(model))}


def random_model(case: str) -> tuple[LinearDiT, dict[str, str]]:
    """A quantized bf16 model with calibrated inputs, and its formats. Seeds are fresh in every session."""
    model = LinearDiT(CONFIG).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.05)
    formats, largest = formats_of(case, model), input_maxima(model)
    scales = {}
    for name, linear in block_linears(model).items():
        smooth = torch.rand(linear.in_features) + 0.5 if "smooth" in case else None
        scales[name] = InputScales(torch.tensor(largest[name] / LARGEST.get(formats[name], 1.0)), smooth)
    model.to(torch.bfloat16)
    return quantize_linears(model, {n: FORMATS[f] for n, f in formats.items()}, scales), formats


def input_maxima(model: LinearDiT) -> dict[str, float]:
    """The largest magnitude that each Linear of the blocks reads on random inputs."""
    maxima: dict[str, float] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[torch.Tensor]], None]:
        return lambda _, inputs: maxima.__setitem__(name, inputs[0].abs().amax().item())

    handles = [m.register_forward_pre_hook(watch(n)) for n, m in block_linears(model).items()]
    model(*random_inputs(model, SHAPE, seed=1))
    for handle in handles:
        handle.remove()
    return maxima


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """case -> a random model of that case, exported once."""

    @cache
    def export(case: str) -> Exported:
        model, formats = random_model(case)
        folder = tmp_path_factory.mktemp(case.replace(" ", "-"))
        graph, _ = graph_from_model(model, SHAPE)
        ir.save(graph, folder / GRAPH, external_data=WEIGHTS)
        twin_from_onnx(folder / GRAPH, folder / TWIN)
        return Exported(model, formats, folder)

    return export
