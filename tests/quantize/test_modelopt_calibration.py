"""ModelOpt's calibrated model against ours: same ranges, same weights, same outputs, for every format."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from sana_edge.quantize.modelopt_calibration import fake_quantize, read_scales
from sana_edge.quantize.recipe import Recipe, Rule, load_recipe
from sana_edge.runtime.errors import FormatError
from sana_edge.runtime.formats import E2M1_MAX, E4M3_MAX
from sana_edge.runtime.linear_dit import LinearDiT
from sana_edge.runtime.quantized_linear import QuantizedLinear, quantize_linears
from torch import nn

LOW = ["int8", "fp8", "mxfp8", "nvfp4"]
QKV = "blocks.0.attn1.to_qkv"
MIXED = Recipe(
    "mixed",
    "",
    "smoothquant",
    0.5,
    (
        Rule("blocks.*.attn1.to_qkv", "int8"),
        Rule("blocks.*.ff.conv_inverted", "nvfp4"),
        Rule("blocks.*.ff.conv_point", "fp8"),
        Rule("blocks.1.attn2.to_q", "mxfp8"),
    ),
)

Batch = tuple[torch.Tensor, ...]
NewModel = Callable[[], LinearDiT]


def recipe_of(name: str) -> Recipe:
    return MIXED if name == "mixed" else load_recipe(name)


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    return ((result - expected).norm() / expected.norm()).item()


def both_models(model: LinearDiT, recipe: Recipe, *batches: Batch) -> tuple[LinearDiT, LinearDiT]:
    """ModelOpt's fake-quantized copy of a model, and ours from the ranges that ModelOpt measured."""
    formats = recipe.assign(model)
    theirs = fake_quantize(copy.deepcopy(model), formats, recipe, lambda m: [m(*b) for b in batches])
    return theirs, quantize_linears(copy.deepcopy(model), formats, read_scales(theirs, formats))


def check_against_modelopt(theirs: LinearDiT, ours: LinearDiT, batch: Batch) -> None:
    """Every quantized layer on the same input, then the whole models.

    ModelOpt multiplies int8 and fp8 values by a reciprocal where the reference divides, so that a few values in a
    million round to the neighbour. One such step of 1/16 weighs up to a few thousandths of a layer this small, and it
    grows through the layers that follow; a wrong scale would be an error of a whole rounding, 1e-2 and more.
    """
    layers = {n: m for n, m in ours.named_modules() if isinstance(m, QuantizedLinear)}
    errors: dict[str, float] = {}
    for name, layer in layers.items():

        def compare(_: nn.Module, inputs: tuple, output: torch.Tensor, name: str = name, layer: nn.Module = layer):
            errors[name] = relative_error(layer(inputs[0]), output)

        theirs.get_submodule(name).register_forward_hook(compare)
    expected = theirs(*batch)
    assert errors.keys() == layers.keys() and max(errors.values()) <= 5e-3, errors
    assert relative_error(ours(*batch), expected) <= 5e-3


@pytest.mark.parametrize("name", [*LOW, "mixed"])
def test_outputs_equal_modelopts(name: str, batch: Batch, random_model: NewModel):
    model = random_model()
    theirs, ours = both_models(model, recipe_of(name), batch)
    check_against_modelopt(theirs, ours, batch)
    error = relative_error(ours(*batch), model(*batch))
    assert 1e-4 < error < {"int8": 0.02, "fp8": 0.1, "mxfp8": 0.1, "nvfp4": 0.4, "mixed": 0.4}[name]


@pytest.mark.parametrize("name", [*LOW, "mixed"])
def test_weights_equal_modelopts(name: str, batch: Batch, random_model: NewModel):
    """ModelOpt's fake-quantized weight of every layer, and its NVFP4 packer's, are our dequantized ones."""
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    model = random_model()
    theirs, ours = both_models(model, recipe_of(name), batch)
    layers = {n: m for n, m in ours.named_modules() if isinstance(m, QuantizedLinear)}
    assert layers
    for layer, module in layers.items():
        linear = theirs.get_submodule(layer)
        assert relative_error(module.dequantized_weight(), linear.weight_quantizer(linear.weight)) <= 1e-3
        if module.format.name == "nvfp4":
            packed, scale, scale_2 = NVFP4QTensor.quantize(linear.weight.clone(), 16)
            block = {-1: 16}
            restored = packed.dequantize(torch.float32, scale=scale, double_scale=scale_2, block_sizes=block)
            assert torch.equal(module.dequantized_weight(), restored)


