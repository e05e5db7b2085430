"""The demo's command lines are ones that the command line accepts, each made from what the one before left."""

from __future__ import annotations

from pathlib import Path

from sana_edge.tools.cli import parser
from sana_edge.tools.demo import TITLES, commands


def test_every_command_parses_and_feeds_the_next() -> None:
    lines = commands(Path("out"), "fp8", "rtx4090", "cpu")
    parsed = [parser().parse_args(line) for line in lines]
    assert [options.verb.name for options in parsed] == list(TITLES)
    calibrate, quantize, export, build, generate, report = parsed
    assert quantize.calibration == calibrate.out
    assert Path(export.checkpoint) == quantize.out
    assert (build.onnx, build.target) == (export.out, ["rtx4090"])
    assert Path(generate.source) == build.out
    assert report.candidate == [f"fp8={build.out}"]
    assert {p.parent for p in (calibrate.out, quantize.out, export.out, build.out, generate.out, report.out)} == {
        Path("out")
    }
