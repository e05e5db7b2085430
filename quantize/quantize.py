"""Stage `quantize`: a checkpoint, a recipe and a calibration become a quantized checkpoint.

The result is a diffusers pipeline folder: its transformer holds packed weights, the text encoder, tokenizer, VAE and
scheduler are the parent's files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..calibration_data.trajectories import STAGE as CALIBRATE
from ..calibration_data.trajectories import read_trajectories
from ..runtime.artefact import Manifest, parent_digest, read_manifest, run_stage, versions
from ..runtime.backends.torch_backend import choose_device
from ..runtime.checkpoint import find_checkpoint, read_config
from ..runtime.errors import InputError
from ..runtime.formats import Format
from ..runtime.linear_dit import LinearDiT
from ..runtime.pipeline import link_components
from ..runtime.quantized_linear import QUANT_CONFIG, InputScales, load_denoiser_model
from .modelopt_calibration import fake_quantize, read_scales
from .packed_checkpoint import write_transformer
from .recipe import Recipe, load_recipe

STAGE = "quantize"
MIN_STEPS = 4
Progress = Callable[[int, int], None]


def quantize(
    checkpoint: str | Path,
    recipe: str | Path,
    calibration: Path | None,
    out: Path,
    *,
    device: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Quantizes the transformer of a checkpoint into the folder `out`.

    `calibration` is a folder of the calibrate stage made from this checkpoint; recipes whose formats need none (bf16,
    mxfp8) leave it out of the result. Inputs are measured in bf16 on a GPU and in fp32 on the CPU; weights are always
    quantized from the checkpoint in fp32. `progress(done, total)` counts replayed steps.

    The manifest's details hold the format of every Linear, and for each quantized one its bytes and the SQNR (signal
    to quantization noise, dB) of its weight. Raises InputError for a calibration that is missing, too small or of
    another checkpoint, and FormatError, naming the layer, for tensors that cannot be quantized.
    """
    folder, chosen = find_checkpoint(checkpoint), load_recipe(recipe)
    if (folder / "transformer" / QUANT_CONFIG).exists():
        fix = "quantize the checkpoint that it was made from"
        raise InputError("Checkpoint is quantized already", where=folder, expected="a plain checkpoint", fix=fix)
    config = read_config(folder)
    with torch.device("meta"):
        model = LinearDiT(config)
    formats = chosen.assign(model)
    parent = parent_digest(folder)
    measured = None
    if any(format.calibrated for format in formats.values()):
        measured = check_calibration(calibration, parent, chosen)
    inputs = {
        "checkpoint": parent,
        "recipe": asdict(chosen),
        "calibration": measured.digest if measured else None,
        "versions": versions("torch", "nvidia-modelopt"),
    }

    def produce(partial: Path) -> dict[str, Any]:
        start = time.perf_counter()
        scales = _measure(folder, chosen, formats, calibration, device, progress) if measured and calibration else {}
        link_components(folder, partial)
        layers = write_transformer(folder / "transformer", partial / "transformer", config, formats, scales)
        return {
            "recipe": chosen.name,
            "formats": {name: format.name for name, format in formats.items()},
            "layers": layers,
            "transformer_bytes": sum(p.stat().st_size for p in (partial / "transformer").glob("*.safetensors")),
            "bf16_bytes": 2 * sum(p.numel() for p in model.parameters()),
            "samples": measured.details["samples"] if measured else 0,
            "seconds": round(time.perf_counter() - start, 1),
        }

    return run_stage(out, STAGE, inputs, produce, force=force)


def check_calibration(calibration: Path | None, parent: str, recipe: Recipe) -> Manifest:
    """The manifest of a calibration that fits. Raises InputError for none, another checkpoint's, or too few steps."""
    if calibration is None:
        fix = "run the calibrate stage first"
        raise InputError(f"Recipe {recipe.name} needs a calibration", expected="a folder of trajectories", fix=fix)
    manifest = read_manifest(calibration, CALIBRATE)
    if manifest.inputs["checkpoint"] != parent:
        raise InputError(
            "Calibration belongs to another checkpoint",
            where=calibration,
            expected=parent,
            got=manifest.inputs["checkpoint"],
            fix="calibrate this checkpoint",
        )
    steps = manifest.details["samples"] * manifest.details["steps"]
    if steps < MIN_STEPS:
        fix, expected = "calibrate with more samples or more steps", f"at least {MIN_STEPS} steps"
        raise InputError("Calibration is too small", where=calibration, expected=expected, got=steps, fix=fix)
    return manifest


def replay(
    model: nn.Module, calibration: Path, device: torch.device, total: int = 0, progress: Progress | None = None
) -> None:
    """Runs every recorded step of a calibration folder through `model`, both halves as one batch."""
    done = 0
    for trajectory in read_trajectories(calibration):
        for batch in trajectory.batches():
            model(*(tensor.to(device) for tensor in batch))
            done += 1
            if progress is not None:
                progress(done, total)


def _measure(
    folder: Path,
    recipe: Recipe,
    formats: Mapping[str, Format],
    calibration: Path,
    device: str | None,
    progress: Progress | None,
) -> dict[str, InputScales]:
    """Scales of the inputs of all calibrated layers, from a replay through ModelOpt's quantizers."""
    target = choose_device(device)
    model = load_denoiser_model(folder, dtype=torch.float32 if target.type == "cpu" else torch.bfloat16, device=target)
    details = read_manifest(calibration, CALIBRATE, verify=False).details
    total = details["samples"] * details["steps"]
    with torch.no_grad():
        fake_quantize(model, formats, recipe, lambda m: replay(m, calibration, target, total, progress))
    return read_scales(model, formats)