@pytest.mark.parametrize("name", LOW)
def test_ranges_are_those_of_all_replayed_inputs(name: str, batch: Batch, random_model: NewModel):
    """Against a forward hook: the largest input of any batch, smoothed where SmoothQuant smooths."""
    model, second = random_model(), tuple(3 * t if i == 0 else t for i, t in enumerate(batch))
    seen: list[torch.Tensor] = []
    model.get_submodule(QKV).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(0, -2)))
    for each in (batch, second):
        model(*each)
    channels = torch.cat(seen).abs().amax(0)
    _, ours = both_models(model, recipe_of(name), batch, second)
    linear = ours.get_submodule(QKV)
    largest = {"int8": 127, "fp8": E4M3_MAX, "nvfp4": E2M1_MAX * E4M3_MAX}.get(name)
    if largest is None:
        assert linear.input_scale is None
    else:
        smoothed = channels * (linear.pre_quant_scale if name == "int8" else 1)
        assert linear.input_scale.item() == pytest.approx(smoothed.amax().item() / largest, rel=1e-5)
    if name == "int8":  # arXiv 2211.10438, equation 4, as the factor on the input
        weight = model.get_submodule(QKV).weight.abs().amax(0)
        assert torch.allclose(linear.pre_quant_scale, (weight**0.5 / channels**0.5).clamp(1e-4, 1e4), rtol=1e-4)


def test_smoothquant_helps_with_an_outlier_channel(batch: Batch, random_model: NewModel):
    model = random_model()
    for block in model.blocks:
        block.scale_shift_table[1, 5] += 50
    expected = model(*batch)
    smooth = load_recipe("int8")
    plain = Recipe("int8-max", "", "max", 0.5, smooth.layers)
    errors = [relative_error(both_models(model, r, batch)[1](*batch), expected) for r in (smooth, plain)]
    assert errors[0] < 0.7 * errors[1], errors


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_bad_weights_and_inputs_name_the_layer(bad: float, batch: Batch, random_model: NewModel):
    recipe = load_recipe("nvfp4")
    model = random_model()
    model.get_submodule("blocks.1.ff.conv_point").weight[3, 3] = bad
    with pytest.raises(FormatError, match=r"(?s)weight holds NaN or infinite.*blocks\.1\.ff\.conv_point"):
        both_models(model, recipe, batch)
    model = random_model()
    model.get_submodule("blocks.0.attn2.to_out").bias[0] = bad
    with pytest.raises(FormatError, match=r"(?s)input holds NaN or infinite.*blocks\.0\.ff\.conv_inverted"):
        both_models(model, recipe, batch)


def test_dead_layers_are_refused(batch: Batch, random_model: NewModel):
    recipe = load_recipe("fp8")
    model = random_model()
    model.get_submodule(QKV).weight.zero_()
    with pytest.raises(FormatError, match=r"(?s)weight is all zeros.*blocks\.0\.attn1\.to_qkv"):
        both_models(model, recipe, batch)
    model = random_model()
    model.get_submodule("blocks.1.ff.conv_depth").weight.zero_()
    model.get_submodule("blocks.1.ff.conv_depth").bias.zero_()
    with pytest.raises(FormatError, match=r"(?s)Input is zero.*blocks\.1\.ff\.conv_point"):
        both_models(model, recipe, batch)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("name", [*LOW[::-1], "mixed"])
def test_outputs_equal_modelopts_kernels(name: str, batch: Batch, random_model: NewModel):
    """On a GPU the fake quantization is ModelOpt's own, independent of the reference.

    Slow once: except for nvfp4 (Triton), ModelOpt compiles a CUDA extension at first use, a minute each.
    """
    batch = tuple(t.cuda() for t in batch)
    check_against_modelopt(*both_models(random_model().cuda(), recipe_of(name), batch), batch)
