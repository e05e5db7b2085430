"""Quantized Linears and the loading of quantized checkpoints: against dequantized matmuls and damaged files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sana_edge.runtime.checkpoint import to_diffusers
from sana_edge.runtime.errors import ArtefactError, FormatError
from sana_edge.runtime.formats import FORMATS, Format, dequantize_weight, quantize_weight
from sana_edge.runtime.linear_dit import DiTConfig, LinearDiT
from sana_edge.runtime.quantized_linear import InputScales, QuantizedLinear, load_denoiser_model, quantize_linears
from torch import nn

CONFIG = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "num_layers": 1,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 32,
    "caption_channels": 32,
    "mlp_ratio": 3.0,
    "patch_size": [1, 2, 2],
}
QKV = ("to_q", "to_k", "to_v")
LOW = ["int8", "fp8", "mxfp8", "nvfp4"]


def scales_for(format: Format, columns: int) -> InputScales:
    """Scales of a unit normal input, and a SmoothQuant factor for int8."""
    smooth = torch.rand(columns) + 0.5 if format.name == "int8" else None
    largest = {"int8": 127.0, "fp8": 448.0, "nvfp4": 2688.0}.get(format.name)
    return InputScales(None if largest is None else torch.tensor(6.0 / largest), smooth)


def inputs() -> tuple[torch.Tensor, ...]:
    return torch.randn(2, 4, 3, 4, 4), torch.tensor([900.0, 30.0]), torch.randn(2, 7, 32), torch.ones(2, 7)


@pytest.fixture(params=LOW)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, LinearDiT]:
    """A folder in the quantized layout, written here tensor by tensor, and the same model quantized in memory."""
    format = FORMATS[request.param]
    model = LinearDiT(DiTConfig.from_diffusers(CONFIG)).requires_grad_(False)
    tensors = to_diffusers(model.state_dict(), model.config)
    layers: dict[str, Format] = {"blocks.0.attn1.to_qkv": format, "blocks.0.ff.conv_point": format}
    scales = {name: scales_for(format, model.get_submodule(name).in_features) for name in layers}
    quantize_linears(model, layers, scales)
    folder = tmp_path / "transformer"
    folder.mkdir()
    on_disk = {
        "blocks.0.attn1.to_qkv": [f"transformer_blocks.0.attn1.{p}" for p in QKV],
        "blocks.0.ff.conv_point": ["transformer_blocks.0.ff.conv_point"],
    }
    for name, modules in on_disk.items():
        packed = model.get_submodule(name).packed()
        for index, module in enumerate(modules):
            for tensor, value in packed.items():
                by_rows = tensor == "weight" or (tensor == "weight_scale" and value.ndim)
                tensors[f"{module}.{tensor}"] = (value.chunk(len(modules))[index] if by_rows else value).clone()
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    entry = {"quant_algo": format.algorithm} | ({"group_size": format.block} if format.block else {})
    quantized = {m: entry for modules in on_disk.values() for m in modules}
    quantization = {"quant_algo": "MIXED_PRECISION", "quantized_layers": quantized}
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": quantization}))
    return tmp_path, model


def edit_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path) | changes
    save_file({k: v for k, v in tensors.items() if v is not None}, path)


def edit_layers(folder: Path, changes: dict[str, object]) -> None:
    path = folder / "transformer" / "hf_quant_config.json"
    config = json.loads(path.read_text())
    layers = config["quantization"]["quantized_layers"] | changes
    config["quantization"]["quantized_layers"] = {k: v for k, v in layers.items() if v is not None}
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("name", LOW)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_is_near_the_dequantized_linear(name: str, dtype: torch.dtype):
    """With the weight error taken out, what is left is the error of the activations."""
    linear = nn.Linear(96, 40).to(dtype)
    scales = scales_for(FORMATS[name], 96)
    quantized = QuantizedLinear.from_linear(linear, FORMATS[name], scales)
    x = torch.randn(3, 5, 96, dtype=dtype)
    smoothed = x.float() * (1 if scales.pre_quant_scale is None else scales.pre_quant_scale)
    expected = smoothed @ quantized.dequantized_weight().T + linear.bias.float()
    result = quantized(x)
    bound = {"int8": 0.05, "fp8": 0.05, "mxfp8": 0.05, "nvfp4": 0.2}[name]
    assert result.dtype == dtype
    assert 0 < (result.float() - expected).norm() / expected.norm() < bound
    weight = quantized.dequantized_weight() * (1 if scales.pre_quant_scale is None else scales.pre_quant_scale)
    assert (weight - linear.weight.float()).norm() / linear.weight.float().norm() < bound


@pytest.mark.parametrize("name", LOW)
def test_casts_and_copies_keep_the_packed_bits(name: str):
    linear = QuantizedLinear.from_linear(nn.Linear(64, 32), FORMATS[name], scales_for(FORMATS[name], 64))
    before = {n: t.clone() for n, t in linear.packed().items()}
    linear(torch.randn(2, 64))
    linear.to(torch.bfloat16).double().to("cpu")
    assert linear.bias.dtype == torch.float64
    for tensor, value in linear.packed().items():
        assert value.dtype == before[tensor].dtype
        assert torch.equal(value.flatten().view(torch.uint8), before[tensor].flatten().view(torch.uint8))
    assert set(linear.state_dict()) == {*before, "bias"}


def test_the_kept_weight_follows_dtype_and_option():
    linear = QuantizedLinear.from_linear(nn.Linear(64, 32), FORMATS["mxfp8"])
    x = torch.randn(2, 64)
    first, low = linear(x), linear(x.bfloat16())
    assert torch.equal(linear(x), first) and low.dtype == torch.bfloat16
    linear.keep_dequantized = False
    assert torch.equal(linear(x), first) and linear._dequantized is None


def test_nan_input_names_the_layer():
    linear = QuantizedLinear.from_linear(nn.Linear(64, 32), FORMATS["mxfp8"], name="blocks.1.attn1.to_out")
    with pytest.raises(FormatError, match=r"blocks\.1\.attn1\.to_out"):
        linear(torch.full((1, 64), torch.nan))


def test_loaded_checkpoint_equals_the_model_in_memory(checkpoint: tuple[Path, LinearDiT]):
    folder, model = checkpoint
    loaded = load_denoiser_model(folder, dtype=torch.float32)
    assert isinstance(loaded.blocks[0].attn1.to_qkv, QuantizedLinear)
    batch = inputs()
    assert torch.equal(loaded(*batch), model(*batch))
    assert load_denoiser_model(folder)(*batch).dtype == torch.bfloat16


def test_plain_checkpoint_loads_without_quantized_layers(tmp_path: Path):
    model = LinearDiT(DiTConfig.from_diffusers(CONFIG))
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer/config.json").write_text(json.dumps(CONFIG))
    tensors = to_diffusers(model.state_dict(), model.config)
    save_file(tensors, tmp_path / "transformer/diffusion_pytorch_model.safetensors")
    batch = inputs()
    assert torch.equal(load_denoiser_model(tmp_path, torch.float32)(*batch), model(*batch))
    packed = {"transformer_blocks.0.attn1.to_q.weight": torch.zeros(64, 64).to(torch.float8_e4m3fn)}
    edit_tensors(tmp_path, **packed)
    with pytest.raises(ArtefactError, match=r"(?s)packed.*to_q\.weight"):
        load_denoiser_model(tmp_path)


def test_unknown_layer_and_algorithm_are_refused(checkpoint: tuple[Path, LinearDiT]):
    folder, _ = checkpoint
    edit_layers(folder, {"transformer_blocks.0.attn1.to_w": {"quant_algo": "FP8"}})
    with pytest.raises(ArtefactError, match=r"(?s)Unknown quantized layer.*attn1\.to_q"):
        load_denoiser_model(folder)
    edit_layers(
        folder, {"transformer_blocks.0.attn1.to_w": None, "transformer_blocks.0.attn1.to_q": {"quant_algo": "W4"}}
    )
    with pytest.raises(ArtefactError, match=r"(?s)Unknown quantization.*NVFP4"):
        load_denoiser_model(folder)


def test_fused_parts_of_different_formats_are_refused(checkpoint: tuple[Path, LinearDiT]):
    folder, _ = checkpoint
    edit_layers(folder, {"transformer_blocks.0.attn1.to_v": None})
    with pytest.raises(ArtefactError, match=r"(?s)differ in format.*to_v.*bf16"):
        load_denoiser_model(folder)


def test_damaged_tensors_are_refused(checkpoint: tuple[Path, LinearDiT]):
    folder, _ = checkpoint
    scale = "transformer_blocks.0.attn1.to_k.weight_scale"
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    whole = path.read_bytes()
    edit_tensors(folder, **{scale: None})
    with pytest.raises(ArtefactError, match=r"(?s)missing.*to_k\.weight_scale"):
        load_denoiser_model(folder)
    edit_tensors(folder, **{scale: torch.ones(3, dtype=torch.float64)})
    with pytest.raises(ArtefactError, match=r"(?s)to_k\.weight_scale.*expected.*got: \[3\] of torch\.float64"):
        load_denoiser_model(folder)
    path.write_bytes(whole[:-100])
    with pytest.raises(ArtefactError, match="cannot be read"):
        load_denoiser_model(folder)


@pytest.mark.parametrize("checkpoint", ["fp8", "nvfp4"], indirect=True)
def test_parts_with_other_tensor_scales_fuse_exactly_or_not_at_all(checkpoint: tuple[Path, LinearDiT]):
    folder, model = checkpoint
    format = model.blocks[0].attn1.to_qkv.format
    name = "weight_scale_2" if format.block else "weight_scale"
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    key, carrier = "transformer_blocks.0.attn1.to_v", "weight_scale" if format.block else "weight"
    tensors = load_file(path)
    value, scale = tensors[f"{key}.{carrier}"].float(), tensors[f"{key}.{name}"]
    value = torch.where(value.abs() < 2**-5, 0.0, value).clamp(-224, 224)  # room for a factor of two both ways
    for factor in (1.0, 2.0):
        edit_tensors(folder, **{f"{key}.{carrier}": (value * factor).to(torch.float8_e4m3fn)})
        edit_tensors(folder, **{f"{key}.{name}": scale / factor})
        loaded = load_denoiser_model(folder, torch.float32).blocks[0].attn1.to_qkv
        if factor == 1.0:
            expected = loaded.dequantized_weight()
    assert torch.equal(loaded.dequantized_weight(), expected)
    edit_tensors(folder, **{f"{key}.{name}": scale / 3})
    with pytest.raises(ArtefactError, match=f"differ in {name}"):
        load_denoiser_model(folder)
    edit_tensors(folder, **{f"{key}.{name}": scale, f"{key}.input_scale": torch.tensor(7.0)})
    with pytest.raises(ArtefactError, match="differ in input_scale"):
        load_denoiser_model(folder)


def test_packed_weight_is_that_of_the_reference():
    linear = nn.Linear(64, 32)
    quantized = QuantizedLinear.from_linear(linear, FORMATS["nvfp4"], InputScales(torch.tensor(1.0)))
    expected = dequantize_weight(quantize_weight(linear.weight.detach(), FORMATS["nvfp4"]), FORMATS["nvfp4"])
    assert torch.equal(quantized.dequantized_weight(), expected)
    assert (quantized.in_features, quantized.out_features) == (64, 32)
