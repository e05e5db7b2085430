"""Give TensorRT's own quantization ops a body in standard ONNX ops, so that any runtime can execute them.

The bodies follow runtime/formats.py operation by operation: the same divisions, in the same order, so that a value
on the boundary between two codes falls on the same side. They take rank-2 inputs, blocks along the last axis.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir import DataType

from ...runtime.formats import E2M1_MAX, E4M3_MAX, E8M0_BIAS
from .contract import GraphPass
from .functions import add_function
from .nvfp4 import TRT_DOMAIN

_E4M3, _FLOAT = DataType.FLOAT8E4M3FN.value, DataType.FLOAT.value
_POWERS_OF_TWO = ", ".join(f"{2.0 ** (code - E8M0_BIAS):.9g}" for code in range(255))

FP4_DYNAMIC_QUANTIZE = f"""
<domain: "{TRT_DOMAIN}", opset_import: ["": 23]>
TRT_FP4DynamicQuantize <axis, block_size, scale_type> (x, scale) => (values, block_scales)
{{
    block = Constant <value_int: int = @block_size> ()
    last = Constant <value_ints = [-1]> ()
    flat = Constant <value_ints = [0, -1]> ()
    keep = Constant <value_ints = [0, -1]> ()
    zero = Constant <value_float = 0.0> ()
    half = Constant <value_float = 0.5> ()
    one = Constant <value_float = 1.0> ()
    two = Constant <value_float = 2.0> ()
    four = Constant <value_float = 4.0> ()
    largest = Constant <value_float = {E2M1_MAX}> ()
    block_dim = Reshape (block, last)
    blocked = Concat <axis = 0> (keep, block_dim)
    blocks = Reshape (x, blocked)
    magnitudes = Abs (blocks)
    amax = ReduceMax <keepdims = 1> (magnitudes, last)
    full_range = Mul (largest, scale)
    exact_scales = Div (amax, full_range)
    e4m3_scales = Cast <to = {_E4M3}> (exact_scales)
    rounded_scales = Cast <to = {_FLOAT}> (e4m3_scales)
    scales = Mul (rounded_scales, scale)
    is_positive = Greater (scales, zero)
    divisors = Where (is_positive, scales, one)
    scaled = Div (blocks, divisors)
    scaled_magnitude = Abs (scaled)
    clamped = Min (scaled_magnitude, largest)
    below_two = Less (clamped, two)
    below_four = Less (clamped, four)
    coarse_step = Where (below_four, one, two)
    step = Where (below_two, half, coarse_step)
    steps = Div (clamped, step)
    whole_steps = Round (steps)
    rounded = Mul (whole_steps, step)
    sign = Sign (scaled)
    signed = Mul (rounded, sign)
    flat_values = Reshape (signed, flat)
    values = Cast <to = {_E4M3}> (flat_values)
    block_scales = Reshape (e4m3_scales, flat)
}}
"""

MXFP8_DYNAMIC_QUANTIZE = f"""
<domain: "{TRT_DOMAIN}", opset_import: ["": 23]>
TRT_MXFP8DynamicQuantize <axis, block_size, output_dtype> (x) => (values, block_scales)
{{
    block = Constant <value_int: int = @block_size> ()
    last = Constant <value_ints = [-1]> ()
    flat = Constant <value_ints = [0, -1]> ()
    keep = Constant <value_ints = [0, -1]> ()
    tiny = Constant <value_float = 1.17549435e-38> ()
    largest = Constant <value_float = {E4M3_MAX}> ()
    half_largest = Constant <value_float = {E4M3_MAX / 2}> ()
    log_two = Constant <value_float = 0.693147180559945> ()
    bias = Constant <value_float = {float(E8M0_BIAS)}> ()
    lowest = Constant <value_float = 0.0> ()
    highest = Constant <value_float = 254.0> ()
    powers = Constant <value = float[255] {{{_POWERS_OF_TWO}}}> ()
    block_dim = Reshape (block, last)
    blocked = Concat <axis = 0> (keep, block_dim)
    blocks = Reshape (x, blocked)
    magnitudes = Abs (blocks)
    amax = ReduceMax <keepdims = 1> (magnitudes, last)
    normal = Max (amax, tiny)
    ratio = Div (normal, largest)
    log_ratio = Log (ratio)
    exponent = Div (log_ratio, log_two)
    whole_exponent = Ceil (exponent)
    biased = Add (whole_exponent, bias)
    guess = Clip (biased, lowest, highest)
    guess_index = Cast <to = {DataType.INT64.value}> (guess)
    guess_power = Gather (powers, guess_index)
    reach = Mul (guess_power, largest)
    half_reach = Mul (guess_power, half_largest)
    is_too_small = Greater (amax, reach)
    is_too_large = LessOrEqual (amax, half_reach)
    up = Cast <to = {_FLOAT}> (is_too_small)
    down = Cast <to = {_FLOAT}> (is_too_large)
    raised = Add (guess, up)
    corrected = Sub (raised, down)
    code = Clip (corrected, lowest, highest)
    index = Cast <to = {DataType.INT64.value}> (code)
    scales = Gather (powers, index)
    scaled = Div (blocks, scales)
    e4m3 = Cast <to = {_E4M3}> (scaled)
    values = Reshape (e4m3, flat)
    codes = Cast <to = {DataType.UINT8.value}> (code)
    block_scales = Reshape (codes, flat)
}}
"""

MXFP8_DEQUANTIZE = f"""
<domain: "{TRT_DOMAIN}", opset_import: ["": 23]>
TRT_MXFP8DequantizeLinear <axis, block_size, output_dtype> (values, block_scales) => (x)
{{
    block = Constant <value_int: int = @block_size> ()
    last = Constant <value_ints = [-1]> ()
    flat = Constant <value_ints = [0, -1]> ()
    keep = Constant <value_ints = [0, -1]> ()
    powers = Constant <value = float[255] {{{_POWERS_OF_TWO}}}> ()
    block_dim = Reshape (block, last)
    blocked = Concat <axis = 0> (keep, block_dim)
    wide = Cast <to = {_FLOAT}> (values)
    blocks = Reshape (wide, blocked)
    index = Cast <to = {DataType.INT64.value}> (block_scales)
    scales = Gather (powers, index)
    scale_column = Unsqueeze (scales, last)
    scaled = Mul (blocks, scale_column)
    x = Reshape (scaled, flat)
}}
"""

BODIES = {
    "TRT_FP4DynamicQuantize": FP4_DYNAMIC_QUANTIZE,
    "TRT_MXFP8DynamicQuantize": MXFP8_DYNAMIC_QUANTIZE,
    "TRT_MXFP8DequantizeLinear": MXFP8_DEQUANTIZE,
}


class DefineTrtOps(GraphPass):
    """Before: `trt::` ops with fp32 outputs or inputs (WidenCarrier), known to `BODIES`.
    After: each has a local function of its name; E2M1 activations are typed FLOAT8E4M3FN, which holds them exactly.
    """

    def requires(self, model: ir.Model) -> Iterator[str]:
        for node in model.graph:
            if node.domain == TRT_DOMAIN and node.op_type not in BODIES:
                yield f"{node.op_type} {node.name} is one of {', '.join(BODIES)}"

    def apply(self, model: ir.Model) -> int:
        nodes = [node for node in model.graph if node.domain == TRT_DOMAIN]
        for op_type in sorted({node.op_type for node in nodes}):
            add_function(model, BODIES[op_type])
        for node in nodes:
            for value in node.outputs:
                if value.dtype == DataType.FLOAT4E2M1:
                    value.type = ir.TensorType(DataType.FLOAT8E4M3FN)
        return len(nodes)

    def ensures(self, model: ir.Model) -> Iterator[str]:
        for node in model.graph:
            if node.domain and (node.domain, node.op_type, node.overload) not in model.functions:
                yield f"{node.domain}::{node.op_type} has a body"
            if any(value.dtype == DataType.FLOAT4E2M1 for value in node.outputs):
                yield f"{node.op_type} {node.name} has no FP4 output"
