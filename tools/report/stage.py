"""Stage `report`: measure, gate, and write report.json and report.html."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...calibration_data.prompts import Prompt
from ...runtime.artefact import run_stage, versions
from ...runtime.backends import choose_backend
from ...runtime.errors import InputError
from ...runtime.shapes import read_geometry
from .collect import Setup, collect, samples_of
from .gate import Thresholds, apply_gates, read_thresholds
from .page import render
from .schema import Report, read_report, write_report
from .subjects import Subject

STAGE = "report"
JSON, PAGE = "report.json", "report.html"


def make_report(
    reference: Subject,
    candidates: Sequence[Subject],
    out: Path,
    *,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    setup: Setup,
    thresholds: Thresholds | None = None,
    baseline: Path | None = None,
    force: bool = False,
) -> Report:
    """Writes report.json, report.html and the videos into the folder `out`, and returns the report.

    A missed gate is in the report (`passed`, and `gate.check_verdict` raises it): the files are written either way.
    Raises InputError for sides that cannot be compared, before anything runs.
    """
    setup.settings.check()
    if not prompts or not seeds:
        raise InputError("Nothing to run", expected="at least one prompt and one seed")
    geometry = read_geometry(reference.folder)
    geometry.check(setup.settings.shape)
    for candidate in candidates:
        if (got := read_geometry(candidate.folder)) != geometry:
            fix = "compare with the checkpoint that it was made from"
            where = candidate.source
            raise InputError("Candidate has other latents", where=where, expected=geometry, got=got, fix=fix)
    earlier = read_report(baseline) if baseline else None
    limits = read_thresholds() if thresholds is None else thresholds
    inputs = {
        "reference": reference.digest,
        "candidates": {c.name: [c.digest, choose_backend(c.folder, setup.backend)] for c in candidates},
        "prompts": [asdict(p) for p in prompts],
        "seeds": list(seeds),
        "setup": asdict(setup),
        "thresholds": limits,
        "baseline": asdict(earlier) if earlier else None,
        "versions": versions("torch", "diffusers", "transformers", "onnxruntime", "tensorrt-rtx-cu13"),
    }

    def produce(folder: Path) -> dict[str, Any]:
        (folder / "videos").mkdir()
        measured = collect(reference, candidates, samples_of(prompts, seeds), setup, folder)
        report = apply_gates(measured, limits, earlier, baseline)
        write_report(report, folder / JSON)
        (folder / PAGE).write_text(render(report, folder), encoding="utf-8")
        return {"passed": report.passed, "candidates": [c.name for c in candidates]}

    run_stage(out, STAGE, inputs, produce, force=force)
    return read_report(out / JSON)
