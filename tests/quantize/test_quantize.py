"""The quantize stage on a tiny checkpoint: what it writes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sana_edge.calibration_data.trajectories import calibrate, read_trajectories
from sana_edge.quantize import packed_checkpoint
from sana_edge.quantize.quantize import quantize
from sana_edge.quantize.recipe import load_recipe
from sana_edge.runtime.artefact import read_manifest
from sana_edge.runtime.checkpoint import COMPONENTS
from sana_edge.runtime.errors import ArtefactError, FormatError, InputError
from sana_edge.runtime.formats import FORMATS
from sana_edge.runtime.quantized_linear import QuantizedLinear, load_denoiser_model
from sana_edge.runtime.shapes import VideoShape

LOW = ["int8", "fp8", "mxfp8", "nvfp4"]
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def velocity_error(model: torch.nn.Module, calibration: Path) -> float:
    """Relative error of a model's velocities against the recorded reference, over all steps and halves."""
    noise = signal = 0.0
    for trajectory in read_trajectories(calibration):
        for batch, velocity in zip(trajectory.batches(), trajectory.velocity, strict=True):
            noise += (model(*batch) - velocity).square().sum().item()
            signal += velocity.square().sum().item()
    return (noise / signal) ** 0.5


@pytest.mark.parametrize("name", LOW)
def test_quantized_checkpoint(name: str, checkpoint: Path, calibration: Path, tmp_path: Path):
    """Layout on disk, quality of weights and velocities, and what the manifest says, for each packaged recipe."""
    out, progress = tmp_path / "quantized", []
    manifest = quantize(
        checkpoint, name, calibration, out, device="cpu", progress=lambda done, total: progress.append((done, total))
    )
    format, details = FORMATS[name], manifest.details
    assert progress == ([(n, 6) for n in range(1, 7)] if format.calibrated else [])
    assert {p.name for p in out.iterdir()} == {"manifest.json", "model_index.json", "transformer", *COMPONENTS}
    assert read_manifest(out, "quantize").digest == manifest.digest

    layers = json.loads((out / "transformer/hf_quant_config.json").read_text())["quantization"]["quantized_layers"]
    assert len(layers) == 2 * 8  # q, k, v, out; q, out; two convolutions
    assert layers["transformer_blocks.1.ff.conv_point"]["quant_algo"] == format.algorithm
    tensors = load_file(out / WEIGHTS)
    shapes = format.shapes(64, 64) | ({"pre_quant_scale": (64,)} if name == "int8" else {})
    key = "transformer_blocks.0.attn1.to_k"
    assert {n.removeprefix(f"{key}.") for n in tensors if n.startswith(f"{key}.")} == set(shapes)
    assert all(tensors[f"{key}.{n}"].shape == shape for n, shape in shapes.items())
    assert tensors["transformer_blocks.0.ff.conv_temp.weight"].shape == (64, 64, 3, 1)
    assert tensors["transformer_blocks.0.ff.conv_inverted.bias"].dtype == torch.bfloat16

    model = load_denoiser_model(out, torch.float32)
    quantized = {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLinear)}
    expected = load_recipe(name).assign(load_denoiser_model(checkpoint))
    assert details["formats"] == {n: f.name for n, f in expected.items()}
    assert {n: m.format for n, m in quantized.items()} == {n: f for n, f in expected.items() if f.quantized}
    sqnr = {n: layer["sqnr_db"] for n, layer in details["layers"].items()}
    low, high = {"int8": (30, 60), "fp8": (28, 36), "mxfp8": (28, 36), "nvfp4": (17, 24)}[name]
    assert sqnr.keys() == quantized.keys() and all(low < value < high for value in sqnr.values()), sqnr
    assert (
        sum(m.numel() * m.itemsize for m in quantized[key_of(key)].packed().values())
        == (details["layers"][key_of(key)]["bytes"])
    )
    bound = {"int8": 0.05, "fp8": 0.1, "mxfp8": 0.1, "nvfp4": 0.4}[name]
    assert 0 < velocity_error(model, calibration) < bound
    assert details["transformer_bytes"] < details["bf16_bytes"]


def key_of(diffusers_name: str) -> str:
    """The fused LinearDiT module that a self-attention projection belongs to."""
    return diffusers_name.replace("transformer_blocks", "blocks").replace("to_k", "to_qkv")


