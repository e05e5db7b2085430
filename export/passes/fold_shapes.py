"""Fold shape arithmetic and sequence ops that the exporter writes, and leave every weight where it is."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants

from ..quiet import quiet
from .contract import GraphPass

_FOLDED = {"Constant", "Identity", "SplitToSequence", "SequenceAt", "Shape", "Range"}


class FoldShapes(GraphPass):
    """Before: initializers are exactly the parameters and tables of the model, everything else constant is a node.
    After: no shape arithmetic, no Constant or Identity nodes, no sequences, every value has a static shape; no original
    initializer was read, changed or copied; the stack traces that the exporter noted are gone.
    """

    def requires(self, model: ir.Model) -> Iterator[str]:
        self._initializers = dict(model.graph.initializers)
        yield from ()

    def apply(self, model: ir.Model) -> int:
        before = model.graph.num_nodes()
        kept = set(self._initializers.values())

        def rule(node: ir.Node) -> bool | None:
            """Keeps what reads an original initializer; None leaves the choice to the folder's own rules."""
            return False if any(v in kept for v in node.inputs) else None

        with quiet("onnxscript", "onnx_ir"):
            fold_constants(model, should_fold=rule, onnx_shape_inference=True)
            common.IdentityEliminationPass()(model)
            common.CommonSubexpressionEliminationPass()(model)
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
            common.RemoveUnusedNodesPass()(model)
            common.ClearMetadataAndDocStringPass()(model)
        return before - model.graph.num_nodes()

    def ensures(self, model: ir.Model) -> Iterator[str]:
        for name, value in self._initializers.items():
            if model.graph.initializers.get(name) is not value:
                yield f"initializer {name} is kept"
        for node in model.graph:
            if node.op_type in _FOLDED:
                yield f"{node.op_type} {node.name} is folded"
            for output in node.outputs:
                if output.shape is None or not output.shape.is_static() or output.dtype is None:
                    yield f"{output.name} of {node.op_type} {node.name} has a static shape and a type"
