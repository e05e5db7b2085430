"""The TensorRT-RTX denoiser: an engine of a bundle on the NVIDIA RTX GPU it was built for."""

from __future__ import annotations

import logging
import mmap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..artefact import Manifest
from ..errors import ArtefactError, BackendError, MissingExtraError
from .static_shapes import INPUTS, OUTPUT, call_static

log = logging.getLogger(__name__)


def choose_engine(manifest: Manifest, capability: tuple[int, int] | None = None) -> str:
    """The bundle's engine for a compute capability (by default this machine's), as a path inside the bundle.

    Raises BackendError when there is no CUDA GPU or no engine for it.
    """
    engines: dict[str, dict[str, Any]] = manifest.details["engines"]
    built = ", ".join(f"{target} ({engine['compute_capability']})" for target, engine in engines.items())
    if capability is None:
        if not torch.cuda.is_available():
            fix = "run on that GPU, or use the backend onnxruntime for its twin on the CPU"
            raise BackendError("TensorRT-RTX needs an NVIDIA GPU", expected=built, got="no CUDA GPU", fix=fix)
        capability = torch.cuda.get_device_capability()
    wanted = "SM{}{}".format(*capability)
    for target, engine in engines.items():
        if engine["compute_capability"] == wanted:
            return f"engines/{target}.engine"
    fix = "build an engine for this GPU: sana-edge build ONNX_DIR --target ..."
    raise BackendError("Bundle has no engine for this GPU", expected=built, got=wanted, fix=fix)


class TensorRtRtxDenoiser:
    """A deserialized engine whose inputs and output are bound once to CUDA tensors."""

    def __init__(self, path: Path) -> None:
        try:
            import tensorrt_rtx
        except ImportError as error:
            raise MissingExtraError("tensorrt-rtx-cu13", "rtx", "Running an engine") from error
        if not torch.cuda.is_available():
            raise BackendError("TensorRT-RTX needs an NVIDIA GPU", where=path, got="no CUDA GPU")
        self._path = path
        self._logger = _logger(tensorrt_rtx)
        self._runtime = tensorrt_rtx.Runtime(self._logger)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as blob:
            self._engine = self._runtime.deserialize_cuda_engine(blob)
        if self._engine is None:
            got = self._logger.last_error
            fix = "build it again with the installed TensorRT-RTX, for this GPU"
            raise BackendError("Engine cannot be loaded", where=path, got=got, fix=fix)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            got = self._logger.last_error
            raise BackendError("Engine cannot start", where=path, got=got, fix="free GPU memory")
        self.device = torch.device("cuda", torch.cuda.current_device())
        self._stream = torch.cuda.Stream(self.device)
        self._tensors = self._bind()
        self._shapes = {name: tuple(self._tensors[name].shape) for name in INPUTS}
        gpu = torch.cuda.get_device_name(self.device)
        self.name = f"tensorrt-rtx {tensorrt_rtx.__version__} on {gpu}, {path.name}"

    def _bind(self) -> dict[str, Tensor]:
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        if set(names) != {*INPUTS, OUTPUT}:
            expected = f"{', '.join(INPUTS)} -> {OUTPUT}"
            raise ArtefactError("Engine is no denoiser", where=self._path, expected=expected, got=", ".join(names))
        tensors = {n: torch.empty(tuple(self._engine.get_tensor_shape(n)), device=self.device) for n in names}
        for name, tensor in tensors.items():
            self._context.set_tensor_address(name, tensor.data_ptr())
        return tensors

    def __call__(self, latents: Tensor, timesteps: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            velocity = call_static(self._run, self._shapes, self._path.name, latents, timesteps, text, text_mask)
        current.wait_stream(self._stream)
        velocity.record_stream(current)
        return velocity

    def _run(self, *inputs: Tensor) -> Tensor:
        for name, tensor in zip(INPUTS, inputs, strict=True):
            self._tensors[name].copy_(tensor)
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise BackendError("Engine failed while running", where=self._path, got=self._logger.last_error)
        return self._tensors[OUTPUT].clone()

    def close(self) -> None:
        self._stream.synchronize()
        del self._context, self._engine, self._runtime, self._tensors


def _logger(trt: Any) -> Any:
    """A TensorRT logger that writes to Python's logging and keeps the last error for messages."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = "no message"

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.last_error = msg
                log.error(msg)
            else:
                log.debug(msg)

    return Logger()
