"""The verb `report`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...calibration_data.prompts import HELDOUT, read_prompts
from ...runtime.backends.torch_backend import choose_device
from ...runtime.errors import InputError
from ...runtime.pipeline import default_settings
from .collect import Setup
from .gate import check_verdict, read_thresholds
from .page import milliseconds, number, percent, size
from .schema import Report
from .stage import JSON, PAGE, make_report
from .subjects import describe, parse_candidates


def report(options: Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Writes the report and says its verdict. Raises GateError, after writing, when a threshold was missed."""
    names = parse_candidates(options.candidate, Path(options.reference).name)
    reference = describe(Path(options.reference).name, options.reference)
    candidates = [describe(name, source) for name, source in names]
    path = options.prompts or HELDOUT
    prompts = read_prompts(path)
    if options.samples > len(prompts):
        expected = f"at most its {len(prompts)} prompts"
        raise InputError("Samples out of range", where=path, expected=expected, got=options.samples)
    asked = {name: getattr(options, name) for name in ("frames", "height", "width", "steps", "guidance")}
    sized_by = next((c.source for c in candidates if c.kind in ("onnx", "bundle")), options.reference)
    settings = replace(default_settings(sized_by), **{k: v for k, v in asked.items() if v is not None})
    dtype = options.dtype or ("fp32" if choose_device(options.device).type == "cpu" else "bf16")
    made = make_report(
        reference,
        candidates,
        options.out,
        prompts=prompts[: options.samples],
        seeds=options.seeds,
        setup=Setup(settings, dtype, options.backend, options.device),
        thresholds=read_thresholds(options.gates) if options.gates else None,
        baseline=options.baseline,
        force=options.force,
    )
    say(summary(made))
    say(f"report: {options.out / PAGE}")
    check_verdict(made, options.out / PAGE)
    return {"out": options.out, "report": options.out / JSON, "page": options.out / PAGE, **headline(made)}


def headline(report: Report) -> dict[str, Any]:
    """The verdict and the main numbers of a report, for the JSON line."""
    names = ("format", "cosine_mean", "error_mean", "adherence", "bytes", "step_seconds")
    sides = {side.name: {name: getattr(side, name) for name in names} for side in report.candidates}
    return {"passed": report.passed, "candidates": sides}


def summary(report: Report) -> str:
    """The verdict in a few lines of plain text."""
    lines = [f"{'PASSED' if report.passed else 'FAILED'}: {', '.join(c.name for c in report.candidates)}"]
    for side in (report.reference, *report.candidates):
        cosine = "" if side.cosine_mean is None else f", velocity cosine {number(side.cosine_mean, 5)}"
        judged = "" if side.adherence is None else f", adherence {percent(side.adherence)}"
        lines.append(
            f"  {side.name}: {side.format}, {size(side.bytes)}, step {milliseconds(side.step_seconds)}{cosine}{judged}"
        )
    return "\n".join(lines)
