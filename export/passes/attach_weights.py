"""Put the tensors of a model in the place of the placeholders that the graph was traced with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir
from torch import Tensor

from .contract import GraphPass
from .tensors import lazy_tensor


class AttachWeights(GraphPass):
    """Before: initializers named as parameters of the model hold placeholders.
    After: each that `state` has holds that tensor, read and rounded to the carrier dtype only when the file is
    written. The others (weights of quantized Linears) have no value and wait for QuantizeGemms.
    """

    def __init__(self, placeholders: set[str], state: Mapping[str, Tensor]) -> None:
        self.placeholders, self.state = placeholders, state

    def requires(self, model: ir.Model) -> Iterator[str]:
        for name in self.placeholders:
            if name not in model.graph.initializers:
                yield f"{name} is an initializer"

    def apply(self, model: ir.Model) -> int:
        for name in self.placeholders:
            value = model.graph.initializers[name]
            assert value.dtype is not None
            value.const_value = lazy_tensor(name, self.state[name], value.dtype) if name in self.state else None
        return sum(name in self.state for name in self.placeholders)

    def ensures(self, model: ir.Model) -> Iterator[str]:
        for name in self.placeholders & set(self.state):
            value = model.graph.initializers[name]
            if value.shape is None or list(value.shape) != list(self.state[name].shape):
                yield f"{name} has the shape {list(self.state[name].shape)}"
