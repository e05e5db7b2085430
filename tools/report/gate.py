"""The quality gate: thresholds from gates.toml, held against what was measured.

Only teacher-forced velocities and prompt adherence are gated. Pixels are not: two good videos of one prompt may differ
in every pixel once their trajectories part.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...runtime.errors import ArtefactError, GateError, InputError
from .schema import Gate, Report, Side

GATES = Path(__file__).parent / "gates.toml"
_ROUNDING = 1e-9
PASS, FAIL, NOT_GATED = "pass", "fail", "not-gated"

Thresholds = Mapping[str, Mapping[str, float]]


def read_thresholds(path: Path = GATES) -> Thresholds:
    """Thresholds by number format. Raises InputError for a file that is missing, malformed or has unknown keys."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("Thresholds cannot be read", where=path, got=error) from error
    known = tomllib.loads(GATES.read_text(encoding="utf-8"))
    for format_name, table in tables.items():
        keys = set(known.get(format_name, ()))
        if not isinstance(table, dict) or set(table) != keys or not all(_is_number(v) for v in table.values()):
            expected = f"numbers {', '.join(sorted(keys))}" if keys else f"one of {', '.join(known)}"
            raise InputError("Thresholds are malformed", where=f"{path}: [{format_name}]", expected=expected, got=table)
    return tables


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def judge(candidate: Side, reference: Side, thresholds: Thresholds, earlier: Side | None = None) -> list[Gate]:
    """The gates of a candidate's number format, with their outcome; `earlier` is the same candidate in the baseline."""
    if candidate.format not in thresholds:
        expected = ", ".join(thresholds)
        raise InputError("No thresholds for this number format", where="gates", expected=expected, got=candidate.format)
    limits = thresholds[candidate.format]
    gates = [_at_least("mean velocity cosine", candidate.cosine_mean, limits["cosine_mean"])]
    gates.append(_adherence(candidate, reference, limits["adherence_drop"]))
    if earlier is not None and earlier.cosine_mean is not None:
        floor = earlier.cosine_mean - thresholds["baseline"]["cosine_drop"]
        gates.append(_at_least("mean velocity cosine, against the baseline", candidate.cosine_mean, floor))
    return gates


def _at_least(name: str, measured: float | None, threshold: float) -> Gate:
    passed = measured is not None and measured >= threshold
    return Gate(name, measured, threshold, at_least=True, status=PASS if passed else FAIL, note="")


def _adherence(candidate: Side, reference: Side, allowed: float) -> Gate:
    """The loss of adherence in points, gated when one video weighs no more than what is allowed."""
    name, judged = "adherence lost (points)", [c for c in candidate.clips if c.adherence is not None]
    if candidate.adherence is None or reference.adherence is None:
        note = "no prompt is a moving-shapes caption, so nothing judges adherence"
        return Gate(name, None, allowed, at_least=False, status=NOT_GATED, note=note)
    drop = 100 * (reference.adherence - candidate.adherence)
    needed = math.ceil(100 / allowed) if allowed > 0 else 1
    if len(judged) < needed:
        note = f"{len(judged)} videos judged; {needed} are needed for one video to weigh {allowed:g} points or less"
        return Gate(name, drop, allowed, at_least=False, status=NOT_GATED, note=note)
    status = PASS if drop <= allowed + _ROUNDING else FAIL
    return Gate(name, drop, allowed, at_least=False, status=status, note="")


def comparable(report: Report, baseline: Report, path: Path) -> None:
    """Raises InputError, naming the first difference, unless the baseline was made under the same protocol."""
    for name in baseline.protocol.__dataclass_fields__:
        now, then = getattr(report.protocol, name), getattr(baseline.protocol, name)
        if now != then:
            fix = "run the report with the baseline's prompts, seeds, steps and size"
            raise InputError("Baseline is not comparable", where=f"{path}: {name}", expected=now, got=then, fix=fix)


def apply_gates(
    report: Report, thresholds: Thresholds, baseline: Report | None = None, baseline_path: Path | None = None
) -> Report:
    """The report with its candidates' gates and the verdict. Baseline candidates are found by name."""
    earlier: dict[str, Side] = {}
    if baseline is not None and baseline_path is not None:
        comparable(report, baseline, baseline_path)
        earlier = {side.name: side for side in baseline.candidates}
        if missing := [c.name for c in report.candidates if c.name not in earlier]:
            expected, got = ", ".join(missing), ", ".join(earlier)
            raise ArtefactError("Baseline lacks a candidate", where=baseline_path, expected=expected, got=got)
    candidates = [
        replace(c, gates=judge(c, report.reference, thresholds, earlier.get(c.name))) for c in report.candidates
    ]
    passed = all(gate.status != FAIL for c in candidates for gate in c.gates)
    compared = str(baseline_path) if earlier else None
    return replace(report, candidates=candidates, passed=passed, baseline=compared)


def check_verdict(report: Report, page: Path) -> None:
    """Raises GateError, naming every threshold that was missed, unless the report passed."""
    missed = [
        f"{side.name}: {gate.name} is {gate.measured if gate.measured is None else round(gate.measured, 5)}, "
        f"{'at least' if gate.at_least else 'at most'} {gate.threshold:.5g} is needed"
        for side in report.candidates
        for gate in side.gates
        if gate.status == FAIL
    ]
    if missed:
        fix = "keep the worst layers in a higher precision, or calibrate on more prompts"
        raise GateError("Quality gate failed", where=page, got="; ".join(missed), fix=fix)
