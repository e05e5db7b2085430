"""The process that compiles one engine: `python -m sana_edge.export.engine_compiler`, a job on stdin.

A process of its own, because the compiler is native code that may crash, cannot be interrupted, and keeps gigabytes:
whoever waits for it can end it at once, and it leaves neither memory nor files. It answers in JSON lines on stdout:
log records, then one result or one error.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """What to compile: an ONNX file for a compute capability ("SM120"); `formats` is what each Linear must be."""

    onnx: str
    engine: str
    capability: str
    formats: dict[str, str]


class JobError(Exception):
    """Why a job failed, with its kind: "parse", "precision" or "build"."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def main() -> None:
    """Reads a job, compiles it, answers."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what native code prints must not mix with the answers

    def answer(**fields: Any) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    try:
        answer(result=compile_engine(Job(**json.load(sys.stdin)), answer))
    except JobError as error:
        answer(error=str(error), kind=error.kind)
    except OSError as error:
        answer(error=str(error), kind="os", errno=error.errno or errno.EIO)


def compile_engine(job: Job, answer: Callable[..., None]) -> dict[str, Any]:
    """Parses, checks and compiles a strongly typed network, and writes the engine. Raises JobError and OSError."""
    import tensorrt_rtx as trt

    logger = _logger(trt, answer)
    start = time.perf_counter()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(job.onnx):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        raise JobError("parse", "; ".join(f"{e.node_name() or 'graph'}: {e.desc()}" for e in errors[:3]))
    layers = network_precisions(trt, network)
    wrong = [f"{n}: {f}, not {layers.get(n, 'missing')}" for n, f in job.formats.items() if layers.get(n) != f]
    if wrong:
        raise JobError("precision", "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""))

    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, job.capability), 0)
    config.clear_flag(trt.BuilderFlag.TF32)  # the fp32 islands are there for their precision
    blob = builder.build_serialized_network(network, config)
    if blob is None:
        raise JobError("build", "; ".join(logger.errors[-3:]) or "no reason given")
    with Path(job.engine).open("wb") as file:
        file.write(blob)
    return {
        "version": trt.__version__,
        "seconds": round(time.perf_counter() - start, 2),
        "peak_memory_bytes": _peak_memory(),
        "network_layers": network.num_layers,
        "layers": layers,
    }


def _peak_memory() -> int | None:
    """Peak resident bytes of this process; None on Windows, which does not tell it this way."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def network_precisions(trt: Any, network: Any) -> dict[str, str]:
    """Format of each named matrix product as the network API tells it, before anything is compiled."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    producers = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    transparent = (trt.LayerType.CAST, trt.LayerType.SHUFFLE, trt.LayerType.DEQUANTIZE)

    def dequantized(tensor: Any) -> tuple[Any, Any]:
        """The quantized tensor and its scales behind casts and shuffles, or the operand itself and None."""
        found = tensor
        while (layer := producers.get(found.name)) is not None and layer.type in transparent:
            if layer.type == trt.LayerType.DEQUANTIZE:
                return layer.get_input(0), layer.get_input(1)
            found = layer.get_input(0)
        return tensor, None

    def stored_as(operand: Any) -> str:
        stored, scales = dequantized(operand)
        if stored.dtype == trt.DataType.FP8 and scales is not None and scales.dtype == trt.DataType.E8M0:
            return "mxfp8"
        names = {
            trt.DataType.FP4: "nvfp4",
            trt.DataType.FP8: "fp8",
            trt.DataType.INT8: "int8",
            trt.DataType.BF16: "bf16",
            trt.DataType.FLOAT: "fp32",
        }
        return names.get(stored.dtype, str(stored.dtype))

    precisions = {}
    for layer in layers:
        if layer.type == trt.LayerType.MATRIX_MULTIPLY:
            x, weight = (stored_as(layer.get_input(i)) for i in range(2))
            precisions[layer.name] = x if x == weight else f"{x} x {weight}"
    return precisions


def _logger(trt: Any, answer: Callable[..., None]) -> Any:
    """A TensorRT logger that answers with log records and keeps the errors."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(message)
            if severity <= trt.ILogger.INFO:
                answer(log=message, level=severity.name)

    return Logger()


if __name__ == "__main__":
    main()
