"""Linears whose weights are packed in a number format, and the loading of checkpoints that hold them.

A `QuantizedLinear` computes in plain PyTorch what a quantized GEMM computes: both operands are rounded to their
format and multiplied in the carrier dtype. It is the reference; the speed comes from the engines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoint import TensorFiles, assign, diffusers_source, find_checkpoint, from_diffusers, read_config, read_json
from .errors import ArtefactError
from .formats import FORMATS, Format, dequantize_weight, quantize_dequantize_activation, quantize_weight
from .linear_dit import DiTConfig, LinearDiT

QUANT_CONFIG = "hf_quant_config.json"
PACKED = ("weight", "weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale")


@dataclass(frozen=True)
class InputScales:
    """What calibration found for the input of one Linear.

    `input_scale`: fp32 scalar, the per-tensor activation scale. `pre_quant_scale`: fp32 [K], SmoothQuant's factor on
    the input, which the weight is divided by.
    """

    input_scale: Tensor | None = None
    pre_quant_scale: Tensor | None = None


class QuantizedLinear(nn.Module):
    """A Linear [K] -> [N] with packed weights; the buffers are the tensors of `format` under their names on disk.

    The packed buffers keep their dtypes whatever the module is cast to; `bias` follows the carrier dtype. The
    dequantized weight is kept after its first use (never in the state dict) unless `keep_dequantized` is False.
    """

    weight: Tensor
    input_scale: Tensor | None
    pre_quant_scale: Tensor | None

    def __init__(
        self, packed: Mapping[str, Tensor], format: Format, bias: Tensor | None = None, *, name: str = "linear"
    ) -> None:
        super().__init__()
        self.format = format
        self.name = name
        self.keep_dequantized = True
        for tensor in PACKED:
            if tensor in packed or tensor in ("input_scale", "pre_quant_scale"):
                self.register_buffer(tensor, packed.get(tensor))
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self._dequantized: Tensor | None = None

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, format: Format, scales: InputScales | None = None, *, name: str = "linear"
    ) -> QuantizedLinear:
        """Quantizes a Linear. Raises FormatError for weights that the format cannot hold."""
        scales = scales or InputScales()
        return cls(pack_linear(linear.weight.detach(), format, scales, name=name), format, linear.bias, name=name)

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def in_features(self) -> int:
        return self.weight.shape[1] * (2 if self.format.element == "e2m1" else 1)

    def packed(self) -> dict[str, Tensor]:
        """The packed tensors by name."""
        return {n: b for n, b in self.named_buffers(recurse=False) if n in PACKED}

    def dequantized_weight(self) -> Tensor:
        """The fp32 weight [N, K] that is multiplied (with the smoothed input, if there is a `pre_quant_scale`)."""
        return dequantize_weight(self.packed(), self.format)

    def forward(self, x: Tensor) -> Tensor:
        """x [.., K] -> [.., N] in the dtype of x. Raises FormatError, naming this layer, for NaN or Inf in x."""
        smoothed = x if self.pre_quant_scale is None else x.float() * self.pre_quant_scale
        rounded = quantize_dequantize_activation(smoothed, self.format, self.input_scale, layer=self.name)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(rounded.to(x.dtype), self._weight_as(x.dtype), bias)

    def _weight_as(self, dtype: torch.dtype) -> Tensor:
        kept = self._dequantized
        if kept is None or kept.dtype != dtype or not self.keep_dequantized:
            kept = self.dequantized_weight().to(dtype)
        self._dequantized = kept if self.keep_dequantized else None
        return kept

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        dtypes = {name: buffer.dtype for name, buffer in self.packed().items()}
        originals = self.packed()
        super()._apply(fn, recurse)
        for name, dtype in dtypes.items():
            if getattr(self, name).dtype != dtype:  # a cast: `fn` moved it, but its bits must survive
                setattr(self, name, originals[name].to(getattr(self, name).device))
        self._dequantized = None
        return self

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.format.name}"


def pack_linear(weight: Tensor, format: Format, scales: InputScales, *, name: str) -> dict[str, Tensor]:
    """The packed tensors of a weight [N, K] and of its input's calibration, under their names on disk."""
    smooth = scales.pre_quant_scale
    weight = weight.float() if smooth is None else weight.float() / smooth.to(weight.device)
    packed = quantize_weight(weight, format, layer=name)
    if scales.input_scale is not None and format.calibrated:
        packed["input_scale"] = scales.input_scale.to(weight.device)
    if smooth is not None:
        packed["pre_quant_scale"] = smooth.to(weight.device)
    return packed


