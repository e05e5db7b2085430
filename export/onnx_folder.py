"""The files of an ONNX folder: graph, weights and twin of one denoiser, written and checked."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from ..runtime.linear_dit import LinearDiT
from ..runtime.quantized_linear import QuantizedLinear, load_denoiser_model
from .check import TOLERANCE, check_graph, check_twin
from .check_inputs import random_inputs, realistic_inputs
from .graph import OPSET, DenoiserShape, graph_from_model
from .precisions import graph_formats, layer_bytes
from .twin import twin_from_onnx

GRAPH, WEIGHTS, TWIN = "denoiser.onnx", "denoiser.onnx.data", "twin.onnx"
CHECK_LIMIT = 5e10
"""Matrix-product FLOP of one forward up to which the check runs at the exported size: about a minute on two cores."""

log = logging.getLogger(__name__)


def write_graphs(checkpoint: Path, sizes: DenoiserShape, folder: Path) -> dict[str, Any]:
    """Writes graph, weights and twin of a checkpoint's denoiser into a folder, and returns the manifest's details.

    Raises BackendError for a graph that is not valid ONNX and for a twin that differs from torch.
    """
    model = load_denoiser_model(checkpoint, dtype=torch.bfloat16)
    graph, passes = graph_from_model(model, sizes)
    log.info("writing %s", GRAPH)
    ir.save(graph, folder / GRAPH, external_data=WEIGHTS)
    twin_passes = twin_from_onnx(folder / GRAPH, folder / TWIN)
    for name in (GRAPH, TWIN):
        check_graph(folder / name)
    return {
        "latents": list(sizes.latents),
        "batch": sizes.batch,
        "text_tokens": sizes.text_tokens,
        "opset": OPSET,
        "formats": _formats(model),
        "layers": {n: {"graph": f, "bytes": layer_bytes(graph, n)} for n, f in graph_formats(graph).items()},
        "passes": {result.name: result.changed for result in (*passes, *twin_passes)},
        "twin_check": _check(folder, model.float(), sizes, checkpoint),
    }


def _formats(model: LinearDiT) -> dict[str, str]:
    """The format of every Linear by module name, as the checkpoint asks for it."""
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | QuantizedLinear)}
    return {n: m.format.name if isinstance(m, QuantizedLinear) else "bf16" for n, m in linears.items()}


def _check(folder: Path, model: LinearDiT, sizes: DenoiserShape, checkpoint: Path) -> dict[str, Any]:
    """Compares the twin with torch at the exported size, or, where that takes a CPU too long, at a small one."""
    if 2 * _multiplied(model) * sizes.batch * sizes.tokens(model.config) <= CHECK_LIMIT:
        log.info("comparing %s with torch", TWIN)
        cases = {"random": random_inputs(model, sizes), "realistic": realistic_inputs(model, sizes, checkpoint)}
        results = check_twin(folder / TWIN, model, cases)
    else:
        sizes = sizes.smallest(model.config)
        log.info("comparing a twin of latents %s with torch: the exported size would take too long", sizes.latents)
        results = _check_small(folder, model, sizes)
    return {"latents": list(sizes.latents), "tolerance": TOLERANCE, "results": [asdict(r) for r in results]}


def _check_small(folder: Path, model: LinearDiT, sizes: DenoiserShape) -> list[Any]:
    """Checks a twin made by the same passes for another size, on the weights that were written."""
    graph, _ = graph_from_model(model, sizes)
    written = ir.load(folder / GRAPH).graph.initializers
    for name in model.state_dict():
        if name in graph.graph.initializers:
            graph.graph.initializers[name].const_value = written[name].const_value
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            module.keep_dequantized = False
    small, twin = folder / "small.onnx", folder / "small-twin.onnx"
    try:
        ir.save(graph, small)
        twin_from_onnx(small, twin)
        return check_twin(twin, model, {"random": random_inputs(model, sizes)})
    finally:
        small.unlink(missing_ok=True)
        twin.unlink(missing_ok=True)


def _multiplied(model: LinearDiT) -> int:
    """Weights of the blocks' Linears; every video token meets each of them."""
    linears = (m for m in model.blocks.modules() if isinstance(m, nn.Linear | QuantizedLinear))
    return sum(m.in_features * m.out_features for m in linears)
