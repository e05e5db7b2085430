"""The verbs of the command line as data: what each is for, its options, and the function that runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Argument:
    """One option or positional argument: its names and argparse's settings for it."""

    names: tuple[str, ...]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Verb:
    """A row of the table. `run` is "module:function" of this package, imported when the verb runs:
    function(options, say) -> a JSON object, where `say(text)` writes prose."""

    name: str
    run: str
    summary: str
    description: str
    arguments: tuple[Argument, ...] = ()


def _argument(*names: str, **settings: Any) -> Argument:
    return Argument(names, settings)


def _out(what: str) -> Argument:
    return _argument("--out", type=Path, metavar="DIR", required=True, help=what)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _list_of(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    def parse(text: str) -> list[Any]:
        return [kind(part.strip()) for part in text.split(",")]

    parse.__name__ = f"comma-separated list of {kind.__name__}"
    return parse


COMMON = (
    _argument("--json", action="store_true", help="end stdout with one JSON line; prose goes to stderr"),
    _argument("-v", "--verbose", action="count", default=0, help="log more and show tracebacks; -vv for all"),
)
_FORCE = _argument("--force", action="store_true", help="replace an artefact that --out already holds")
_DEVICE = _argument("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: a GPU where there is one)")
_BACKEND = _argument(
    "--backend",
    choices=("auto", "torch", "onnxruntime", "tensorrt-rtx"),
    default="auto",
    help="what runs the denoiser (default: the best that can)",
)
_SIZE = (
    _argument("--frames", type=positive, metavar="N", help="frames of the video (default: the checkpoint's)"),
    _argument("--height", type=positive, metavar="N", help="height in pixels"),
    _argument("--width", type=positive, metavar="N", help="width in pixels"),
)
_STEPS = _argument("--steps", type=positive, metavar="N", help="denoising steps (default: the checkpoint's)")
_GUIDANCE = _argument("--guidance", type=float, metavar="X", help="guidance scale (default: the checkpoint's)")
_CHECKPOINT = "nano, a diffusers pipeline folder, or a Hugging Face id in the local cache"

VERBS = (
    Verb(
        "doctor",
        "doctor:doctor",
        "what this machine can build and run, and why not",
        "Shows Python, GPU, driver and builders, then which number format can be built for and run on which GPU.",
    ),
    Verb(
        "calibrate",
        "stages:calibrate",
        "record real denoising trajectories",
        "Runs prompts through a checkpoint and records what its denoiser sees, at all timesteps and for both halves of "
        "classifier-free guidance.",
        (
            _argument("checkpoint", help=_CHECKPOINT),
            _out("calibration folder to write"),
            _argument("--prompts", type=Path, metavar="FILE", help="prompt file, JSON lines (default: the packaged)"),
            _argument("--samples", type=positive, metavar="N", default=8, help="prompts to record (default: 8)"),
            _STEPS,
            *_SIZE,
            _GUIDANCE,
            _argument("--seed", type=int, metavar="N", default=0, help="seed of the first sample (default: 0)"),
            _DEVICE,
            _FORCE,
        ),
    ),
    Verb(
        "quantize",
        "stages:quantize",
        "a quantized diffusers checkpoint",
        "Quantizes a checkpoint's transformer by a recipe and a calibration folder.",
        (
            _argument("checkpoint", help=_CHECKPOINT),
            _argument("--recipe", required=True, metavar="NAME|FILE", help="packaged recipe or TOML file"),
            _argument("--calibration", type=Path, metavar="DIR", help="what calibrate wrote; bf16 and mxfp8 need none"),
            _out("quantized checkpoint to write"),
            _DEVICE,
            _FORCE,
        ),
    ),
    Verb(
        "export",
        "stages:export",
        "ONNX with Q/DQ, and its twin",
        "Writes the denoiser as ONNX for TensorRT-RTX and a twin that runs anywhere, and checks them against torch.",
        (
            _argument("checkpoint", help="what quantize wrote, or " + _CHECKPOINT),
            _out("ONNX folder to write"),
            *_SIZE,
            _argument("--batch", type=int, choices=(1, 2), default=2, help="2 runs both guidance halves (default: 2)"),
            _FORCE,
        ),
    ),
    Verb(
        "build",
        "stages:build",
        "TensorRT-RTX engines for GPUs that need not be here",
        "Builds an engine a target from an ONNX folder, and puts all that a desktop needs into one bundle.",
        (
            _argument("onnx", type=Path, metavar="ONNX_DIR", help="what export wrote"),
            _argument(
                "--target",
                type=_list_of(str),
                required=True,
                metavar="GPU[,GPU]",
                help="names as in doctor, e.g. rtx5090",
            ),
            _out("bundle to write"),
            _FORCE,
        ),
    ),
    Verb(
        "inspect",
        "inspect_artefact:inspect",
        "layer precisions, sizes and digests of an artefact",
        "Shows what a folder of sana-edge holds: stage, parent, per-layer formats, engines, sizes and digests.",
        (_argument("folder", type=Path, help="calibration, quantized, ONNX or bundle folder"),),
    ),
    Verb(
        "generate",
        "videos:generate",
        "a video from a prompt",
        "Makes a video from a prompt, and from a first image if there is one.",
        (
            _argument("source", help="a bundle, an ONNX folder, what quantize wrote, or " + _CHECKPOINT),
            _argument("--prompt", required=True, help="what the video shows"),
            _argument("--negative-prompt", default="", help="what it should not show"),
            _argument("--image", type=Path, metavar="FILE", help="first frame: PNG, JPEG or WebP"),
            _argument("--out", type=Path, required=True, metavar="FILE.mp4", help="video to write"),
            *_SIZE,
            _argument("--seconds", type=float, metavar="X", help="length at 16 frames a second, instead of --frames"),
            _STEPS,
            _GUIDANCE,
            _argument("--motion-score", type=int, metavar="N", help="how much moves (default: the checkpoint's)"),
            _argument("--seed", type=int, metavar="N", default=0, help="seed of the noise (default: 0)"),
            _BACKEND,
            _DEVICE,
        ),
    ),
    Verb(
        "report",
        "report.command:report",
        "quality against a reference, with a gate",
        "Runs the same prompts and seeds through a reference and its candidates, writes report.html and report.json, "
        "and exits with 3 when a candidate lost more than its number format may.",
        (
            _argument("--reference", required=True, metavar="CHECKPOINT", help=_CHECKPOINT),
            _argument(
                "--candidate",
                action="append",
                required=True,
                metavar="[NAME=]DIR",
                help="quantized checkpoint, ONNX folder or bundle; may be repeated",
            ),
            _out("report folder to write"),
            _argument("--prompts", type=Path, metavar="FILE", help="prompt file (default: the packaged held-out one)"),
            _argument("--samples", type=positive, metavar="N", default=4, help="prompts to run (default: 4)"),
            _argument("--seeds", type=_list_of(int), default=[0], metavar="N[,N]", help="seeds a prompt (default: 0)"),
            _STEPS,
            *_SIZE,
            _GUIDANCE,
            _argument("--baseline", type=Path, metavar="FILE", help="earlier report.json to compare with"),
            _argument("--gates", type=Path, metavar="FILE", help="thresholds, TOML (default: the packaged)"),
            _argument(
                "--dtype", choices=("bf16", "fp32"), help="of torch sides (default: bf16 on a GPU, fp32 on the CPU)"
            ),
            _BACKEND,
            _DEVICE,
            _FORCE,
        ),
    ),
    Verb(
        "demo",
        "demo:demo",
        "the whole chain on the nano model",
        "Calibrates, quantizes, exports and builds the packaged nano model, makes a video, and reports against bf16.",
        (
            _argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="folder to write (default: demo)"),
            _argument("--recipe", default="nvfp4", metavar="NAME|FILE", help="recipe (default: nvfp4)"),
            _argument("--target", default="rtx5090", metavar="GPU", help="GPU to build for (default: rtx5090)"),
            _DEVICE,
        ),
    ),
)
