"""Compute in fp32 what the engine graph computes in bf16; the stored weights stay as they are."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir import DataType

from .contract import GraphPass

_DTYPE_ATTRIBUTES = ("to", "output_dtype")


class WidenCarrier(GraphPass):
    """Before: a graph with a bf16 carrier, whose constants are all initializers.
    After: bf16 is met only in initializers, each read by one Cast to fp32; every other value that was bf16 is fp32.
    Initializers keep their bytes, so that both graphs can share one file of weights.
    """

    def apply(self, model: ir.Model) -> int:
        graph = model.graph
        changed = 0
        for node in graph:
            for name in _DTYPE_ATTRIBUTES:
                if name in node.attributes and node.attributes[name].as_int() == DataType.BFLOAT16:
                    node.attributes[name] = ir.AttrInt64(name, DataType.FLOAT)
            for value in node.outputs:
                if value.dtype == DataType.BFLOAT16:
                    value.type = ir.TensorType(DataType.FLOAT)
                    changed += 1
        for value in list(graph.initializers.values()):
            if value.dtype == DataType.BFLOAT16:
                _cast_where_read(graph, value)
                changed += 1
        return changed

    def ensures(self, model: ir.Model) -> Iterator[str]:
        for node in model.graph:
            for value in node.inputs:
                if value is not None and value.dtype == DataType.BFLOAT16 and node.op_type != "Cast":
                    yield f"{node.op_type} {node.name} does not read bf16"


def _cast_where_read(graph: ir.Graph, value: ir.Value) -> None:
    readers = list(value.uses())
    wide = ir.Value(name=f"{value.name}/fp32", type=ir.TensorType(DataType.FLOAT), shape=value.shape)
    cast = ir.node("Cast", [value], {"to": DataType.FLOAT.value}, outputs=[wide], name=f"{value.name}/fp32")
    graph.insert_before(graph[0], cast)
    for node, index in readers:
        node.replace_input_with(index, wide)
