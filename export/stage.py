"""The stages `export` (checkpoint -> ONNX folder) and `build` (ONNX folder -> bundle)."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..runtime.artefact import MANIFEST, Manifest, link_tree, parent_digest, read_manifest, run_stage, versions
from ..runtime.checkpoint import find_checkpoint
from ..runtime.errors import BackendError, InputError, MissingExtraError
from ..runtime.formats import find_format
from ..runtime.pipeline import default_settings, link_components
from ..runtime.shapes import VideoShape, read_geometry
from ..runtime.targets import find_target, require_format
from .engine import engine_from_onnx, require_builder

EXPORT, BUILD = "export", "build"
GRAPH = "denoiser.onnx"
ENGINES = "engines"
log = logging.getLogger(__name__)


def export_onnx(
    checkpoint: str | Path, out: Path, *, shape: VideoShape | None = None, batch: int = 2, force: bool = False
) -> Manifest:
    """Writes the denoiser of a plain or quantized checkpoint as ONNX, with its twin, for one video shape.

    The folder holds `denoiser.onnx` (bf16 carrier, Q/DQ, for TensorRT-RTX), `twin.onnx` (fp32 carrier, for ONNX
    Runtime) on the same weights, and the checkpoint's other components. `shape` defaults to the checkpoint's; `batch`
    is 2 with guidance. The manifest's details hold each layer's format and bytes, what each pass changed, and the
    comparison with torch. Raises InputError for sizes that do not divide, ArtefactError for a damaged checkpoint,
    BackendError when the twin differs from torch or there is no ONNX Runtime, MissingExtraError without ONNX.
    """
    _require_onnx()
    from .graph import DenoiserShape
    from .onnx_folder import write_graphs

    folder = find_checkpoint(checkpoint)
    if (folder / MANIFEST).exists():
        read_manifest(folder, "quantize", verify=False)
    video = shape or default_settings(folder).shape
    if batch < 1:
        raise InputError("Batch out of range", where="batch", expected="1, or 2 with guidance", got=batch)
    sizes = DenoiserShape(read_geometry(folder).latent_shape(video), batch)
    inputs = {
        "checkpoint": parent_digest(folder),
        "video": asdict(video),
        "batch": batch,
        "versions": versions("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime"),
    }

    def produce(partial: Path) -> dict[str, Any]:
        link_components(folder, partial)
        (partial / "transformer").mkdir()
        shutil.copy(folder / "transformer" / "config.json", partial / "transformer")
        return {"video": asdict(video), **write_graphs(folder, sizes, partial)}

    return run_stage(out, EXPORT, inputs, produce, force=force)


def build(onnx: Path, out: Path, *, targets: Sequence[str], force: bool = False) -> Manifest:
    """Compiles an engine for each target from an ONNX folder, without a GPU, into a bundle.

    The bundle holds all of the ONNX folder (linked) and `engines/TARGET.engine`. The manifest's details are those of
    the export and, a target, an `EngineInfo`. Everything that can be refused is refused before the first engine is
    compiled: InputError for an unknown target or another artefact, FormatError for a format that a target does not
    multiply, ArtefactError for a damaged ONNX folder, MissingExtraError without TensorRT-RTX.
    """
    parent = read_manifest(onnx, EXPORT)
    rows = [find_target(name) for name in dict.fromkeys(targets)]
    if not rows:
        raise InputError("No target GPU", where="targets", expected="at least one, for example rtx5090")
    formats: Mapping[str, str] = parent.details["formats"]
    for target in rows:
        for name in sorted(set(formats.values())):
            require_format(target, find_format(name))
    require_builder()
    inputs = {
        "onnx": parent.digest,
        "targets": {target.name: target.capability for target in rows},
        "versions": versions("tensorrt-rtx-cu13"),
    }

    def produce(partial: Path) -> dict[str, Any]:
        partial.rmdir()
        link_tree(onnx, partial)
        (partial / MANIFEST).unlink()
        (partial / ENGINES).mkdir()
        engines = {}
        for target in rows:
            log.info("compiling for %s", target.marketing_name)
            engine = partial / ENGINES / f"{target.name}.engine"
            engines[target.name] = asdict(engine_from_onnx(partial / GRAPH, target, engine, formats))
        return {**parent.details, "engines": engines}

    return run_stage(out, BUILD, inputs, produce, force=force)


def _require_onnx() -> None:
    for package in ("onnx", "onnx_ir", "onnxscript"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "export", "Exporting")
    if find_spec("onnxruntime") is None:  # in no extra: it and onnxruntime-gpu exclude each other
        fix = "pip install onnxruntime, or onnxruntime-gpu"
        raise BackendError("Comparing the twin with torch needs ONNX Runtime, which is not installed", fix=fix)