def quantize_linears(
    model: LinearDiT, formats: Mapping[str, Format], scales: Mapping[str, InputScales] | None = None
) -> LinearDiT:
    """Replaces Linears of `model` (module name -> format; bf16 stays) by QuantizedLinears, in place."""
    for name, format in formats.items():
        if format.quantized:
            linear = model.get_submodule(name)
            assert isinstance(linear, nn.Linear), name
            model.set_submodule(name, QuantizedLinear.from_linear(linear, format, (scales or {}).get(name), name=name))
    return model


def load_denoiser_model(
    folder: str | Path, dtype: torch.dtype = torch.bfloat16, device: str | torch.device = "cpu"
) -> LinearDiT:
    """A LinearDiT from a plain or quantized checkpoint; unquantized tensors are cast to `dtype`.

    Raises ArtefactError for unknown layers in `hf_quant_config.json` and for missing, misshapen or unreadable tensors.
    """
    folder = find_checkpoint(folder)
    config = read_config(folder)
    with torch.device("meta"):
        model = LinearDiT(config)
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    formats = read_formats(folder, linears, config)
    plain = {n: tuple(t.shape) for n, t in model.state_dict().items() if n.removesuffix(".weight") not in formats}
    with TensorFiles(folder / "transformer") as tensors:
        for name, format in formats.items():
            packed = _read_packed(name, linears[name], format, tensors, config)
            packed = {n: t.to(device) for n, t in packed.items()}
            model.set_submodule(name, QuantizedLinear(packed, format, linears[name].bias, name=name))
        for name, shape in plain.items():
            value = from_diffusers(name, tensors, config)
            _check(value, name, shape, value.dtype, tensors.folder)
            assign(model, name, value.to(device=device, dtype=dtype))
    return model.eval().requires_grad_(False)


def read_formats(folder: Path, linears: Mapping[str, Any], config: DiTConfig) -> dict[str, Format]:
    """The formats of a checkpoint's quantized Linears by LinearDiT module name; empty for a plain checkpoint.

    Raises ArtefactError for a layer that is none of `linears`, an unknown algorithm or block, and for fused q/k/v
    layers whose parts have different formats.
    """
    path = folder / "transformer" / QUANT_CONFIG
    if not path.exists():
        return {}
    layers = read_json(path).get("quantization", {}).get("quantized_layers")
    if not isinstance(layers, dict):
        raise ArtefactError("No map of quantized layers", where=path, expected="quantization.quantized_layers")
    parts = {part: name for name in linears for part in diffusers_source(name, config).modules}
    formats: dict[str, Format] = {}
    for layer, entry in layers.items():
        if layer not in parts or not isinstance(entry, dict):
            close = ", ".join(get_close_matches(layer, parts, 3)) or "the Linears of this transformer"
            raise ArtefactError("Unknown quantized layer", where=path, expected=close, got=layer)
        formats[parts[layer]] = _format_of(entry, f"{path}: {layer}")
    for name, format in formats.items():
        found = {m: layers.get(m, {}).get("quant_algo", "bf16") for m in diffusers_source(name, config).modules}
        if set(found.values()) != {format.algorithm}:
            fix = "quantize the projections that share an input in one format"
            raise ArtefactError("Parts of a fused layer differ in format", where=f"{path}: {name}", got=found, fix=fix)
    return formats


