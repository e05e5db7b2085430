"""Q/DQ of nvfp4: E2M1 values whose E4M3 block scales are themselves scaled by one fp32 number.

    x -> trt::TRT_FP4DynamicQuantize(input_scale) -> values, block scales
         block scales -> DequantizeLinear(input_scale) -> scales
         values -> DequantizeLinear(scales, blocks of 16) -> Gemm
    weight_scale (FLOAT8E4M3FN) -> DequantizeLinear(weight_scale_2) -> scales
         weight (FLOAT4E2M1) -> DequantizeLinear(scales, blocks of 16) -> Gemm

The compiler wants a dequantized FP4 value in the dtype of its scales, hence fp32 and a Cast to the carrier; it folds
all of it into one FP4 GEMM.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import DataType

from ...runtime.quantized_linear import QuantizedLinear
from .insertion import Insertion, static_shape
from .tensors import packed_e2m1, torch_tensor

TRT_DOMAIN = "trt"


def quantize_input(insertion: Insertion, x: ir.Value, layer: QuantizedLinear, carrier: DataType) -> ir.Value:
    """x [tokens, K] rounded to nvfp4 and back, in the carrier dtype."""
    block = layer.format.block
    assert block is not None and layer.input_scale is not None
    scale = insertion.initializer("input_scale", torch_tensor(layer.input_scale))
    tokens, columns = static_shape(x)
    values, block_scales = insertion.node(
        "quantize",
        "TRT_FP4DynamicQuantize",
        [x, scale],
        domain=TRT_DOMAIN,
        outputs=[(DataType.FLOAT4E2M1, (tokens, columns)), (DataType.FLOAT8E4M3FN, (tokens, columns // block))],
        axis=-1,
        block_size=block,
        scale_type=DataType.FLOAT8E4M3FN.value,
    )
    return _dequantize(insertion, values, block_scales, scale, block, carrier, "dequantize")


def dequantize_weight(insertion: Insertion, layer: QuantizedLinear, carrier: DataType) -> ir.Value:
    """The weight [N, K] from its packed initializer, in the carrier dtype."""
    assert layer.format.block is not None
    packed = layer.packed()
    weight = insertion.initializer("weight", packed_e2m1(packed["weight"]))
    block_scales = insertion.initializer("weight_scale", torch_tensor(packed["weight_scale"]))
    scale = insertion.initializer("weight_scale_2", torch_tensor(packed["weight_scale_2"]))
    return _dequantize(insertion, weight, block_scales, scale, layer.format.block, carrier, "dequantize_weight")


def _dequantize(
    insertion: Insertion,
    values: ir.Value,
    block_scales: ir.Value,
    scale: ir.Value,
    block: int,
    carrier: DataType,
    suffix: str,
) -> ir.Value:
    scale_shape = static_shape(block_scales)
    (scales,) = insertion.node(
        f"{suffix}_scale", "DequantizeLinear", [block_scales, scale], outputs=[(DataType.FLOAT, scale_shape)]
    )
    outputs = [(DataType.FLOAT, static_shape(values))]
    (x,) = insertion.node(suffix, "DequantizeLinear", [values, scales], outputs=outputs, axis=-1, block_size=block)
    return insertion.cast(x, carrier, f"{suffix}_cast")
