"""Local functions: ops with a body in standard ONNX, written in ONNX's text syntax."""

from __future__ import annotations

import onnx
import onnx_ir as ir


def add_function(model: ir.Model, text: str) -> None:
    """Adds a function to a model, and its domain to the opset imports. Raises onnx.parser.ParseError for bad text."""
    function = ir.serde.deserialize_function(onnx.parser.parse_function(text))
    model.functions[function.identifier()] = function
    model.opset_imports[function.domain] = 1
