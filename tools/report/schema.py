"""report.json: what a report holds, written and read under a version.

The dataclasses below are the schema, field by field. `version` is "MAJOR.MINOR": a new field raises MINOR, and readers
ignore fields they do not know; a changed or removed one raises MAJOR, and readers refuse a newer MAJOR. Lists named
`steps` run over denoising steps, lists in `Clip` over steps or frames as said there.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...runtime.errors import ArtefactError, InputError

VERSION = "1.0"


@dataclass(frozen=True)
class Protocol:
    """What every side was asked: reports are comparable when this is equal. Sizes in pixels."""

    prompts: list[str]
    seeds: list[int]
    steps: int
    guidance: float
    frames: int
    height: int
    width: int
    fps: int
    scheduler: str


@dataclass(frozen=True)
class Adherence:
    """What an analytic judge read back from a clip, each against the prompt."""

    shape: bool
    colour: bool
    background: bool
    direction: bool
    speed: bool
    adheres: bool


@dataclass(frozen=True)
class Clip:
    """One video of one side.

    `cond_*` and `uncond_*` are teacher-forced, a value a step; `drift` is the relative error of the free-running
    latents after each step; `psnr` (dB) and `ssim` have a value a frame. All compare with the reference's clip of the
    same prompt and seed, and are empty in the reference itself. `adherence` is null where the prompt is not a caption
    of the moving-shapes world. `seconds` is the free-running denoising loop, without text encoder and VAE.
    """

    prompt: str
    seed: int
    video: str
    seconds: float
    adherence: Adherence | None
    cond_cosine: list[float]
    uncond_cosine: list[float]
    cond_error: list[float]
    uncond_error: list[float]
    drift: list[float]
    psnr: list[float]
    ssim: list[float]


@dataclass(frozen=True)
class Gate:
    """One threshold. `status` is pass, fail or not-gated (with the reason in `note`); `at_least` says which way."""

    name: str
    measured: float | None
    threshold: float
    at_least: bool
    status: str
    note: str


@dataclass(frozen=True)
class Side:
    """The reference, or a candidate.

    `source` is a path or name, `kind` checkpoint, quantized, onnx or bundle. `layers` has the format of every Linear of
    the denoiser and `format` is the lowest of them. `bytes` is the denoiser's weights on disk. `runs` says backend,
    version and device; `step_seconds` is the median denoising step.
    """

    name: str
    source: str
    kind: str
    digest: str
    runs: str
    format: str
    layers: dict[str, str]
    bytes: int
    step_seconds: float
    adherence: float | None
    cosine_mean: float | None
    cosine_min: float | None
    error_mean: float | None
    drift_final: float | None
    psnr_mean: float | None
    ssim_mean: float | None
    gates: list[Gate]
    clips: list[Clip]


@dataclass(frozen=True)
class Report:
    """A whole report. `timesteps` (0..1000) has a value a step; `baseline` is the earlier report's file, if one."""

    version: str
    created: str
    passed: bool
    protocol: Protocol
    timesteps: list[float]
    environment: dict[str, str]
    reference: Side
    candidates: list[Side]
    baseline: str | None


def write_report(report: Report, path: Path) -> None:
    """Writes report.json; refuses NaN and infinity, which are not JSON."""
    path.write_text(json.dumps(asdict(report), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_report(path: Path) -> Report:
    """Reads a report.json of this or an earlier version.

    Raises InputError for a missing file, ArtefactError for one that is damaged or of a newer major version.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = str(data["version"])
        major = int(version.partition(".")[0])
    except FileNotFoundError:
        raise InputError("No such report", where=path, expected="a report.json") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtefactError("Not a report of sana-edge", where=path, got=repr(error)) from error
    if major > int(VERSION.partition(".")[0]):
        fix = "upgrade sana-edge"
        raise ArtefactError("Report is of a newer version", where=path, expected=VERSION, got=version, fix=fix)
    try:
        return _build(Report, data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtefactError("Report is damaged", where=path, got=repr(error)) from error


def _build(kind: Any, value: Any) -> Any:
    """A value of a schema type from JSON: dataclasses by field, lists and dicts by element."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return typing.cast(Any, kind)(**{name: _build(hint, value[name]) for name, hint in hints.items()})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if value is None else _build(arguments[0], value)
    if origin is list:
        return [_build(arguments[0], v) for v in value]
    if origin is dict:
        return {k: _build(arguments[1], v) for k, v in value.items()}
    if not isinstance(value, (int, float) if kind is float else kind):
        raise TypeError(f"expected {kind.__name__}, got {value!r}")
    return value
