"""Compute in fp32 what the engine graph computes in bf16; the stored weights stay as they are."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir import DataType

from .contract import GraphPass
from .insertion import Insertion

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
        return changed + _cast_where_read(graph)

    def ensures(self, model: ir.Model) -> Iterator[str]:
        for node in model.graph:
            for value in node.inputs:
                if value is not None and value.dtype == DataType.BFLOAT16 and node.op_type != "Cast":
                    yield f"{node.op_type} {node.name} does not read bf16"


def _cast_where_read(graph: ir.Graph) -> int:
    """Puts a Cast in front of the first reader of each bf16 initializer, so that the wide copy lives no longer."""
    wide: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        for index, value in enumerate(node.inputs):
            if value is None or not value.is_initializer() or value.dtype != DataType.BFLOAT16:
                continue
            if value not in wide:
                insertion = Insertion(node, str(value.name))
                wide[value] = insertion.cast(value, DataType.FLOAT, "fp32")
            node.replace_input_with(index, wide[value])
    return len(wide)
