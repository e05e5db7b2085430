"""Q/DQ of mxfp8: E4M3 values with a power-of-two scale (E8M0) for 32 values, in TensorRT's own ops.

x -> trt::TRT_MXFP8DynamicQuantize -> values, block scales -> trt::TRT_MXFP8DequantizeLinear -> Gemm
weight (FLOAT8E4M3FN), weight_scale (UINT8 exponents) -> trt::TRT_MXFP8DequantizeLinear -> Gemm
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import DataType

from ...runtime.quantized_linear import QuantizedLinear
from .insertion import Insertion, static_shape
from .nvfp4 import TRT_DOMAIN
from .tensors import torch_tensor


def quantize_input(insertion: Insertion, x: ir.Value, layer: QuantizedLinear, carrier: DataType) -> ir.Value:
    """x [tokens, K] rounded to mxfp8 and back, in the carrier dtype."""
    block = layer.format.block
    assert block is not None
    tokens, columns = static_shape(x)
    values, block_scales = insertion.node(
        "quantize",
        "TRT_MXFP8DynamicQuantize",
        [x],
        domain=TRT_DOMAIN,
        outputs=[(DataType.FLOAT8E4M3FN, (tokens, columns)), (DataType.UINT8, (tokens, columns // block))],
        axis=-1,
        block_size=block,
        output_dtype=DataType.FLOAT8E4M3FN.value,
    )
    return _dequantize(insertion, values, block_scales, block, carrier, "dequantize")


def dequantize_weight(insertion: Insertion, layer: QuantizedLinear, carrier: DataType) -> ir.Value:
    """The weight [N, K] from its packed initializer, in the carrier dtype."""
    assert layer.format.block is not None
    weight = insertion.initializer("weight", torch_tensor(layer.weight))
    block_scales = insertion.initializer("weight_scale", torch_tensor(layer.packed()["weight_scale"]))
    return _dequantize(insertion, weight, block_scales, layer.format.block, carrier, "dequantize_weight")


def _dequantize(
    insertion: Insertion, values: ir.Value, block_scales: ir.Value, block: int, carrier: DataType, suffix: str
) -> ir.Value:
    return insertion.node(
        suffix,
        "TRT_MXFP8DequantizeLinear",
        [values, block_scales],
        domain=TRT_DOMAIN,
        outputs=[(carrier, static_shape(values))],
        axis=-1,
        block_size=block,
        output_dtype=carrier.value,
    )[0]
