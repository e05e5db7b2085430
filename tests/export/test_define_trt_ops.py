"""The bodies of TensorRT's ops, run by ONNX Runtime, against the plain-PyTorch formats: equal to the last bit."""

from __future__ import annotations

import math

import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx.helper import make_node, make_tensor_value_info
from sana_edge.export.passes.define_trt_ops import BODIES, DefineTrtOps
from sana_edge.export.passes.functions import add_function
from sana_edge.export.passes.unpack_e2m1 import UNPACK_E2M1
from sana_edge.runtime.formats import (
    FORMATS,
    decode_e2m1,
    dequantize_weight,
    encode_e2m1,
    encode_e8m0,
    quantize_dequantize_activation,
    quantize_weight,
)
from torch import Tensor

FLOAT, UINT8, E4M3 = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT8E4M3FN
NVFP4, MXFP8 = FORMATS["nvfp4"], FORMATS["mxfp8"]


def run(nodes: list, bodies: list[str], outputs: dict[str, int], **inputs: Tensor) -> list[Tensor]:
    """Runs nodes that call local functions in ONNX Runtime."""
    types = {torch.float32: FLOAT, torch.uint8: UINT8}
    graph = onnx.helper.make_graph(
        nodes,
        "calls",
        [make_tensor_value_info(n, types[t.dtype], t.shape) for n, t in inputs.items()],
        [make_tensor_value_info(n, dtype, None) for n, dtype in outputs.items()],
    )
    model = ir.from_proto(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=11)
    )
    for text in bodies:
        add_function(model, text)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(v) for v in session.run(None, {n: t.numpy() for n, t in inputs.items()})]


def hard_tensor(columns: int) -> Tensor:
    """Random rows of all magnitudes, zero blocks, huge and tiny values, and values halfway between two codes."""
    rows = [torch.randn(8, columns) * 10.0 ** torch.arange(-4, 4)[:, None], torch.zeros(1, columns)]
    sparse = torch.randn(4, columns) * (torch.rand(4, columns) > 0.9)
    sparse[:, : columns // 2] = 0
    grid = torch.randint(-24, 25, (16, columns)) / 4
    extreme = torch.tensor([1e-45, -1e-39, 1e-30, 1e30, -3e38])[:, None] * torch.rand(5, columns)
    return torch.cat([*rows, sparse, grid, extreme])


@pytest.mark.parametrize("scale", [1.0, 0.37, 4 / 2688, 1e-12])
def test_fp4_dynamic_quantize(scale: float):
    x, input_scale = hard_tensor(64), torch.tensor(scale)
    quantize = make_node(
        "TRT_FP4DynamicQuantize", ["x", "scale"], ["q", "s"], domain="trt", axis=-1, block_size=16, scale_type=17
    )
    dequantize = [
        make_node("DequantizeLinear", ["s", "scale"], ["scales"]),
        make_node("DequantizeLinear", ["q", "scales"], ["y"], axis=-1, block_size=16),
        make_node("Cast", ["q"], ["values"], to=FLOAT),
    ]
    bodies = [BODIES["TRT_FP4DynamicQuantize"]]
    y, values = run([quantize, *dequantize], bodies, {"y": FLOAT, "values": FLOAT}, x=x, scale=input_scale)
    assert torch.equal(y, quantize_dequantize_activation(x, NVFP4, input_scale))
    assert torch.equal(values, decode_e2m1(encode_e2m1(values)))  # nothing but E2M1 values


def mxfp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """(quantized and dequantized x, block exponents) by the function bodies."""
    quantize = make_node(
        "TRT_MXFP8DynamicQuantize", ["x"], ["q", "s"], domain="trt", axis=-1, block_size=32, output_dtype=E4M3
    )
    dequantize = make_node(
        "TRT_MXFP8DequantizeLinear", ["q", "s"], ["y"], domain="trt", axis=-1, block_size=32, output_dtype=FLOAT
    )
    bodies = [BODIES["TRT_MXFP8DynamicQuantize"], BODIES["TRT_MXFP8DequantizeLinear"]]
    y, codes = run([quantize, dequantize], bodies, {"y": FLOAT, "s": UINT8}, x=x)
    return y, codes


def test_mxfp8_dynamic_quantize():
    x = hard_tensor(96)
    y, codes = mxfp8(x)
    assert torch.equal(codes, encode_e8m0(x.unflatten(1, (-1, 32)).abs().amax(-1)))
    assert torch.equal(y, quantize_dequantize_activation(x, MXFP8))


def test_mxfp8_exponent_at_every_border():
    """An amax of 448 * 2^n takes exponent n, its successor n + 1: over the whole range of fp32."""
    borders = torch.tensor([448 * 2.0**n for n in range(-134, 119)], dtype=torch.float64).float()
    up, down = (torch.nextafter(borders, torch.tensor(to)) for to in (math.inf, 0.0))
    x = torch.zeros(3 * len(borders), 32)
    x[:, 7] = -torch.cat([borders, up, down])
    _, codes = mxfp8(x)
    expected = torch.tensor([min(max(n + 127, 0), 254) for n in range(-134, 119)])
    at, above, below = codes[:, 0].int().chunk(3)
    assert torch.equal(at, expected.int())
    assert torch.equal(above, torch.tensor([min(max(n + 128, 0), 254) for n in range(-134, 119)]).int())
    assert torch.equal(below, expected.int())


def test_mxfp8_weights():
    packed = quantize_weight(hard_tensor(64), MXFP8)
    node = make_node(
        "TRT_MXFP8DequantizeLinear", ["q", "s"], ["y"], domain="trt", axis=-1, block_size=32, output_dtype=FLOAT
    )
    nodes = [make_node("Cast", ["w"], ["q"], to=E4M3), node]
    bodies = [BODIES["TRT_MXFP8DequantizeLinear"]]
    [y] = run(nodes, bodies, {"y": FLOAT}, w=packed["weight"].float(), s=packed["weight_scale"])
    assert torch.equal(y, dequantize_weight(packed, MXFP8))


def test_unpack_e2m1():
    """All 256 bytes, the low nibble first."""
    packed = torch.arange(256, dtype=torch.uint8).view(16, 16)
    nodes = [
        make_node("UnpackE2M1", ["packed"], ["values"], domain="sana_edge"),
        make_node("Cast", ["values"], ["y"], to=FLOAT),
    ]
    [y] = run(nodes, [UNPACK_E2M1], {"y": FLOAT}, packed=packed)
    assert torch.equal(y, decode_e2m1(packed))


def test_an_op_without_body_is_refused():
    node = ir.node("TRT_Mystery", [], domain="trt", num_outputs=1, name="mystery")
    model = ir.Model(ir.Graph([], [], nodes=[node], opset_imports={"": 23, "trt": 1}), ir_version=11)
    assert list(DefineTrtOps().requires(model)) == [
        "TRT_Mystery mystery is one of TRT_FP4DynamicQuantize, TRT_MXFP8DynamicQuantize, TRT_MXFP8DequantizeLinear"
    ]
