"""Read FP4 weights as the bytes they are, for runtimes that have no FP4 type."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir import DataType

from ...runtime.formats import E2M1_VALUES
from .contract import GraphPass
from .functions import add_function

DOMAIN = "sana_edge"
_VALUES = ", ".join(str(v) for v in (*E2M1_VALUES, *(-v for v in E2M1_VALUES)))

UNPACK_E2M1 = f"""
<domain: "{DOMAIN}", opset_import: ["": 23]>
UnpackE2M1 (packed) => (values)
{{
    mask = Constant <value = uint8[1] {{15}}> ()
    shift = Constant <value = uint8[1] {{4}}> ()
    last = Constant <value_ints = [-1]> ()
    flat = Constant <value_ints = [0, -1]> ()
    table = Constant <value = float[16] {{{_VALUES}}}> ()
    low = BitwiseAnd (packed, mask)
    high = BitShift <direction = "RIGHT"> (packed, shift)
    low_column = Unsqueeze (low, last)
    high_column = Unsqueeze (high, last)
    pairs = Concat <axis = -1> (low_column, high_column)
    codes = Reshape (pairs, flat)
    indices = Cast <to = {DataType.INT32.value}> (codes)
    wide = Gather (table, indices)
    values = Cast <to = {DataType.FLOAT8E4M3FN.value}> (wide)
}}
"""


class UnpackE2M1(GraphPass):
    """Before: FP4 weights are FLOAT4E2M1 initializers [N, K] in external data.
    After: they are UINT8 initializers [N, K / 2] on the same bytes, unpacked by a local function to FLOAT8E4M3FN,
    which holds every E2M1 value exactly; the DequantizeLinear that follows is untouched.
    """

    def requires(self, model: ir.Model) -> Iterator[str]:
        for name, value in model.graph.initializers.items():
            if value.dtype == DataType.FLOAT4E2M1 and not isinstance(value.const_value, ir.ExternalTensor):
                yield f"{name} is external data"

    def apply(self, model: ir.Model) -> int:
        weights = [v for v in model.graph.initializers.values() if v.dtype == DataType.FLOAT4E2M1]
        for value in weights:
            _unpack(model.graph, value)
        if weights:
            add_function(model, UNPACK_E2M1)
        return len(weights)

    def ensures(self, model: ir.Model) -> Iterator[str]:
        for name, value in model.graph.initializers.items():
            if value.dtype == DataType.FLOAT4E2M1:
                yield f"{name} is not FLOAT4E2M1"


def _unpack(graph: ir.Graph, value: ir.Value) -> None:
    tensor, name = value.const_value, str(value.name)
    assert isinstance(tensor, ir.ExternalTensor)
    rows, columns = tensor.shape.numpy()
    packed = ir.ExternalTensor(
        tensor.location,
        tensor.offset,
        tensor.length,
        DataType.UINT8,
        shape=ir.Shape((rows, columns // 2)),
        name=name,
        base_dir=tensor.base_dir,
    )
    readers = list(value.uses())
    values = ir.Value(name=f"{name}/values", type=ir.TensorType(DataType.FLOAT8E4M3FN), shape=tensor.shape)
    value.type, value.shape, value.const_value = ir.TensorType(DataType.UINT8), packed.shape, packed
    unpack = ir.node("UnpackE2M1", [value], domain=DOMAIN, outputs=[values], name=f"{name}/unpack")
    graph.insert_before(readers[0][0], unpack)
    for node, index in readers:
        node.replace_input_with(index, values)
