"""The number formats against hand-computed values, an exhaustive enumeration, and ModelOpt's own packers."""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import pairwise

import pytest
import torch
from sana_edge.runtime.errors import FormatError, InputError
from sana_edge.runtime.formats import (
    FORMATS,
    decode_e2m1,
    decode_e8m0,
    dequantize_weight,
    encode_e2m1,
    encode_e8m0,
    find_format,
    quantize_dequantize_activation,
    quantize_weight,
    round_e2m1,
    round_e4m3,
)

NVFP4, MXFP8, FP8, INT8 = (FORMATS[name] for name in ("nvfp4", "mxfp8", "fp8", "int8"))


def e4m3_values() -> list[float]:
    """All finite non-negative E4M3 values, from the format's definition: bias 7, subnormals, no infinities."""
    values = [m / 8 * 2.0**-6 for m in range(8)]
    values += [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8)]
    return values[:-1]


def nearest_even(x: float, values: list[float]) -> float:
    """Round to nearest in a table whose even positions have an even mantissa; saturates."""
    magnitude = abs(x)
    above = min(bisect_left(values, magnitude), len(values) - 1)
    below = max(above - 1, 0)
    gap = (magnitude - values[below]) - (values[above] - magnitude)
    index = above if gap > 0 or (gap == 0 and above % 2 == 0) else below
    return math.copysign(values[index], x)


def test_e2m1_rounds_to_nearest_even():
    ties = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]
    assert round_e2m1(torch.tensor(ties)).tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]
    beyond = torch.tensor([6.0, 6.1, 1e30, -7.0, 0.2500001, -0.2499999])
    assert round_e2m1(beyond).tolist() == [6.0, 6.0, 6.0, -6.0, 0.5, 0.0]
    x = torch.randn(4096) * 3
    values = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    assert round_e2m1(x).tolist() == [nearest_even(v, values) for v in x.tolist()]


def test_e4m3_rounds_to_nearest_even_and_saturates():
    values = e4m3_values()
    assert values[-1] == 448.0 and values[1] == 2.0**-9
    halves = [(a + b) / 2 for a, b in pairwise(values)]
    x = torch.tensor([*values, *halves, 460.0, 464.0, 500.0, 1e30, *(torch.randn(4096) * 100).tolist()])
    for sign in (1, -1):
        assert round_e4m3(sign * x).float().tolist() == [nearest_even(v, values) for v in (sign * x).tolist()]


def test_e2m1_packs_even_k_in_the_low_nibble():
    values = torch.tensor([[0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0, 0.0]])
    packed = encode_e2m1(values)
    assert packed.tolist() == [[0x10, 0x32, 0x54, 0x76, 0xA9, 0xCB, 0xED, 0x0F]]
    assert torch.equal(decode_e2m1(packed), values)


def test_e8m0_covers_every_exponent_and_rounds_up():
    codes = torch.arange(255, dtype=torch.uint8)
    assert decode_e8m0(codes).tolist() == [2.0 ** (c - 127) for c in range(255)]
    above = torch.nextafter(torch.tensor(448.0), torch.tensor(1e9)).item()
    amax = torch.tensor([448.0, above, 896.0, 1.75, 1.0, 2.0**-149, 0.0, torch.finfo(torch.float32).max])
    assert (encode_e8m0(amax).int() - 127).tolist() == [0, 1, 1, -8, -8, -127, -127, 120]


def test_nvfp4_weight_by_hand():
    """amax 2688 = 6 * 448 makes the tensor scale 1, so the block scales are amax / 6 rounded to E4M3."""
    weight = torch.zeros(1, 64)
    weight[0, :4] = torch.tensor([2688.0, -224.0, 112.0, 672.0])  # scale 448: 6, -0.5, 0.25 -> 0 (even), 1.5
    weight[0, 16:19] = torch.tensor([6.3, 5.25, -1.3])  # amax / 6 = 1.05 -> 1.0: 6, 6 (5.25 > 5), -1.5 (1.3 > 1.25)
    weight[0, 32:34] = torch.tensor([1e-6, 0.0])  # far below the smallest scale, which is kept: 2^-9
    packed = quantize_weight(weight, NVFP4)
    assert packed["weight_scale_2"].item() == 1.0
    assert packed["weight_scale"].float().tolist() == [[448.0, 1.0, 2.0**-9, 1.0]]
    expected = torch.zeros(1, 64)
    expected[0, :4] = torch.tensor([2688.0, -224.0, 0.0, 672.0])
    expected[0, 16:19] = torch.tensor([6.0, 6.0, -1.5])
    assert torch.equal(dequantize_weight(packed, NVFP4), expected)
    assert packed["weight"].shape == (1, 32) and packed["weight"][0, :2].tolist() == [0x97, 0x30]


