"""Put Q/DQ around the Gemm of every quantized Linear, with its packed tensors as initializers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import ModuleType

import onnx_ir as ir
from onnx_ir import DataType

from ...runtime.quantized_linear import QuantizedLinear
from ..precisions import graph_formats
from . import mxfp8, nvfp4, static_scales
from .contract import GraphPass
from .insertion import Insertion, static_shape
from .linears_to_gemm import find_gemms
from .tensors import torch_tensor

_OPERANDS: dict[str, ModuleType] = {"int8": static_scales, "fp8": static_scales, "mxfp8": mxfp8, "nvfp4": nvfp4}


class QuantizeGemms(GraphPass):
    """Before: every layer to quantize is a Gemm (LinearsToGemm).
    After: both operands of those Gemms, and of no others, pass through the Q/DQ of their format; no layer is left out.
    SmoothQuant's `pre_quant_scale` is an explicit fp32 Mul in front of the quantizer.
    """

    def __init__(self, layers: Mapping[str, QuantizedLinear]) -> None:
        self.layers = layers

    def requires(self, model: ir.Model) -> Iterator[str]:
        gemms = find_gemms(model.graph)
        for name in self.layers:
            if name not in gemms:
                yield f"the quantized Linear {name} is a Gemm"

    def apply(self, model: ir.Model) -> int:
        gemms = find_gemms(model.graph)
        for name, layer in self.layers.items():
            _quantize(gemms[name], layer)
        if any(layer.format.name in ("mxfp8", "nvfp4") for layer in self.layers.values()):
            model.opset_imports[nvfp4.TRT_DOMAIN] = 1
        return len(self.layers)

    def ensures(self, model: ir.Model) -> Iterator[str]:
        found = graph_formats(model)
        for name in found:
            asked = self.layers[name].format.name if name in self.layers else "bf16"
            if found[name] != asked:
                yield f"{name} is {asked} and not {found[name]}"


def _quantize(gemm: ir.Node, layer: QuantizedLinear) -> None:
    x, weight, *_ = gemm.inputs
    assert x is not None and weight is not None and x.dtype is not None
    carrier, operands = x.dtype, _OPERANDS[layer.format.name]
    insertion = Insertion(gemm, str(gemm.name))
    gemm.replace_input_with(1, None)
    del insertion.graph.initializers[str(weight.name)]
    if layer.pre_quant_scale is not None:
        factor = insertion.initializer("pre_quant_scale", torch_tensor(layer.pre_quant_scale))
        x32 = insertion.cast(x, DataType.FLOAT, "smooth_cast")
        (x,) = insertion.node("smooth", "Mul", [x32, factor], outputs=[(DataType.FLOAT, static_shape(x))])
    gemm.replace_input_with(0, operands.quantize_input(insertion, x, layer, carrier))
    gemm.replace_input_with(1, operands.dequantize_weight(insertion, layer, carrier))
