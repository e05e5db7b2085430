"""The verb `demo`: the whole chain on the nano model, by the same commands that a person would type."""

from __future__ import annotations

import shlex
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..runtime.errors import GateError
from .cli import parser, run_verb

PROMPT = "a red circle moves left to right on a blue background."
TITLES = {
    "calibrate": "record what the denoiser sees",
    "quantize": "pack its weights",
    "export": "write ONNX, and compare it with torch",
    "build": "compile an engine; the GPU need not be here",
    "generate": "make a video",
    "report": "measure it against bf16",
}


def demo(options: Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Runs every stage, says what it does and what it left. Stages that are done already are skipped."""
    start, missed = time.perf_counter(), None
    results: list[dict[str, Any]] = []
    for command in commands(options.out, options.recipe, options.target, options.device):
        verb = command[0]
        say(f"\n{len(results) + 1}. {TITLES[verb]}\n$ {shlex.join(['sana-edge', *command])}")
        began = time.perf_counter()
        try:
            outcome = run_verb(parser().parse_args(command), say)
        except GateError as error:
            outcome, missed = {"error": str(error)}, error
        results.append({"verb": verb, "seconds": round(time.perf_counter() - began, 1), **_brief(outcome)})
    say(f"\n{time.perf_counter() - start:.0f} s in all. Now open:")
    for path in (options.out / "report" / "report.html", options.out / "video.mp4"):
        say(f"  {path.absolute()}")
    if missed is not None:
        raise missed
    return {"out": options.out, "seconds": round(time.perf_counter() - start, 1), "stages": results}


def commands(out: Path, recipe: str, target: str, device: str | None) -> list[list[str]]:
    """The chain as command lines: small enough for two CPU cores. --force replaces what another recipe left."""
    at = ["--device", device] if device else []
    calibration, quantized, onnx, bundle = (str(out / n) for n in ("calibration", "quantized", "onnx", "bundle"))
    name = Path(recipe).stem
    return [
        ["calibrate", "nano", "--samples", "4", "--steps", "8", "--out", calibration, "--force", *at],
        ["quantize", "nano", "--recipe", recipe, "--calibration", calibration, "--out", quantized, "--force", *at],
        ["export", quantized, "--out", onnx, "--force"],
        ["build", onnx, "--target", target, "--out", bundle, "--force"],
        ["generate", bundle, "--prompt", PROMPT, "--out", str(out / "video.mp4"), *at],
        [
            *("report", "--reference", "nano", "--candidate", f"{name}={bundle}", "--samples", "3"),
            *("--out", str(out / "report"), "--force", *at),
        ],
    ]


def _brief(outcome: dict[str, Any]) -> dict[str, Any]:
    """What the JSON line keeps of a stage's outcome."""
    return {name: outcome[name] for name in ("out", "cached", "page", "passed", "backend", "error") if name in outcome}
