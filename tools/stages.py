"""The verbs that make artefacts from artefacts: calibrate, quantize, export, build."""

from __future__ import annotations

import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..runtime.artefact import MANIFEST, Manifest
from ..runtime.errors import UsageError
from ..runtime.shapes import VideoShape
from .progress import bar

Say = Callable[[str], None]
Run = Callable[[Callable[[int, int], None]], Manifest]


def calibrate(options: Namespace, say: Say) -> dict[str, Any]:
    """Records trajectories."""
    from ..calibration_data.trajectories import calibrate as record

    def run(progress: Callable[[int, int], None]) -> Manifest:
        return record(
            options.checkpoint,
            options.out,
            prompts=options.prompts,
            samples=options.samples,
            steps=options.steps,
            shape=shape_of(options),
            guidance=options.guidance,
            seed=options.seed,
            device=options.device,
            force=options.force,
            progress=progress,
        )

    return make("calibrate", options.out, run, say)


def quantize(options: Namespace, say: Say) -> dict[str, Any]:
    """Writes a quantized checkpoint."""
    from ..quantize.quantize import quantize as run_quantize

    def run(progress: Callable[[int, int], None]) -> Manifest:
        return run_quantize(
            options.checkpoint,
            options.recipe,
            options.calibration,
            options.out,
            device=options.device,
            force=options.force,
            progress=progress,
        )

    return make("quantize", options.out, run, say)


def export(options: Namespace, say: Say) -> dict[str, Any]:
    """Writes the ONNX graph and its twin."""
    from ..export.stage import export_onnx

    def run(progress: Callable[[int, int], None]) -> Manifest:
        return export_onnx(
            options.checkpoint, options.out, shape=shape_of(options), batch=options.batch, force=options.force
        )

    return make("export", options.out, run, say)


def build(options: Namespace, say: Say) -> dict[str, Any]:
    """Builds engines and the bundle."""
    from ..export.stage import build as build_bundle

    def run(progress: Callable[[int, int], None]) -> Manifest:
        return build_bundle(options.onnx, options.out, targets=options.target, force=options.force)

    return make("build", options.out, run, say)


def make(stage: str, out: Path, run: Run, say: Say) -> dict[str, Any]:
    """Runs a stage under a progress bar, says what it left, and returns that for the JSON line."""
    before, start = _written(out), time.perf_counter()
    with bar(stage) as progress:
        manifest = run(progress)
    seconds, cached = time.perf_counter() - start, before is not None and before == _written(out)
    done = "already done" if cached else f"{seconds:.1f} s"
    say(f"{stage}: {out} ({describe(manifest.details)}; {done})")
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    made = {"stage": stage, "out": out, "cached": cached, "seconds": round(seconds, 3), "bytes": size}
    return {**made, "digest": manifest.digest, "details": manifest.details}


def describe(details: Mapping[str, Any]) -> str:
    """The few words of a manifest's details that a person wants first."""
    words = []
    if "samples" in details and "steps" in details:
        words.append(f"{details['samples']} prompts of {details['steps']} steps")
    if "formats" in details:
        counts = Counter(details["formats"].values()).most_common()
        words.append(", ".join(f"{count} layers {name}" for name, count in counts))
    if "engines" in details:
        words.append(f"engine for {', '.join(details['engines'])}")
    return "; ".join(words) or "done"


def shape_of(options: Namespace) -> VideoShape | None:
    """The video shape asked for, or None for the checkpoint's. Raises UsageError when only a part of it is given."""
    sizes = (options.frames, options.height, options.width)
    if all(size is None for size in sizes):
        return None
    if None in sizes:
        raise UsageError("A size needs all three", expected="--frames, --height and --width together", got=sizes)
    return VideoShape(*sizes)


def _written(out: Path) -> int | None:
    """When the artefact under `out` was written, ns; None where there is none."""
    path = out / MANIFEST
    return path.stat().st_mtime_ns if path.is_file() else None
