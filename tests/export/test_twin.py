"""The exported graph and its twin against the torch model they were made from, in every format."""

from __future__ import annotations

import copy
from collections.abc import Callable

import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from sana_edge.export.check import check_graph, check_twin, relative_l2
from sana_edge.export.check_inputs import random_inputs
from sana_edge.export.onnx_folder import WEIGHTS
from sana_edge.export.precisions import graph_formats
from sana_edge.runtime.backends.static_shapes import INPUTS
from sana_edge.runtime.errors import BackendError
from sana_edge.runtime.linear_dit import LinearDiT
from sana_edge.runtime.quantized_linear import QuantizedLinear

from .conftest import CASES, SHAPE, Exported

Export = Callable[[str], Exported]


def fresh_inputs(model: LinearDiT) -> tuple[torch.Tensor, ...]:
    return random_inputs(model, SHAPE, seed=int(torch.randint(2**31, ()).item()))


def wide(model: LinearDiT) -> LinearDiT:
    """The fp32 copy of a model that the twin is compared with."""
    return copy.deepcopy(model).float()


@pytest.mark.parametrize("case", CASES)
def test_twin_computes_what_torch_computes(case: str, exported: Export):
    """Every layer's input and the output agree to fp32 rounding, and every Linear is in its format."""
    made = exported(case)
    for path in (made.graph, made.twin):
        check_graph(path)
    assert graph_formats(ir.load(made.graph)) == made.formats
    model = wide(made.model)
    for result in check_twin(made.twin, model, {"one": fresh_inputs(model), "two": fresh_inputs(model)}):
        assert result.lockstep < 2e-5, result
        assert result.worst_layer_error < 2e-5, result
        assert result.worst_layer or case == "bf16"


@pytest.mark.parametrize("case", CASES)
def test_twin_runs_in_plain_onnxruntime(case: str, exported: Export):
    """With onnxruntime's default optimizations, what differs from torch is at most borderline roundings."""
    made = exported(case)
    model = wide(made.model)
    inputs = fresh_inputs(model)
    session = onnxruntime.InferenceSession(str(made.twin), providers=["CPUExecutionProvider"])
    feed = {name: tensor.numpy() for name, tensor in zip(INPUTS, inputs, strict=True)}
    [velocity] = session.run(["velocity"], feed)
    assert relative_l2(torch.from_numpy(velocity), model(*inputs)) < (1e-4 if case == "bf16" else 2e-2)


@pytest.mark.parametrize("case", ["bf16", "nvfp4"])
def test_weights_are_stored_once(case: str, exported: Export):
    """The data file holds each packed tensor once; the twin adds no bytes of weights."""
    made = exported(case)
    tables = 2 * 3 * 4 * 4 * 16 * 4  # cosines and sines: tokens x half a head, fp32
    packed = sum(t.nbytes for t in made.model.state_dict().values())
    stored = (made.folder / WEIGHTS).stat().st_size
    assert stored <= packed + tables + 2**14
    twin = onnx.load(made.twin, load_external_data=False)
    locations = {entry.value for t in twin.graph.initializer for entry in t.external_data if entry.key == "location"}
    assert locations == {WEIGHTS}
    assert made.twin.stat().st_size < 200_000
    names = {t.name for t in onnx.load(made.graph, load_external_data=False).graph.initializer}
    assert set(made.model.state_dict()) <= names


def test_fp4_weights_by_an_independent_evaluator(exported: Export):
    """onnx's own DequantizeLinear on the stored FLOAT4E2M1 bytes gives the weights that torch multiplies."""
    made = exported("nvfp4")
    graph = onnx.load(made.graph)
    name = "blocks.1.ff.conv_inverted"
    layer = made.model.get_submodule(name)
    assert isinstance(layer, QuantizedLinear)
    nodes = [n for n in graph.graph.node if n.name.startswith(f"{name}/dequantize_weight") and n.op_type != "Cast"]
    tensors = [t for t in graph.graph.initializer if t.name.startswith(f"{name}.weight")]
    output = onnx.helper.make_tensor_value_info(nodes[-1].output[0], onnx.TensorProto.FLOAT, None)
    part = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "weight", [], [output], tensors), opset_imports=graph.opset_import
    )
    [weight] = ReferenceEvaluator(part).run(None, {})
    assert len(nodes) == 2
    assert torch.equal(torch.from_numpy(weight), layer.dequantized_weight())


@pytest.mark.parametrize("tensor", ["input_scale", "weight_scale_2", "bias"])
def test_check_sees_a_wrong_tensor(tensor: str, exported: Export):
    """A layer whose tensor is off by a percent fails the check, though it hardly moves the output."""
    made = exported("nvfp4")
    model = wide(made.model)
    layer = model.get_submodule("blocks.0.ff.conv_inverted")
    getattr(layer, tensor).mul_(1.01)
    with pytest.raises(BackendError, match=r"Twin differs[\s\S]*random inputs[\s\S]*blocks\."):
        check_twin(made.twin, model, {"random": fresh_inputs(model)})


def test_nan_fails_the_check(exported: Export):
    made = exported("bf16")
    model = wide(made.model)
    latents, *rest = fresh_inputs(model)
    latents[0, 0, 0, 0, 0] = torch.nan
    with pytest.raises(BackendError, match="nan at the output"):
        check_twin(made.twin, model, {"random": (latents, *rest)})
