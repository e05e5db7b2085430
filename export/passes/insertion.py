"""Adding nodes to an onnx_ir graph: the few lines that every inserting pass needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir import DataType


class Insertion:
    """Inserts nodes in front of `anchor`; their values are named `stem/suffix`."""

    def __init__(self, anchor: ir.Node, stem: str) -> None:
        assert anchor.graph is not None
        self.anchor, self.stem, self.graph = anchor, stem, anchor.graph

    def node(
        self,
        suffix: str,
        op_type: str,
        inputs: Sequence[ir.Value],
        *,
        outputs: Sequence[tuple[DataType, Sequence[int]]],
        domain: str = "",
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """Inserts one node; `outputs` are the dtype and shape of each of its outputs."""
        name = f"{self.stem}/{suffix}"
        values = [
            ir.Value(name=name + f"_{i}" * (i > 0), type=ir.TensorType(dtype), shape=ir.Shape(shape))
            for i, (dtype, shape) in enumerate(outputs)
        ]
        node = ir.node(op_type, inputs, attributes, domain=domain, outputs=values, name=name)
        self.graph.insert_before(self.anchor, node)
        return node.outputs

    def cast(self, value: ir.Value, to: DataType, suffix: str) -> ir.Value:
        """`value` in another dtype, through a Cast where it differs."""
        if value.dtype == to:
            return value
        return self.node(suffix, "Cast", [value], outputs=[(to, static_shape(value))], to=to.value)[0]

    def reshape(self, value: ir.Value, shape: Sequence[int], suffix: str) -> ir.Value:
        """`value` in another shape, through a Reshape where it differs."""
        if static_shape(value) == list(shape):
            return value
        assert value.dtype is not None
        target = self.shape(shape, suffix)
        return self.node(suffix, "Reshape", [value, target], outputs=[(value.dtype, shape)])[0]

    def shape(self, shape: Sequence[int], suffix: str) -> ir.Value:
        """A shape as the INT64 initializer that Reshape and Expand read."""
        return add_initializer(self.graph, f"{self.stem}/{suffix}.shape", ir.tensor(np.array(shape, dtype=np.int64)))

    def initializer(self, suffix: str, tensor: ir.TensorProtocol) -> ir.Value:
        """Registers an initializer `stem.suffix`, the name that LinearDiT gives its tensors."""
        return add_initializer(self.graph, f"{self.stem}.{suffix}", tensor)


def add_initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Registers a tensor as an initializer of the graph under a new name."""
    assert name not in graph.initializers, f"{name} is already an initializer"
    tensor.name = name
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def static_shape(value: ir.Value) -> list[int]:
    """The shape of a value as integers; every shape of an exported denoiser is known."""
    assert value.shape is not None and value.shape.is_static(), f"{value.name} has no static shape"
    return list(value.shape.numpy())
