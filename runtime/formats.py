"""Number formats as values, and the plain-PyTorch reference that every quantized kernel and graph is tested against.

| format | element | scales | specification |
|---|---|---|---|
| int8  | INT8, round half to even | FP32 a weight row; FP32 per tensor for activations | TensorRT, explicit Q/DQ |
| fp8   | E4M3 | FP32 per tensor | arXiv 2209.05433 |
| mxfp8 | E4M3 | E8M0 (a power of two) for 32 values along K | OCP Microscaling Formats 1.0 |
| nvfp4 | E2M1 | E4M3 for 16 values along K, times FP32 per tensor | NVIDIA NVFP4 (arXiv 2509.25149) |

Two choices the specifications leave open, both as NVIDIA's tools make them:
- mxfp8 rounds the shared exponent *up*, 2^ceil(log2(amax / 448)), so that no value saturates (arXiv 2506.08027;
  ModelOpt's MXFP8QTensor and CUDA kernel). OCP's example floors it and saturates up to an eighth.
- nvfp4 weight blocks too small for an E4M3 scale get its smallest value, 2^-9 (ModelOpt's NVFP4QTensor); activation
  blocks that small become zero, as the dynamic kernels of TensorRT-LLM and ModelOpt make them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from .errors import FormatError, InputError

E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1_MAX = 6.0
E4M3_MAX = 448.0
E4M3_TINY = 2.0**-9
E8M0_BIAS = 127


@dataclass(frozen=True)
class Format:
    """How a Linear's weight [N, K] and its input [.., K] are rounded.

    `block` values along K share a scale; without it a weight has one scale (`weight_scales` "tensor") or one a row
    ("row"). `activation` "static" takes a calibrated per-tensor `input_scale`, "dynamic" none; nvfp4 is "two-level":
    dynamic block scales below a calibrated per-tensor one. `algorithm` is ModelOpt's name in `hf_quant_config.json`.
    `capability` is the first CUDA compute capability whose tensor cores multiply it. `tensors` are the packed tensors
    of a layer on disk, name -> dtype; int8 layers may add SmoothQuant's `pre_quant_scale`, fp32 [K].
    """

    name: str
    element: Literal["bf16", "int8", "e4m3", "e2m1"]
    element_max: float
    weight_scales: Literal["none", "row", "tensor", "block"]
    block: int | None
    activation: Literal["none", "static", "dynamic", "two-level"]
    algorithm: str | None
    capability: tuple[int, int]
    tensors: Mapping[str, torch.dtype] = field(hash=False)

    @property
    def quantized(self) -> bool:
        return self.weight_scales != "none"

    @property
    def calibrated(self) -> bool:
        """Whether activations need an `input_scale` from calibration."""
        return "input_scale" in self.tensors

    def shapes(self, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the packed tensors of a weight [rows, columns]."""
        blocks = (rows, columns // self.block) if self.block else ()
        packed = {
            "weight": (rows, columns // 2 if self.element == "e2m1" else columns),
            "weight_scale": (rows,) if self.weight_scales == "row" else blocks,
        }
        return {name: packed.get(name, ()) for name in self.tensors}

    def weight_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a packed weight with its scales."""
        shapes = self.shapes(rows, columns).items()
        return sum(math.prod(shape) * self.tensors[name].itemsize for name, shape in shapes)

    def check_columns(self, columns: int, layer: str) -> None:
        """Raises FormatError unless K is whole blocks."""
        if self.block and columns % self.block:
            raise FormatError(
                f"K of a {self.name} tensor is not divisible by its block",
                where=layer,
                expected=f"K divisible by {self.block}",
                got=f"K = {columns}",
                fix="keep this layer in bf16 or fp8",
            )


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format(
            name="bf16",
            element="bf16",
            element_max=math.inf,
            weight_scales="none",
            block=None,
            activation="none",
            algorithm=None,
            capability=(8, 0),
            tensors={"weight": torch.bfloat16},
        ),
        Format(
            name="int8",
            element="int8",
            element_max=127.0,
            weight_scales="row",
            block=None,
            activation="static",
            algorithm="W8A8_SQ_PER_CHANNEL",
            capability=(7, 5),
            tensors={"weight": torch.int8, "weight_scale": torch.float32, "input_scale": torch.float32},
        ),
        Format(
            name="fp8",
            element="e4m3",
            element_max=E4M3_MAX,
            weight_scales="tensor",
            block=None,
            activation="static",
            algorithm="FP8",
            capability=(8, 9),
            tensors={"weight": torch.float8_e4m3fn, "weight_scale": torch.float32, "input_scale": torch.float32},
        ),
        Format(
            name="mxfp8",
            element="e4m3",
            element_max=E4M3_MAX,
            weight_scales="block",
            block=32,
            activation="dynamic",
            algorithm="MXFP8",
            capability=(12, 0),
            tensors={"weight": torch.float8_e4m3fn, "weight_scale": torch.uint8},
        ),
        Format(
            name="nvfp4",
            element="e2m1",
            element_max=E2M1_MAX,
            weight_scales="block",
            block=16,
            activation="two-level",
            algorithm="NVFP4",
            capability=(12, 0),
            tensors={
                "weight": torch.uint8,
                "weight_scale": torch.float8_e4m3fn,
                "weight_scale_2": torch.float32,
                "input_scale": torch.float32,
            },
        ),
    )
}


def find_format(name: str) -> Format:
    """The format of that name. Raises InputError naming those there are."""
    if name not in FORMATS:
        raise InputError("Unknown number format", expected=", ".join(FORMATS), got=name)
    return FORMATS[name]


def round_e2m1(x: Tensor) -> Tensor:
    """The nearest E2M1 value, ties to the even mantissa, saturating at 6; fp32 in and out."""
    magnitude = x.abs().clamp(max=E2M1_MAX)
    step = torch.where(magnitude < 2, 0.5, torch.where(magnitude < 4, 1.0, 2.0))
    return torch.copysign((magnitude / step).round() * step, x)


def round_e4m3(x: Tensor) -> Tensor:
    """The nearest E4M3 value as float8, ties to even, saturating at 448."""
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def encode_e2m1(x: Tensor) -> Tensor:
    """Rounds [.., K] to E2M1 and packs two codes to a byte, even k in the low nibble: uint8 [.., K / 2]."""
    values = torch.tensor(E2M1_VALUES, device=x.device)
    code = torch.bucketize(round_e2m1(x).abs(), values) + 8 * (x < 0)
    return (code[..., 0::2] | code[..., 1::2] << 4).to(torch.uint8)


def decode_e2m1(packed: Tensor) -> Tensor:
    """fp32 values [.., K] of packed E2M1 codes [.., K / 2]."""
    values = torch.tensor([*E2M1_VALUES, *(-v for v in E2M1_VALUES)], device=packed.device)
    return values[torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2).int()]


def encode_e8m0(amax: Tensor) -> Tensor:
    """Biased exponent (uint8) of the smallest power of two that brings `amax` to at most 448, in 2^-127..2^127."""
    mantissa, exponent = torch.frexp(amax)
    exponent = exponent - 9 + (mantissa > E4M3_MAX / 2**9).int()
    return torch.where(amax > 0, (exponent + E8M0_BIAS).clamp(0, 254), 0).to(torch.uint8)


def decode_e8m0(code: Tensor) -> Tensor:
    """fp32 powers of two of biased exponents."""
    return code.view(torch.float8_e8m0fnu).float()


def tensor_scale(amax: Tensor, format: Format) -> Tensor:
    """The fp32 per-tensor (or per-row) scale that maps `amax` to the largest value; 1 where all values are zero."""
    largest = E2M1_MAX * E4M3_MAX if format.element == "e2m1" else format.element_max
    return torch.where(amax > 0, amax.float() / largest, 1.0)


def quantize_weight(weight: Tensor, format: Format, *, layer: str = "weight") -> dict[str, Tensor]:
    """Packs a weight [N, K] (any float dtype; computed in fp32) into the tensors of `Format.tensors`.

    No `input_scale`: that comes from calibration. Raises FormatError, naming `layer`, for NaN, Inf, and a K that is
    not whole blocks.
    """
    format.check_columns(weight.shape[1], layer)
    weight = weight.float()
    _check_finite(weight.abs().amax(), layer)
    match format.weight_scales:
        case "none":
            return {"weight": weight.to(torch.bfloat16)}
        case "row":
            scale = tensor_scale(weight.abs().amax(1), format)
            return {"weight": _round_int8(weight / scale[:, None]).to(torch.int8), "weight_scale": scale}
        case "tensor":
            scale = tensor_scale(weight.abs().amax(), format)
            return {"weight": round_e4m3(weight / scale), "weight_scale": scale}
    blocks = _blocks(weight, format)
    amax = blocks.abs().amax(-1)
    if format.element == "e4m3":
        code = encode_e8m0(amax)
        return {"weight": round_e4m3(blocks / decode_e8m0(code)[..., None]).flatten(1), "weight_scale": code}
    scale_2 = tensor_scale(amax.amax(), format)
    scale = round_e4m3(torch.where(amax > 0, amax / (E2M1_MAX * scale_2), 1.0).clamp(min=E4M3_TINY))
    codes = encode_e2m1(blocks / (scale.float() * scale_2)[..., None]).flatten(1)
    return {"weight": codes, "weight_scale": scale, "weight_scale_2": scale_2}


def dequantize_weight(packed: Mapping[str, Tensor], format: Format) -> Tensor:
    """The fp32 weight [N, K] that the packed tensors stand for."""
    weight = decode_e2m1(packed["weight"]) if format.element == "e2m1" else packed["weight"].float()
    match format.name:
        case "bf16":
            return weight
        case "int8":
            return weight * packed["weight_scale"][:, None]
        case "fp8":
            return weight * packed["weight_scale"]
        case "mxfp8":
            scale = decode_e8m0(packed["weight_scale"])
        case _:
            scale = packed["weight_scale"].float() * packed["weight_scale_2"]
    return (_blocks(weight, format) * scale[..., None]).flatten(1)


def quantize_dequantize_activation(
    x: Tensor, format: Format, input_scale: Tensor | None = None, *, layer: str = "activation"
) -> Tensor:
    """What a quantized GEMM reads of its input [.., K]: rounded to the format and back, in fp32.

    `input_scale` is the calibrated fp32 scalar of int8, fp8 and nvfp4. Raises FormatError for NaN and Inf, a missing
    `input_scale`, and a K that is not whole blocks.
    """
    format.check_columns(x.shape[-1], layer)
    if input_scale is None:
        if format.calibrated:
            raise FormatError(f"{format.name} activations need a calibrated input scale", where=layer)
        input_scale = x.new_ones((), dtype=torch.float32)
    blocks = _blocks(x.float(), format)
    amax = blocks.abs().amax(-1, keepdim=True)
    _check_finite(amax.amax(), layer)
    match format.name:
        case "int8":
            blocks = _round_int8(blocks / input_scale) * input_scale
        case "fp8":
            blocks = round_e4m3(blocks / input_scale).float() * input_scale
        case "mxfp8":
            scale = decode_e8m0(encode_e8m0(amax))
            blocks = round_e4m3(blocks / scale).float() * scale
        case "nvfp4":
            scale = round_e4m3(amax / (E2M1_MAX * input_scale)).float() * input_scale
            blocks = round_e2m1(blocks / torch.where(scale > 0, scale, 1.0)) * scale
    return blocks.flatten(-2)


def _blocks(x: Tensor, format: Format) -> Tensor:
    """[.., K] -> [.., blocks, block]; the whole of K is one block where the format has none."""
    return x.unflatten(-1, (-1, format.block or x.shape[-1]))


def _round_int8(x: Tensor) -> Tensor:
    return x.round().clamp(-128, 127)


def _check_finite(amax: Tensor, layer: str) -> None:
    if not torch.isfinite(amax):
        raise FormatError("Tensor holds NaN or infinite values", where=layer, fix="check the checkpoint and its dtype")
