"""The whole chain on the nano model by the installed command, small enough for a test: from checkpoint to report."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sana_edge.runtime.artefact import read_manifest
from sana_edge.runtime.video import read_video
from sana_edge.tools.report.schema import read_report

SIZE = ("--frames", "5", "--height", "64", "--width", "64")
Call = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Call:
    """Runs `sana-edge ... --json` in one folder and returns its JSON line."""
    folder = tmp_path_factory.mktemp("chain")

    def run(*arguments: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "sana_edge.tools.cli", *arguments, "--json"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return {**answer, "folder": folder}

    return run


@pytest.fixture(scope="module")
def bundle(call: Call) -> Path:
    """A bundle of nano in nvfp4 for the RTX 5090, by four commands."""
    call("calibrate", "nano", "--samples", "2", "--steps", "3", *SIZE, "--out", "calibration")
    call("quantize", "nano", "--recipe", "nvfp4", "--calibration", "calibration", "--out", "quantized")
    call("export", "quantized", *SIZE, "--out", "onnx")
    return call("build", "onnx", "--target", "rtx5090", "--out", "bundle")["folder"] / "bundle"


@pytest.mark.slow
def test_every_artefact_names_its_parent(call: Call, bundle: Path) -> None:
    root = bundle.parent
    made = {name: read_manifest(root / name) for name in ("calibration", "quantized", "onnx", "bundle")}
    assert made["quantized"].inputs["calibration"] == made["calibration"].digest
    assert made["quantized"].inputs["checkpoint"] == made["calibration"].inputs["checkpoint"]
    assert made["onnx"].inputs["checkpoint"] == made["quantized"].digest
    assert made["bundle"].inputs["onnx"] == made["onnx"].digest
    assert (bundle / "engines" / "rtx5090.engine").stat().st_size > 100_000


def test_finished_stages_are_skipped(call: Call, bundle: Path) -> None:
    before = (bundle / "manifest.json").stat().st_mtime_ns
    again = call("build", "onnx", "--target", "rtx5090", "--out", "bundle")
    assert again["cached"] is True
    assert (bundle / "manifest.json").stat().st_mtime_ns == before


def test_inspect_tells_what_each_layer_became(call: Call, bundle: Path) -> None:
    details = call("inspect", "bundle")["details"]
    asked, compiled = details["formats"], details["engines"]["rtx5090"]["compiled"]
    assert asked["blocks.0.ff.conv_inverted"] == compiled["blocks.0.ff.conv_inverted"] == "nvfp4"


def test_bundle_makes_a_video_and_says_how(call: Call, bundle: Path) -> None:
    prompt = "a red circle moves left to right on a blue background."
    made = call("generate", "bundle", "--prompt", prompt, "--steps", "2", "--seed", "7", "--out", "video.mp4")
    frames, rate, metadata = read_video(bundle.parent / "video.mp4")
    assert (frames.shape, rate) == ((5, 64, 64, 3), 16)
    assert metadata["prompt"].startswith(prompt)
    assert (metadata["seed"], metadata["backend"]) == (7, made["backend"])


def test_report_compares_bundle_and_checkpoint_with_the_reference(call: Call, bundle: Path) -> None:
    sides = ("--candidate", "torch=quantized", "--candidate", "bundle")
    answer = call("report", "--reference", "nano", *sides, "--samples", "1", "--steps", "3", "--out", "report")
    report = read_report(bundle.parent / "report" / "report.json")
    assert answer["passed"] is report.passed is True
    torch_side, bundle_side = report.candidates
    assert torch_side.layers == bundle_side.layers
    assert (torch_side.kind, bundle_side.kind, bundle_side.format) == ("quantized", "bundle", "nvfp4")
    assert torch_side.cosine_mean == pytest.approx(bundle_side.cosine_mean, abs=2e-3)
