"""Which precision each layer got: read back from the ONNX graph, independently of what inserted it."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import DataType

QUANTIZERS = {
    ("TRT_FP4DynamicQuantize", DataType.FLOAT4E2M1): "nvfp4",
    ("TRT_MXFP8DynamicQuantize", DataType.FLOAT8E4M3FN): "mxfp8",
    ("QuantizeLinear", DataType.FLOAT8E4M3FN): "fp8",
    ("QuantizeLinear", DataType.INT8): "int8",
}
_TRANSPARENT = {"Cast", "Reshape", "DequantizeLinear", "TRT_MXFP8DequantizeLinear"}


def graph_formats(model: ir.Model) -> dict[str, str]:
    """Module name -> format of every Gemm, from its operands: the input's quantizer and the weight's stored dtype.

    A Gemm is "bf16" when neither operand is quantized, and "mixed: ..." when they disagree.
    """
    return {str(node.name): _format(node) for node in model.graph if node.op_type == "Gemm"}


def layer_bytes(model: ir.Model, layer: str) -> int:
    """Bytes that a Linear's tensors take in the file: weight, scales and bias."""
    tensors = [v.const_value for name, v in model.graph.initializers.items() if name.rpartition(".")[0] == layer]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _format(gemm: ir.Node) -> str:
    x, weight = gemm.inputs[:2]
    assert x is not None and weight is not None
    quantizer = _source(x).producer()
    asked = "bf16"
    if quantizer is not None and quantizer.outputs[0].dtype is not None:
        asked = QUANTIZERS.get((quantizer.op_type, quantizer.outputs[0].dtype), "bf16")
    stored = _source(weight).dtype
    expected = {name: dtype for (_, dtype), name in QUANTIZERS.items()}.get(asked)
    if stored == expected or (expected is None and stored in (DataType.BFLOAT16, DataType.FLOAT)):
        return asked
    return f"mixed: {asked} input, {stored.name.lower() if stored else 'unknown'} weight"


def _source(value: ir.Value) -> ir.Value:
    """Back through dequantizers and casts to what they read."""
    node = value.producer()
    while node is not None and node.op_type in _TRANSPARENT and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value
