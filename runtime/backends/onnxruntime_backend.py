"""The ONNX Runtime denoiser: the twin of an exported graph, on any CPU."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..errors import ArtefactError, BackendError
from .static_shapes import INPUTS, OUTPUT, call_static


class OnnxRuntimeDenoiser:
    """`twin.onnx`, whose fp32 carrier computes what the engine's quantized graph computes."""

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            fix = "pip install onnxruntime"
            raise BackendError("ONNX Runtime is not installed", where="backend onnxruntime", fix=fix) from error
        try:
            self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            raise ArtefactError("Graph cannot be loaded", where=path, got=error, fix="export it again") from error
        self._path = path
        self._shapes = {i.name: tuple(i.shape) for i in self._session.get_inputs()}
        outputs = [o.name for o in self._session.get_outputs()]
        if set(self._shapes) != set(INPUTS) or outputs != [OUTPUT]:
            got = f"{', '.join(self._shapes)} -> {', '.join(outputs)}"
            expected = f"{', '.join(INPUTS)} -> {OUTPUT}"
            raise ArtefactError("Graph is no denoiser", where=path, expected=expected, got=got)
        self.device = torch.device("cpu")
        self.name = f"onnxruntime {onnxruntime.__version__} on cpu, {path.name}"

    def __call__(self, latents: Tensor, timesteps: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        return call_static(self._run, self._shapes, self._path.name, latents, timesteps, text, text_mask)

    def _run(self, *inputs: Tensor) -> Tensor:
        feed = {name: tensor.numpy() for name, tensor in zip(INPUTS, inputs, strict=True)}
        return torch.from_numpy(self._session.run([OUTPUT], feed)[0])

    def close(self) -> None:
        del self._session