def test_mxfp8_weight_by_hand():
    weight = torch.zeros(1, 96)
    weight[0, :3] = torch.tensor([448.0, 17.0, -19.0])  # scale 1; 17 and 19 tie between 16, 18 and 20
    weight[0, 32:34] = torch.tensor([449.0, 3.0])  # scale 2: 224.5 -> 224, 1.5
    packed = quantize_weight(weight, MXFP8)
    assert packed["weight_scale"].tolist() == [[127, 128, 0]]
    expected = torch.zeros(1, 96)
    expected[0, :3] = torch.tensor([448.0, 16.0, -20.0])
    expected[0, 32:34] = torch.tensor([448.0, 3.0])
    assert torch.equal(dequantize_weight(packed, MXFP8), expected)


def test_int8_and_fp8_weights_by_hand():
    weight = torch.tensor([[127.0, 0.5, -1.5], [-254.0, 5.0, 0.0], [0.0, 0.0, 0.0]])
    packed = quantize_weight(weight, INT8)
    assert packed["weight"].tolist() == [[127, 0, -2], [-127, 2, 0], [0, 0, 0]]
    assert packed["weight_scale"].tolist() == [1.0, 2.0, 1.0]
    packed = quantize_weight(torch.tensor([[896.0, 34.0, -38.0]]), FP8)
    assert packed["weight_scale"].item() == 2.0
    assert packed["weight"].float().tolist() == [[448.0, 16.0, -20.0]]


def test_activations_by_hand():
    x = torch.zeros(2, 32)
    x[0, :2] = torch.tensor([300.0, -0.5])
    assert quantize_dequantize_activation(x, INT8, torch.tensor(1.0))[0, :2].tolist() == [127.0, 0.0]
    assert quantize_dequantize_activation(x, FP8, torch.tensor(0.5))[0, :2].tolist() == [224.0, -0.5]
    x[0, 16] = 6e-4  # its scale 1e-4 rounds to zero in E4M3, and the block with it
    x[1, 0] = 9000.0  # beyond the calibrated range: the scale saturates at 448
    result = quantize_dequantize_activation(x, NVFP4, torch.tensor(1.0))
    assert result[0, :2].tolist() == [288.0, 0.0]  # 300 / 6 = 50 ties between 48 and 52: 48 is even; 6.25 -> 6
    assert result[0, 16].item() == 0.0
    assert result[1, 0].item() == 2688.0


@pytest.mark.parametrize("name", ["nvfp4", "mxfp8", "fp8", "int8"])
@pytest.mark.parametrize("magnitude", [1e-30, 1.0, 1e30])
def test_tiny_huge_and_zero_blocks_stay_finite(name: str, magnitude: float):
    weight = torch.randn(8, 64) * magnitude
    weight[1] = 0
    weight[2, :32] *= 1e-7
    format = FORMATS[name]
    packed = quantize_weight(weight, format)
    restored = dequantize_weight(packed, format)
    assert torch.isfinite(restored).all() and (restored[1] == 0).all()
    assert {n: (t.dtype, tuple(t.shape)) for n, t in packed.items()} == {
        n: (format.tensors[n], format.shapes(8, 64)[n]) for n in packed
    }
    bound = {"nvfp4": 0.2, "mxfp8": 0.07, "fp8": 0.07, "int8": 0.01}[name]
    assert (restored - weight).abs().max() <= bound * weight.abs().max()
    zeros = quantize_weight(torch.zeros(8, 64), format)
    assert (dequantize_weight(zeros, format) == 0).all()


@pytest.mark.parametrize("name", FORMATS)
def test_weight_bytes_are_those_of_the_packed_tensors(name: str):
    format = FORMATS[name]
    packed = quantize_weight(torch.randn(32, 96), format)
    scale = {"input_scale": torch.tensor(1.0)} if format.calibrated else {}
    assert format.weight_bytes(32, 96) == sum(t.nbytes for t in (packed | scale).values())


@pytest.mark.parametrize(("name", "columns"), [("nvfp4", 40), ("mxfp8", 48)])
def test_partial_blocks_are_refused(name: str, columns: int):
    with pytest.raises(FormatError, match="not divisible") as error:
        quantize_weight(torch.randn(4, columns), FORMATS[name], layer="blocks.3.attn1.to_out")
    assert error.value.where == "blocks.3.attn1.to_out" and f"K = {columns}" in str(error.value)
    with pytest.raises(FormatError, match="not divisible"):
        quantize_dequantize_activation(torch.randn(4, columns), FORMATS[name], torch.tensor(1.0))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_are_refused(name: str, bad: float):
    x = torch.randn(4, 64)
    x[2, 5] = bad
    with pytest.raises(FormatError, match="NaN or infinite"):
        quantize_weight(x, FORMATS[name])
    with pytest.raises(FormatError, match="NaN or infinite"):
        quantize_dequantize_activation(x, FORMATS[name], torch.tensor(1.0))