def test_bf16_recipe_is_the_checkpoint_in_bf16(checkpoint: Path, tmp_path: Path):
    manifest = quantize(checkpoint, "bf16", None, tmp_path / "out")
    assert manifest.details["layers"] == {} and not (tmp_path / "out/transformer/hf_quant_config.json").exists()
    ours, theirs = load_denoiser_model(tmp_path / "out").state_dict(), load_denoiser_model(checkpoint).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_same_inputs_are_not_quantized_again(checkpoint: Path, calibration: Path, tmp_path: Path):
    first = quantize(checkpoint, "nvfp4", calibration, tmp_path / "a", device="cpu")
    written = (tmp_path / "a" / WEIGHTS).stat().st_mtime_ns
    again = quantize(checkpoint, "nvfp4", calibration, tmp_path / "a", device="cpu")
    assert again.digest == first.digest
    assert (tmp_path / "a" / WEIGHTS).stat().st_mtime_ns == written
    second = quantize(checkpoint, "nvfp4", calibration, tmp_path / "b", device="cpu")
    assert second.payloads == first.payloads


def test_large_checkpoints_are_sharded(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    quantize(checkpoint, "mxfp8", None, tmp_path / "one", device="cpu")
    monkeypatch.setattr(packed_checkpoint, "SHARD_BYTES", 200_000)
    quantize(checkpoint, "mxfp8", None, tmp_path / "many", device="cpu")
    shards = sorted(p.name for p in (tmp_path / "many/transformer").glob("*.safetensors"))
    assert len(shards) > 1 and shards[0] == f"diffusion_pytorch_model-00001-of-{len(shards):05}.safetensors"
    one, many = (load_denoiser_model(tmp_path / n).state_dict() for n in ("one", "many"))
    assert all(torch.equal(one[name].view(torch.uint8), many[name].view(torch.uint8)) for name in one)


def test_foreign_calibration_is_refused(checkpoint: Path, calibration: Path, tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    tensors = load_file(other / WEIGHTS)
    tensors["proj_out.bias"] += 1
    save_file(tensors, other / WEIGHTS)
    with pytest.raises(InputError, match="another checkpoint"):
        quantize(other, "nvfp4", calibration, tmp_path / "out")
    with pytest.raises(InputError, match="needs a calibration"):
        quantize(checkpoint, "nvfp4", None, tmp_path / "out")
    with pytest.raises(InputError, match="Not an artefact"):
        quantize(checkpoint, "nvfp4", checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_small_a_calibration_is_refused(checkpoint: Path, tmp_path: Path):
    calibrate(checkpoint, tmp_path / "c", samples=1, steps=2, shape=VideoShape(9, 64, 96), guidance=3.0, device="cpu")
    with pytest.raises(InputError, match=r"(?s)too small.*at least 4 steps.*got: 2"):
        quantize(checkpoint, "fp8", tmp_path / "c", tmp_path / "out")


def test_truncated_trajectory_is_refused(checkpoint: Path, calibration: Path, tmp_path: Path):
    shutil.copytree(calibration, tmp_path / "c")
    path = tmp_path / "c" / "trajectory-0001.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ArtefactError, match=r"(?s)does not match its digest.*trajectory-0001"):
        quantize(checkpoint, "fp8", tmp_path / "c", tmp_path / "out")


def test_quantized_checkpoint_is_not_quantized_again(checkpoint: Path, calibration: Path, tmp_path: Path):
    quantize(checkpoint, "mxfp8", None, tmp_path / "q")
    with pytest.raises(InputError, match="quantized already"):
        quantize(tmp_path / "q", "fp8", calibration, tmp_path / "out")
    with pytest.raises(InputError, match="quantized already"):
        calibrate(tmp_path / "q", tmp_path / "out", samples=1)


@pytest.mark.parametrize(
    ("value", "message"), [(torch.nan, "NaN or infinite"), (torch.inf, "NaN or infinite"), (0.0, "all zeros")]
)
@pytest.mark.parametrize("layer", ["transformer_blocks.1.attn1.to_q", "transformer_blocks.0.ff.conv_temp"])
def test_bad_weights_are_refused(checkpoint: Path, tmp_path: Path, layer: str, value: float, message: str):
    """In a quantized layer and in one that stays bf16, where zeros are no error."""
    bad = tmp_path / "bad"
    shutil.copytree(checkpoint, bad)
    tensors = load_file(bad / WEIGHTS)
    for name in (layer, layer.replace("to_q", "to_k"), layer.replace("to_q", "to_v")):
        tensors[f"{name}.weight"][:] = value
    save_file(tensors, bad / WEIGHTS)
    if value == 0.0 and "conv_temp" in layer:
        quantize(bad, "mxfp8", None, tmp_path / "out")
        return
    named = layer.replace("transformer_blocks", "blocks").replace("to_q", "to_qkv") if "attn1" in layer else layer
    with pytest.raises(FormatError, match=f"(?s){message}.*{named}"):
        quantize(bad, "mxfp8", None, tmp_path / "out")
    assert not (tmp_path / "out").exists()
