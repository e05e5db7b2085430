"""Proof that the twin computes what the quantized PyTorch model computes.

Rounding to a few bits is discontinuous: where a value lies on the border between two codes, the last bit of an fp32
sum decides, and two correct programs that add in different orders decide differently. A layer passes that on, amplified
(an error e flips about e / step of the values, each by a step), so that end to end two correct programs differ by as
much as an ulp on their inputs changes either of them: a part of the format's own noise. The check therefore runs both
*in lockstep*: every quantized Linear of the torch model must be offered the input that the twin's was offered, within
the tolerance, and then goes on from the twin's. All roundings agree then, and what remains is arithmetic. That is
stricter than comparing outputs, since every layer is compared. The free-running difference is reported beside it, with
what an fp32 ulp on the latents does to the torch model alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch import Tensor

from ..runtime.backends.static_shapes import INPUTS, OUTPUT
from ..runtime.errors import BackendError
from ..runtime.linear_dit import LinearDiT
from ..runtime.quantized_linear import QuantizedLinear
from .check_inputs import Inputs

TOLERANCE = 1e-3
ULP = 2.0**-23


@dataclass(frozen=True)
class TwinCheck:
    """Relative L2 errors on one set of inputs: of the velocity and of the worst quantized layer's input in lockstep,
    of the velocity running free, and of the torch model's velocity when its latents change by an fp32 ulp.
    """

    inputs: str
    lockstep: float
    worst_layer: str
    worst_layer_error: float
    free: float
    ulp: float


def check_graph(path: Path) -> None:
    """Runs onnx.checker with shape inference on a file. Raises BackendError with its finding."""
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise BackendError("Exported graph is not valid ONNX", where=path, got=error) from error


def check_twin(twin: Path, model: LinearDiT, cases: Mapping[str, Inputs]) -> list[TwinCheck]:
    """Compares a twin in ONNX Runtime with its fp32 torch model on each case.

    cases: name -> (latents, timesteps [batch, frames], text, text mask) of the twin's shape. Raises BackendError
    when a layer or the output differs by more than `TOLERANCE`.
    """
    quantized = {name: m for name, m in model.named_modules() if isinstance(m, QuantizedLinear)}
    session = _open(twin, [f"{name}/input" for name in quantized])
    return [_check(twin, session, model, quantized, name, inputs) for name, inputs in cases.items()]


@torch.no_grad()
def _check(
    twin: Path, session: Any, model: LinearDiT, quantized: Mapping[str, QuantizedLinear], name: str, inputs: Inputs
) -> TwinCheck:
    feed = {n: t.contiguous().numpy() for n, t in zip(INPUTS, inputs, strict=True)}
    values = dict(zip((o.name for o in session.get_outputs()), session.run(None, feed), strict=True))
    velocity = torch.from_numpy(values.pop(OUTPUT))
    free = model(*inputs)
    latents, *rest = inputs
    nudged = model(latents * (1 + ULP), *rest)
    with _lockstep(quantized, {n.removesuffix("/input"): torch.from_numpy(v) for n, v in values.items()}) as errors:
        locked = model(*inputs)
    worst = max(errors, key=errors.__getitem__, default="")
    result = TwinCheck(
        inputs=name,
        lockstep=relative_l2(velocity, locked),
        worst_layer=worst,
        worst_layer_error=errors.get(worst, 0.0),
        free=relative_l2(velocity, free),
        ulp=relative_l2(nudged, free),
    )
    if not max(result.lockstep, result.worst_layer_error) <= TOLERANCE:
        got = f"{result.lockstep:.2g} at the output, {result.worst_layer_error:.2g} at {worst or 'no layer'}"
        raise BackendError(
            "Twin differs from the torch model", where=f"{twin}, {name} inputs", expected=f"<= {TOLERANCE}", got=got
        )
    return result


@contextmanager
def _lockstep(layers: Mapping[str, QuantizedLinear], offered: Mapping[str, Tensor]) -> Iterator[dict[str, float]]:
    """Makes each layer go on from the `offered` input; yields the relative L2 error of what it would have read."""
    errors: dict[str, float] = {}

    def replace(name: str) -> Any:
        def hook(_: torch.nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
            value = offered[name].view_as(arguments[0])
            errors[name] = relative_l2(arguments[0], value)
            return (value,)

        return hook

    handles = [layer.register_forward_pre_hook(replace(name)) for name, layer in layers.items()]
    try:
        yield errors
    finally:
        for handle in handles:
            handle.remove()


def relative_l2(value: Tensor, reference: Tensor) -> float:
    """Norm of the difference over the norm of the reference; 0 where both are equal, NaN where either is."""
    difference, norm = (value - reference).norm().item(), reference.norm().item()
    return 0.0 if difference == 0 else difference / max(norm, 1e-30)


def _open(twin: Path, watched: list[str]) -> Any:
    """A session of the twin that also returns the watched values. Weights are unpacked as they are needed."""
    import onnxruntime

    model = ir.load(twin)
    values = {v.name: v for node in model.graph for v in node.outputs}
    model.graph.outputs.extend(values[name] for name in watched)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(twin.parent))
    proto = ir.serde.serialize_model(model).SerializeToString()
    return onnxruntime.InferenceSession(
        proto, options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
    )