def test_missing_input_scale_and_unknown_format_are_refused():
    with pytest.raises(FormatError, match="calibrated input scale"):
        quantize_dequantize_activation(torch.randn(2, 64), NVFP4)
    with pytest.raises(InputError, match="nvfp4"):
        find_format("nvfp3")


def spread(rows: int, columns: int) -> torch.Tensor:
    """Random values whose blocks differ by many orders of magnitude, with exact zeros and bf16-representable ties."""
    x = torch.randn(rows, columns) * torch.exp2(torch.randint(-12, 6, (rows, columns // 16)).repeat_interleave(16, 1))
    x[torch.rand_like(x) < 0.05] = 0
    return torch.where(torch.rand_like(x) < 0.5, x.bfloat16().float(), x)


def test_nvfp4_packs_the_bytes_of_modelopt():
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    weight = spread(96, 256)
    packed = quantize_weight(weight, NVFP4)
    theirs, scale, scale_2 = NVFP4QTensor.quantize(weight.clone(), 16)
    assert torch.equal(packed["weight_scale_2"], scale_2)
    assert torch.equal(packed["weight_scale"].view(torch.uint8), scale.view(torch.uint8))
    assert torch.equal(packed["weight"], theirs._quantized_data)
    restored = theirs.dequantize(torch.float32, scale=scale, double_scale=scale_2, block_sizes={-1: 16})
    assert torch.equal(dequantize_weight(packed, NVFP4), restored)


def test_mxfp8_packs_the_bytes_of_modelopt():
    from modelopt.torch.quantization.qtensor import MXFP8QTensor

    weight = spread(96, 256)
    packed = quantize_weight(weight, MXFP8)
    theirs, scale = MXFP8QTensor.quantize(weight)
    assert torch.equal(packed["weight_scale"], scale)
    assert torch.equal(packed["weight"].view(torch.uint8), theirs._quantized_data.view(torch.uint8))
    assert torch.equal(dequantize_weight(packed, MXFP8), theirs.dequantize(torch.float32, scale=scale))


def test_fp8_packs_the_bytes_of_modelopt():
    from modelopt.torch.quantization.qtensor import FP8QTensor

    weight = spread(96, 256)
    packed = quantize_weight(weight, FP8)
    theirs, scale = FP8QTensor.quantize(weight)
    assert torch.equal(packed["weight_scale"], scale.squeeze())
    assert torch.equal(packed["weight"].view(torch.uint8), theirs._quantized_data.view(torch.uint8))


def test_int8_packs_the_bytes_of_modelopt():
    from modelopt.torch.quantization.qtensor import INT8QTensor

    weight = spread(96, 256)
    packed = quantize_weight(weight, INT8)
    theirs, scale = INT8QTensor.quantize(weight, axis=0)
    assert torch.equal(packed["weight_scale"], scale.flatten())
    assert torch.equal(packed["weight"], theirs._quantized_data)


@pytest.mark.gpu
@pytest.mark.parametrize("tiny", [1.0, 1e-6])
def test_nvfp4_activations_equal_modelopts_kernel(tiny: float):
    """Bit for bit against ModelOpt's Triton kernel, also where a block is too small for a scale and becomes zero."""
    from modelopt.torch.quantization import tensor_quant

    x = torch.randn(256, 1024, device="cuda") * torch.exp2(torch.randint(-4, 5, (256, 1), device="cuda"))
    amax = x.abs().amax()
    x[:, :16] *= tiny
    theirs = tensor_quant.dynamic_block_quantize_op(x, 16, amax, 4, 2, 8, 4)
    assert torch.equal(quantize_dequantize_activation(x, NVFP4, amax / (6 * 448)), theirs)


@pytest.mark.gpu
@pytest.mark.slow
def test_mxfp8_activations_equal_modelopts_kernel():
    """Bit for bit against ModelOpt's CUDA extension, which it compiles at first use (a minute)."""
    from modelopt.torch.quantization import tensor_quant

    x = spread(256, 1024).cuda()
    theirs = tensor_quant.dynamic_block_quant(x, 32, None, None, (4, 3), (8, 0))
    assert torch.equal(quantize_dequantize_activation(x, MXFP8), theirs)
