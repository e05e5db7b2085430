"""Give every nn.Linear one shape in the graph: a rank-2 Gemm that bears its module's name."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from .contract import GraphPass
from .insertion import Insertion, static_shape


class LinearsToGemm(GraphPass):
    """Before: a Linear is MatMul(x, Transpose(weight)), then Add(bias) if it has one.
    After: it is Reshape -> Gemm(x [tokens, K], weight [N, K], bias, transB=1) -> Reshape, the Gemm is named after the
    module ("blocks.0.attn1.to_qkv"), and its weight is read by nothing else.

    Rank 2 because TensorRT quantizes activations dynamically in rank 2 and 3 only, and since it keeps a weight from
    being broadcast over batch and frames; Gemm because weight blocks run along K, the last axis of [N, K].
    """

    def apply(self, model: ir.Model) -> int:
        linears = list(_find_linears(model.graph))
        for linear in linears:
            _rewrite(linear)
        return len(linears)

    def ensures(self, model: ir.Model) -> Iterator[str]:
        gemms = find_gemms(model.graph)
        for name, weight in model.graph.initializers.items():
            module, _, leaf = name.rpartition(".")
            if leaf == "weight" and len(weight.shape or ()) == 2 and module not in gemms:
                yield f"the Linear {module} is one Gemm"
        for name, gemm in gemms.items():
            read = gemm.inputs[1]
            if read is None or read.name != f"{name}.weight" or len(read.uses()) != 1:
                yield f"the Gemm {name} alone reads {name}.weight"


def find_gemms(graph: ir.Graph) -> dict[str, ir.Node]:
    """The Gemm of every Linear by module name, in graph order."""
    return {str(node.name): node for node in graph if node.op_type == "Gemm"}


@dataclass(frozen=True)
class _Linear:
    name: str
    weight: ir.Value
    bias: ir.Value | None
    nodes: tuple[ir.Node, ...]  # Transpose, MatMul, and Add if there is a bias

    @property
    def input(self) -> ir.Value:
        value = self.nodes[1].inputs[0]
        assert value is not None
        return value

    @property
    def output(self) -> ir.Value:
        return self.nodes[-1].outputs[0]


def _find_linears(graph: ir.Graph) -> Iterator[_Linear]:
    for matmul in graph:
        transpose = matmul.inputs[1].producer() if matmul.op_type == "MatMul" and matmul.inputs[1] else None
        if transpose is None or transpose.op_type != "Transpose":
            continue
        weight = transpose.inputs[0]
        if weight is None or not weight.is_initializer() or not str(weight.name).endswith(".weight"):
            continue
        name = str(weight.name).removesuffix(".weight")
        bias = graph.initializers.get(f"{name}.bias")
        if bias is None:
            yield _Linear(name, weight, None, (transpose, matmul))
        else:
            (add,) = matmul.outputs[0].consumers()
            assert add.op_type == "Add" and bias in add.inputs, f"{name}: MatMul is not followed by Add of its bias"
            yield _Linear(name, weight, bias, (transpose, matmul, add))


def _rewrite(linear: _Linear) -> None:
    insertion = Insertion(linear.nodes[-1], linear.name)
    dtype = linear.output.dtype
    assert dtype is not None
    *tokens, columns = static_shape(linear.input)
    *_, rows = static_shape(linear.output)
    x = insertion.reshape(linear.input, (math.prod(tokens), columns), "input")
    operands = [x, linear.weight] + ([linear.bias] if linear.bias is not None else [])
    (y,) = insertion.node("output", "Gemm", operands, outputs=[(dtype, (math.prod(tokens), rows))], transB=1)
    gemm = y.producer()
    assert gemm is not None
    gemm.name = linear.name
    result = insertion.reshape(y, (*tokens, rows), "unflatten")
    ir.convenience.replace_all_uses_with(linear.output, result)
    insertion.graph.remove(reversed(linear.nodes), safe=True)
