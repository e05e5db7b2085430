"""The gate: what passes, what fails, and what is too few videos to tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sana_edge.runtime.errors import ArtefactError, GateError, InputError
from sana_edge.tools.report.gate import apply_gates, check_verdict, judge, read_thresholds
from sana_edge.tools.report.schema import Clip, Report, Side

THRESHOLDS = read_thresholds()


def with_clips(side: Side, count: int, adhering: int) -> Side:
    """The side with `count` judged clips of which `adhering` show what was asked."""
    seen = side.clips[0].adherence
    assert seen is not None

    def clip(index: int) -> Clip:
        return replace(side.clips[0], adherence=replace(seen, adheres=index < adhering))

    return replace(side, clips=[clip(i) for i in range(count)], adherence=adhering / count)


@pytest.mark.parametrize(
    ("number_format", "cosine", "passes"),
    [("nvfp4", 0.9701, True), ("nvfp4", 0.9699, False), ("fp8", 0.9901, True), ("fp8", 0.9899, False)],
)
def test_cosine_is_gated_by_format(report: Report, number_format: str, cosine: float, passes: bool) -> None:
    candidate = replace(report.candidates[0], format=number_format, cosine_mean=cosine)
    gated = apply_gates(replace(report, candidates=[candidate]), THRESHOLDS)
    assert gated.passed is passes


def test_failed_gate_names_candidate_gate_and_numbers(report: Report) -> None:
    candidate = replace(report.candidates[0], cosine_mean=0.5)
    gated = apply_gates(replace(report, candidates=[candidate]), THRESHOLDS)
    with pytest.raises(GateError, match=r"(?s)nano-nvfp4: mean velocity cosine is 0\.5, at least 0\.97") as raised:
        check_verdict(gated, Path("report.html"))
    assert raised.value.exit_code == 3


@pytest.mark.parametrize(
    ("count", "adhering", "status"),
    [(25, 24, "pass"), (25, 23, "fail"), (24, 0, "not-gated"), (100, 96, "pass"), (100, 95, "fail")],
)
def test_adherence_is_gated_once_one_video_weighs_little(
    report: Report, count: int, adhering: int, status: str
) -> None:
    reference, candidate = (
        with_clips(s, count, n) for s, n in ((report.reference, count), (report.candidates[0], adhering))
    )
    [_, gate] = judge(candidate, reference, THRESHOLDS)
    assert gate.status == status
    assert gate.measured == pytest.approx(100 * (count - adhering) / count)
    assert bool(gate.note) == (status == "not-gated")


def test_unknown_adherence_is_said_and_not_gated(report: Report) -> None:
    clips = [replace(c, adherence=None) for c in report.candidates[0].clips]
    candidate = replace(report.candidates[0], clips=clips, adherence=None)
    gate = judge(candidate, report.reference, THRESHOLDS)[1]
    assert (gate.status, gate.measured) == ("not-gated", None)
    assert "moving-shapes" in gate.note


def test_regression_against_a_baseline_fails(tmp_path: Path, report: Report) -> None:
    worse = replace(report.candidates[0], cosine_mean=report.candidates[0].cosine_mean - 0.003)  # type: ignore[operator]
    gated = apply_gates(replace(report, candidates=[worse]), THRESHOLDS, report, tmp_path / "report.json")
    assert [g.status for g in gated.candidates[0].gates] == ["pass", "not-gated", "fail"]
    assert not gated.passed


def test_baseline_of_another_protocol_is_refused(tmp_path: Path, invent: Callable[..., Report]) -> None:
    now, then = (invent(tmp_path, seed=s) for s in (1, 2))
    with pytest.raises(InputError, match="prompts"):
        apply_gates(now, THRESHOLDS, then, tmp_path / "report.json")


def test_baseline_without_the_candidate_is_refused(tmp_path: Path, report: Report) -> None:
    then = replace(report, candidates=[replace(report.candidates[0], name="another")])
    with pytest.raises(ArtefactError, match="another"):
        apply_gates(report, THRESHOLDS, then, tmp_path / "report.json")


@pytest.mark.parametrize(
    "text",
    [
        "[nvfp4]\ncosine_mean = 'high'\nadherence_drop = 4",
        "[nvfp4]\ncosine = 0.9",
        "[fp5]\ncosine_mean = 1",
        "nan",
        "a = 1",
    ],
)
def test_malformed_thresholds_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "gates.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"gates\.toml"):
        read_thresholds(path)


def test_format_without_thresholds_is_refused(tmp_path: Path, report: Report) -> None:
    path = tmp_path / "gates.toml"
    path.write_text("[fp8]\ncosine_mean = 0.99\nadherence_drop = 2")
    with pytest.raises(InputError, match="nvfp4"):
        apply_gates(report, read_thresholds(path))
