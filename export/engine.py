"""ONNX to a TensorRT-RTX engine for another machine's GPU: ahead of time, without a GPU here."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from subprocess import PIPE
from typing import Any

from ..runtime.errors import BackendError, FormatError, MissingExtraError
from ..runtime.formats import find_format
from ..runtime.targets import Target, require_format
from .engine_compiler import Job
from .engine_plan import compiled_precisions

BUILDER = "TensorRT-RTX"
COMMAND = (sys.executable, "-m", f"{__package__}.engine_compiler")
log = logging.getLogger(__name__)
_LEVELS = {"INFO": logging.DEBUG, "WARNING": logging.INFO, "ERROR": logging.INFO, "INTERNAL_ERROR": logging.INFO}


@dataclass(frozen=True)
class EngineInfo:
    """What was built. `network` is the precision of each Linear in the network that was compiled; `compiled` the one
    that the compiler multiplies it in, as far as the engine tells. `seconds` and `peak_memory_bytes` are the
    compiler's.
    """

    target: str
    compute_capability: str
    builder: str
    version: str
    bytes: int
    seconds: float
    peak_memory_bytes: int | None
    network_layers: int
    network: dict[str, str]
    compiled: dict[str, str]


def engine_from_onnx(onnx: Path, target: Target, engine: Path, formats: Mapping[str, str]) -> EngineInfo:
    """Compiles an engine graph for a target and writes the engine; needs no GPU.

    `formats` is what each Linear must be (module name -> format name). Raises FormatError when the target does not
    multiply one of them, or when a Linear did not arrive at its format in the network; BackendError when the graph
    cannot be parsed or compiled; MissingExtraError without TensorRT-RTX. A layer that the compiler multiplies in
    another precision than asked is logged as a warning and recorded: its numbers are right, its speed is not.
    """
    require_builder()
    for name in sorted(set(formats.values())):
        require_format(target, find_format(name))
    job = Job(str(onnx), str(engine), target.capability, dict(formats))
    result = _run(job)
    compiled = {name: p for name, p in compiled_precisions(engine).items() if name in formats}
    _warn_about_other_precisions(target, formats, compiled)
    return EngineInfo(
        target=target.name,
        compute_capability=target.capability,
        builder=BUILDER,
        version=result["version"],
        bytes=engine.stat().st_size,
        seconds=result["seconds"],
        peak_memory_bytes=result["peak_memory_bytes"],
        network_layers=result["network_layers"],
        network={name: result["layers"][name] for name in formats},
        compiled=compiled,
    )


def require_builder() -> None:
    """Raises MissingExtraError unless TensorRT-RTX is installed."""
    if find_spec("tensorrt_rtx") is None:
        raise MissingExtraError("tensorrt-rtx-cu13", "rtx", "Building an engine")


def _run(job: Job) -> dict[str, Any]:
    """Runs the compiler process; ends it when this one is interrupted."""
    final: dict[str, Any] = {}
    with tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen(COMMAND, stdin=PIPE, stdout=PIPE, stderr=stderr, text=True)
        try:
            assert process.stdin is not None and process.stdout is not None
            with process.stdin:
                json.dump(asdict(job), process.stdin)
            for line in process.stdout:
                final = json.loads(line)
                if "log" in final:
                    log.log(_LEVELS.get(final["level"], logging.DEBUG), "%s: %s", BUILDER, final["log"])
            process.wait()
        finally:
            process.kill()
            process.wait()
        if "result" in final:
            return final["result"]
        stderr.seek(0)
        raise _failure(job, final, process.returncode, stderr.read())


def _failure(job: Job, final: Mapping[str, Any], status: int, stderr: str) -> Exception:
    reason = final.get("error")
    match final.get("kind"):
        case "precision":
            fix = "this is a fault of the export; export again with the same versions as the build"
            return FormatError("Layers did not arrive at their format", where=job.onnx, got=reason, fix=fix)
        case "parse":
            return BackendError(f"{BUILDER} cannot parse the graph", where=job.onnx, got=reason)
        case "build":
            where = f"{job.onnx} for {job.capability}"
            return BackendError(f"{BUILDER} cannot compile the graph", where=where, got=reason)
        case "os":
            return OSError(final["errno"], reason, job.engine)
    tail = stderr.strip().splitlines()[-1] if stderr.strip() else "no message"
    got = f"{signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    fix = "if memory ran out (SIGKILL), build on a larger machine or for a smaller video"
    return BackendError(f"{BUILDER} crashed", where=f"{job.onnx} for {job.capability}", got=f"{got}: {tail}", fix=fix)


def _warn_about_other_precisions(target: Target, formats: Mapping[str, str], compiled: Mapping[str, str]) -> None:
    other: dict[tuple[str, str], int] = {}
    for name, asked in formats.items():
        if (got := compiled.get(name, asked)) != asked:
            other[asked, got] = other.get((asked, got), 0) + 1
    for (asked, got), count in other.items():
        log.warning(
            "%s: the compiler multiplies %d %s layers in %s: right, but not faster", target.name, count, asked, got
        )