def _format_of(entry: Mapping[str, Any], where: str) -> Format:
    algorithms = {f.algorithm: f for f in FORMATS.values() if f.algorithm}
    format = algorithms.get(str(entry.get("quant_algo")))
    if format is None:
        expected = ", ".join(str(a) for a in algorithms)
        raise ArtefactError("Unknown quantization", where=where, expected=expected, got=entry.get("quant_algo"))
    if entry.get("group_size", format.block) != format.block:
        raise ArtefactError("Unsupported block", where=where, expected=format.block, got=entry["group_size"])
    return format


def _read_packed(
    name: str, linear: nn.Linear, format: Format, tensors: TensorFiles, config: DiTConfig
) -> dict[str, Tensor]:
    """The packed tensors of one (fused) Linear, checked against its shape."""
    modules = diffusers_source(name, config).modules
    rows, columns = linear.out_features // len(modules), linear.in_features
    shapes, dtypes = format.shapes(rows, columns), dict(format.tensors)
    if f"{modules[0]}.pre_quant_scale" in tensors:
        shapes["pre_quant_scale"], dtypes["pre_quant_scale"] = (columns,), torch.float32
    parts = []
    for module in modules:
        part = {tensor: tensors[f"{module}.{tensor}"] for tensor in shapes}
        for tensor, value in part.items():
            _check(value, f"{module}.{tensor}", shapes[tensor], dtypes[tensor], tensors.folder)
        parts.append(part)
    return fuse_packed(parts, format, where=f"{tensors.folder}: {name}")


def fuse_packed(parts: list[dict[str, Tensor]], format: Format, *, where: str) -> dict[str, Tensor]:
    """Stacks the packed tensors of Linears that read one input along their rows.

    Parts whose per-tensor weight scales differ are brought to the largest by scaling their E4M3 tensor, where that
    is exact. Raises ArtefactError where it is not, and for parts that quantize their input differently.
    """
    shared = {n for n in ("input_scale", "pre_quant_scale") if any(n in p for p in parts)}
    for name in shared:
        if any(name not in p or not torch.equal(p[name], parts[0][name]) for p in parts):
            fix = "calibrate the projections that share an input together"
            raise ArtefactError(f"Parts of a fused layer differ in {name}", where=where, fix=fix)
    scalar = {"fp8": "weight_scale", "nvfp4": "weight_scale_2"}.get(format.name)
    if scalar:
        largest = torch.stack([p[scalar] for p in parts]).amax()
        parts = [_rescale(p, scalar, largest, format, where) for p in parts]
        shared.add(scalar)
    return {n: t if n in shared else torch.cat([p[n] for p in parts]) for n, t in parts[0].items()}


def split_packed(packed: Mapping[str, Tensor], parts: int) -> list[dict[str, Tensor]]:
    """The inverse of `fuse_packed`: rows are dealt out, and per-tensor and input scales go to every part."""
    by_rows = {n for n, t in packed.items() if n == "weight" or (n == "weight_scale" and t.ndim)}
    return [{n: (t.chunk(parts)[i] if n in by_rows else t).clone() for n, t in packed.items()} for i in range(parts)]


def _rescale(part: dict[str, Tensor], scalar: str, largest: Tensor, format: Format, where: str) -> dict[str, Tensor]:
    if torch.equal(part[scalar], largest):
        return part
    carrier = "weight_scale" if format.block else "weight"
    wanted = part[carrier].float() * (part[scalar] / largest)
    scaled = wanted.to(torch.float8_e4m3fn)
    if not torch.equal(scaled.float(), wanted):
        got = f"{part[scalar].item():.6g} and {largest.item():.6g}"
        fix = "quantize the projections that share an input with one per-tensor scale"
        raise ArtefactError(f"Parts of a fused layer differ in {scalar}", where=where, got=got, fix=fix)
    return part | {carrier: scaled, scalar: largest}


def _check(value: Tensor, name: str, shape: tuple[int, ...], dtype: torch.dtype, folder: Path) -> None:
    if value.dtype != dtype or value.shape != shape:
        raise ArtefactError(
            "Tensor has the wrong shape or dtype",
            where=f"{folder}: {name}",
            expected=f"{list(shape)} of {dtype}",
            got=f"{list(value.shape)} of {value.dtype}",
            fix="the weights belong to another config; make or fetch the checkpoint again",
        )
