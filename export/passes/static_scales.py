"""Q/DQ of int8 and fp8: standard ONNX ops with calibrated per-tensor scales for activations.

    x -> QuantizeLinear(input_scale) -> DequantizeLinear(input_scale) -> Gemm
    weight (INT8 a row, FLOAT8E4M3FN a tensor) -> DequantizeLinear(weight_scale) -> Gemm

Scales stay fp32 beside a bf16 carrier: opset 23 lets DequantizeLinear's `output_dtype` differ from its scale.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import DataType

from ...runtime.quantized_linear import QuantizedLinear
from .insertion import Insertion, static_shape
from .tensors import torch_tensor

ELEMENT = {"int8": DataType.INT8, "fp8": DataType.FLOAT8E4M3FN}


def quantize_input(insertion: Insertion, x: ir.Value, layer: QuantizedLinear, carrier: DataType) -> ir.Value:
    """x [tokens, K] rounded to the format and back, in the carrier dtype."""
    assert layer.input_scale is not None
    element, shape = ELEMENT[layer.format.name], static_shape(x)
    scale = insertion.initializer("input_scale", torch_tensor(layer.input_scale))
    (q,) = insertion.node(
        "quantize", "QuantizeLinear", [x, scale], outputs=[(element, shape)], output_dtype=element.value
    )
    outputs = [(carrier, shape)]
    return insertion.node("dequantize", "DequantizeLinear", [q, scale], outputs=outputs, output_dtype=carrier.value)[0]


def dequantize_weight(insertion: Insertion, layer: QuantizedLinear, carrier: DataType) -> ir.Value:
    """The weight [N, K] from its packed initializer, in the carrier dtype."""
    weight = insertion.initializer("weight", torch_tensor(layer.weight))
    scale = insertion.initializer("weight_scale", torch_tensor(layer.packed()["weight_scale"]))
    outputs = [(carrier, static_shape(weight))]
    return insertion.node(
        "dequantize_weight", "DequantizeLinear", [weight, scale], outputs=outputs, output_dtype=carrier.value, axis=0
    )[0]
