"""report.json: what is written is read back, and what cannot be read is refused with a reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sana_edge.runtime.errors import ArtefactError, InputError
from sana_edge.tools.report.schema import Report, read_report, write_report


def test_report_round_trips(tmp_path: Path, report: Report) -> None:
    write_report(report, tmp_path / "report.json")
    assert read_report(tmp_path / "report.json") == report


def test_unknown_fields_are_ignored(tmp_path: Path, report: Report) -> None:
    """A later minor version adds fields; this reader does without."""
    path = tmp_path / "report.json"
    write_report(report, path)
    data = json.loads(path.read_text())
    data["version"], data["carbon"] = "1.9", 3
    data["candidates"][0]["watts"] = [1, 2]
    path.write_text(json.dumps(data))
    assert read_report(path) == replace(report, version="1.9")


def _newer(data: dict[str, Any]) -> None:
    data["version"] = "2.0"


def _lacks(data: dict[str, Any]) -> None:
    del data["candidates"][0]["clips"][0]["drift"]


def _mistyped(data: dict[str, Any]) -> None:
    data["protocol"]["steps"] = "twelve"


def _unversioned(data: dict[str, Any]) -> None:
    del data["version"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [(_newer, "newer version"), (_lacks, "damaged"), (_mistyped, "twelve"), (_unversioned, "Not a report")],
)
def test_unreadable_reports_are_refused(tmp_path: Path, report: Report, damage: Any, message: str) -> None:
    path = tmp_path / "report.json"
    write_report(report, path)
    data = json.loads(path.read_text())
    damage(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ArtefactError, match=message):
        read_report(path)


@pytest.mark.parametrize("content", ["", "[1]", "{", "\x00"])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(ArtefactError, match="Not a report"):
        read_report(path)


def test_missing_report_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such report"):
        read_report(tmp_path / "report.json")


def test_nan_is_refused(tmp_path: Path, report: Report) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_report(replace(report, timesteps=[float("nan")]), tmp_path / "report.json")
