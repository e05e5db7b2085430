"""Calibration of a LinearDiT's activations with NVIDIA ModelOpt; the only file that imports it.

ModelOpt inserts its quantizers around the Linears, watches a replay of recorded trajectories, and gives back a range
(and SmoothQuant's factor) for every input. Its dynamic block formats run only on CUDA: on the CPU its quantizers call
the plain-PyTorch reference of `runtime.formats` instead, through the backend hook that ModelOpt offers for that.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from ..runtime.errors import FormatError, MissingExtraError
from ..runtime.formats import FORMATS, Format, quantize_dequantize_activation, tensor_scale
from ..runtime.linear_dit import LinearDiT
from ..runtime.quantized_linear import InputScales
from .recipe import Recipe

REFERENCE = "sana_edge_reference"
BLOCK_SCALES = {"nvfp4": (4, 3), "mxfp8": (8, 0)}
log = logging.getLogger(__name__)

Replay = Callable[[nn.Module], None]
"""Runs recorded inputs through the model it is given."""


def fake_quantize(model: LinearDiT, formats: Mapping[str, Format], recipe: Recipe, replay: Replay) -> LinearDiT:
    """Turns `model` in place into ModelOpt's calibrated, fake-quantized model.

    `formats` maps module names to formats (bf16 layers are left alone). SmoothQuant changes the int8 layers' weights
    and is a pass of its own, since ModelOpt's would leave other layers with per-channel ranges. Raises FormatError,
    naming the layer, for NaN, Inf or only zeros in a weight or an input.
    """
    mtq = _import_modelopt()
    layers = {name: format for name, format in formats.items() if format.quantized}
    for name in layers:
        _check_tensor(model.get_parameter(f"{name}.weight"), name, "weight")
    smoothed = {n: f for n, f in layers.items() if recipe.algorithm == "smoothquant" and f.name == "int8"}
    others = {n: f for n, f in layers.items() if n not in smoothed}
    on_cpu = next(model.parameters()).device.type == "cpu"
    smoothquant = {"method": "smoothquant", "alpha": recipe.alpha}
    for chosen, algorithm in ((smoothed, smoothquant), (others, {"method": "max"})):
        if chosen:
            calibrated = any(format.calibrated for format in chosen.values())
            config = {"quant_cfg": _quantizer_config(chosen, on_cpu), "algorithm": algorithm if calibrated else None}
            with _checked_inputs(model, chosen), _quiet():
                mtq.quantize(model, config, forward_loop=replay if calibrated else None)
    for name in layers:
        _quantizer(model, name, "input").enable()
        _quantizer(model, name, "weight").enable()
    return model


def read_scales(model: LinearDiT, formats: Mapping[str, Format]) -> dict[str, InputScales]:
    """What ModelOpt found for the input of every calibrated layer of a `fake_quantize`d model, fp32 on the CPU.

    Raises FormatError for a layer whose input was zero in all samples.
    """
    scales = {}
    for name, format in formats.items():
        if format.calibrated:
            quantizer = _quantizer(model, name, "input")
            amax, smooth = quantizer.amax.float().cpu(), quantizer.pre_quant_scale
            if not amax > 0:
                fix = "calibrate with more samples, or keep this layer in bf16"
                raise FormatError("Input is zero in all calibration samples", where=name, fix=fix)
            smooth = None if smooth is None else smooth.float().cpu()
            scales[name] = InputScales(tensor_scale(amax, format).reshape(()), smooth)
    return scales


def _quantizer(model: LinearDiT, name: str, kind: str) -> Any:
    """ModelOpt's TensorQuantizer of a layer; `kind` is "weight" or "input"."""
    return model.get_submodule(f"{name}.{kind}_quantizer")


def _import_modelopt() -> Any:
    try:
        with _quiet():
            import modelopt.torch.quantization as mtq
    except ModuleNotFoundError as error:
        raise MissingExtraError("nvidia-modelopt", "quantize", "Calibration") from error
    from modelopt.torch.quantization.nn.modules import tensor_quantizer

    if not tensor_quantizer.is_registered_quant_backend(REFERENCE):
        tensor_quantizer.register_quant_backend(REFERENCE, _reference)
    return mtq


def _quantizer_config(formats: Mapping[str, Format], on_cpu: bool) -> list[dict[str, Any]]:
    """ModelOpt's `quant_cfg`: everything off, then the weight and input quantizers of each layer by its full name."""
    entries: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for name, format in formats.items():
        for kind in ("weight", "input"):
            attributes = _attributes(format, kind)
            if format.block and on_cpu:
                attributes |= {"backend": REFERENCE, "backend_extra_args": {"format": format.name}}
            entries.append({"quantizer_name": f"{name}.{kind}_quantizer", "cfg": attributes})
    return entries


def _attributes(format: Format, kind: str) -> dict[str, Any]:
    bits = {"int8": 8, "e4m3": (4, 3), "e2m1": (2, 1)}[format.element]
    if format.block:
        blocks = {-1: format.block, "type": "dynamic", "scale_bits": BLOCK_SCALES[format.name]}
        return {"num_bits": bits, "block_sizes": blocks}
    return {"num_bits": bits, "axis": 0 if kind == "weight" and format.weight_scales == "row" else None}


def _reference(x: Tensor, quantizer: Any) -> Tensor:
    """ModelOpt backend: fake quantization with dynamic block scales in plain PyTorch, for weights and inputs."""
    format = FORMATS[quantizer.backend_extra_args["format"]]
    scale = tensor_scale(quantizer.amax.float(), format) if format.calibrated else None
    return quantize_dequantize_activation(x, format, scale).to(x.dtype)


@contextlib.contextmanager
def _checked_inputs(model: LinearDiT, formats: Mapping[str, Format]) -> Iterator[None]:
    """Checks the inputs of the layers to be quantized during replay, so that an error can name the first bad one."""

    def check(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, inputs: _check_tensor(inputs[0], name, "input", zeros=True)

    hooks = [model.get_submodule(name).register_forward_pre_hook(check(name)) for name in formats]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _check_tensor(x: Tensor, name: str, what: str, *, zeros: bool = False) -> None:
    amax = x.detach().abs().amax()
    if not amax.isfinite():
        raise FormatError(f"Layer's {what} holds NaN or infinite values", where=name, fix="check the checkpoint")
    if amax == 0 and not zeros:
        raise FormatError(f"Layer's {what} is all zeros", where=name, fix="check the checkpoint")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Sends what ModelOpt prints and warns (of every layer that is not to be quantized) to the debug log."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        yield
    for message in (*printed.getvalue().splitlines(), *(w.message for w in warned)):
        log.debug("modelopt: %s", message)
