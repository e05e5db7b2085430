"""Repeat attention masks over query positions, which ONNX leaves to broadcasting and ONNX Runtime does not do."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from .contract import GraphPass
from .insertion import Insertion, static_shape

_MASK = 3  # input of Attention (opset 23)


class ExpandAttentionMasks(GraphPass):
    """Before: Attention ops may have masks [batch, 1, 1, keys].
    After: every mask is [batch, 1, queries, keys]. Masks of equal shape share one Expand.
    """

    def apply(self, model: ir.Model) -> int:
        expanded: dict[tuple[ir.Value, int], ir.Value] = {}
        for node in [n for n in model.graph if n.op_type == "Attention"]:
            mask, queries = _mask_and_queries(node)
            if mask is None or static_shape(mask)[-2] == queries:
                continue
            if (mask, queries) not in expanded:
                expanded[mask, queries] = _expand(node, mask, queries)
            node.replace_input_with(_MASK, expanded[mask, queries])
        return len(expanded)

    def ensures(self, model: ir.Model) -> Iterator[str]:
        for node in model.graph:
            if node.op_type == "Attention":
                mask, queries = _mask_and_queries(node)
                if mask is not None and static_shape(mask)[-2] != queries:
                    yield f"the mask of {node.name} covers {queries} queries"


def _mask_and_queries(node: ir.Node) -> tuple[ir.Value | None, int]:
    query = node.inputs[0]
    assert query is not None
    return node.inputs[_MASK] if len(node.inputs) > _MASK else None, static_shape(query)[-2]


def _expand(node: ir.Node, mask: ir.Value, queries: int) -> ir.Value:
    *batch, _, keys = static_shape(mask)
    shape = (*batch, queries, keys)
    assert mask.dtype is not None
    insertion = Insertion(node, str(mask.name))
    target = insertion.shape(shape, "expand")
    return insertion.node("expand", "Expand", [mask, target], outputs=[(mask.dtype, shape)])[0]
