"""Graph passes: what they leave, and that a broken contract is an error that names the pass and the place."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest
from onnx_ir import DataType
from sana_edge.export.graph import graph_from_model, trace
from sana_edge.export.passes import nvfp4, quantize_gemms
from sana_edge.export.passes.contract import GraphPass, run_passes
from sana_edge.export.passes.fold_shapes import FoldShapes
from sana_edge.export.passes.insertion import static_shape
from sana_edge.export.passes.linears_to_gemm import LinearsToGemm, find_gemms
from sana_edge.export.passes.quantize_gemms import QuantizeGemms
from sana_edge.export.passes.unpack_e2m1 import UnpackE2M1
from sana_edge.export.passes.widen_carrier import WidenCarrier
from sana_edge.export.precisions import graph_formats, layer_bytes
from sana_edge.runtime.errors import BackendError
from sana_edge.runtime.quantized_linear import QuantizedLinear

from .conftest import CONFIG, SHAPE, Exported, random_model

Export = Callable[[str], Exported]


def test_trace_and_cleaning():
    """Weights are one-element placeholders; nothing but computation on tensors is left; each Linear is one Gemm."""
    model = trace(CONFIG, SHAPE)
    weights = {n: v for n, v in model.graph.initializers.items() if not n.startswith("rope.")}
    assert {v.const_value.raw.untyped_storage().nbytes() for v in weights.values()} == {2}
    [folded, gemms] = run_passes(model, [FoldShapes(), LinearsToGemm()])
    assert (folded.name, gemms.name) == ("FoldShapes", "LinearsToGemm")
    assert folded.changed > 0 and gemms.changed == len(find_gemms(model.graph)) == 7 + 2 * 8
    assert not {"MatMul", "Identity", "Constant", "Shape", "SequenceAt"} & {n.op_type for n in model.graph}
    assert all(len(static_shape(v)) == 2 for gemm in find_gemms(model.graph).values() for v in gemm.inputs[:2])
    assert {"rope.cos", "rope.sin", *weights} <= set(model.graph.initializers)
    assert all(not node.metadata_props and not node.doc_string for node in model.graph)
    assert {v.name: v.dtype for v in (*model.graph.inputs, *model.graph.outputs)} == dict.fromkeys(
        ("latents", "timesteps", "text", "text_mask", "velocity"), DataType.FLOAT
    )


def test_engine_graph_carries_bf16_and_fp32_islands(exported: Export):
    model = ir.load(exported("nvfp4").graph)
    types = {
        name: {n.outputs[0].dtype for n in model.graph if n.op_type == name} for name in ("Gemm", "Attention", "Conv")
    }
    assert all(found == {DataType.BFLOAT16} for found in types.values())
    islands = {n.outputs[0].dtype for n in model.graph if n.op_type in ("Einsum", "LayerNormalization", "ReduceMean")}
    assert islands == {DataType.FLOAT}
    tables = {model.graph.initializers[name].dtype for name in ("rope.cos", "rope.sin")}
    assert tables == {DataType.FLOAT}


def test_layer_bytes(exported: Export):
    """A packed layer takes 4.5 bits a weight, its fp32 scales and its bf16 bias."""
    model = ir.load(exported("nvfp4").graph)
    rows, columns = 384, 64
    expected = rows * columns * 9 // 16 + 4 + 4 + 2 * rows
    assert layer_bytes(model, "blocks.0.ff.conv_inverted") == expected
    assert layer_bytes(model, "proj_out") == 2 * (64 * 64 + 64)


def test_a_layer_left_out_is_an_error(monkeypatch: pytest.MonkeyPatch):
    """A layer that the checkpoint quantizes and the graph does not is named."""
    original = quantize_gemms._quantize

    def skip_one(gemm: ir.Node, layer: QuantizedLinear) -> None:
        if gemm.name != "blocks.1.attn1.to_out":
            original(gemm, layer)

    monkeypatch.setattr(quantize_gemms, "_quantize", skip_one)
    with pytest.raises(BackendError, match=r"QuantizeGemms[\s\S]*blocks\.1\.attn1\.to_out is nvfp4 and not bf16"):
        graph_from_model(random_model("nvfp4")[0], SHAPE)


def test_a_half_quantized_layer_is_an_error(monkeypatch: pytest.MonkeyPatch):
    """A Gemm whose input skips the quantizer does not count as quantized."""
    monkeypatch.setattr(nvfp4, "quantize_input", lambda insertion, x, layer, carrier: x)
    with pytest.raises(BackendError, match="is nvfp4 and not mixed: bf16 input, float4e2m1 weight"):
        graph_from_model(random_model("nvfp4")[0], SHAPE)


def test_quantizing_an_unknown_layer_is_an_error():
    model, _ = random_model("fp8")
    layer = model.get_submodule("blocks.0.attn1.to_out")
    assert isinstance(layer, QuantizedLinear)
    with pytest.raises(BackendError, match=r"the quantized Linear blocks\.7\.attn1\.to_out is a Gemm"):
        run_passes(trace(CONFIG, SHAPE), [QuantizeGemms({"blocks.7.attn1.to_out": layer})])


def test_linear_that_is_not_recognised_is_an_error():
    """A Linear hidden behind another op is reported, not skipped."""
    model = trace(CONFIG, SHAPE)
    run_passes(model, [FoldShapes()])
    transpose = next(n for n in model.graph if n.op_type == "Transpose" and n.inputs[0].name == "proj_out.weight")
    node = ir.node("Neg", [transpose.inputs[0]])
    node.outputs[0].type, node.outputs[0].shape = transpose.inputs[0].type, transpose.inputs[0].shape
    model.graph.insert_before(transpose, node)
    transpose.replace_input_with(0, node.outputs[0])
    with pytest.raises(BackendError, match="the Linear proj_out is one Gemm"):
        run_passes(model, [LinearsToGemm()])


def test_twin_passes(exported: Export):
    """After WidenCarrier only stored weights are bf16; after UnpackE2M1 nothing is FP4 but activations."""
    model = ir.load(exported("nvfp4").graph)
    formats = graph_formats(model)
    [widened, unpacked] = run_passes(model, [WidenCarrier(), UnpackE2M1()])
    assert unpacked.changed == sum(f == "nvfp4" for f in formats.values()) == 16
    assert widened.changed > 100
    assert DataType.BFLOAT16 not in {v.dtype for n in model.graph for v in n.outputs}
    assert DataType.FLOAT4E2M1 not in {v.dtype for v in model.graph.initializers.values()}


class Vandal(GraphPass):
    """Breaks its own promise."""

    def apply(self, model: ir.Model) -> int:
        return 0

    def ensures(self, model: ir.Model):
        yield from (f"node {n} is painted" for n in range(7))


def test_broken_promise_names_pass_and_places():
    with pytest.raises(BackendError) as caught:
        run_passes(ir.Model(ir.Graph([], [], nodes=[]), ir_version=11), [Vandal()])
    assert "Vandal" in str(caught.value)
    assert "node 4 is painted; and 2 more" in str(caught.value)
