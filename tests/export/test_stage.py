"""The stages export and build on a tiny pipeline folder: what they leave, what they skip, what they refuse."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import onnxruntime
import pytest
from safetensors.torch import save_file
from sana_edge.export import check, engine, onnx_folder, stage
from sana_edge.export.inspect import layer_table
from sana_edge.export.stage import build, export_onnx
from sana_edge.quantize.quantize import quantize
from sana_edge.runtime.artefact import link_tree, read_manifest
from sana_edge.runtime.checkpoint import COMPONENTS, NANO, to_diffusers
from sana_edge.runtime.errors import ArtefactError, BackendError, FormatError, InputError, MissingExtraError
from sana_edge.runtime.formats import FORMATS
from sana_edge.runtime.linear_dit import LinearDiT
from sana_edge.runtime.shapes import VideoShape

from .conftest import CONFIG

VIDEO = VideoShape(9, 64, 96)
TINY = replace(CONFIG, caption_channels=192)
FILES = {"denoiser.onnx", "denoiser.onnx.data", "twin.onnx", "manifest.json", "model_index.json", "transformer"}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder of a tiny random transformer and nano's other components."""
    folder = tmp_path_factory.mktemp("tiny")
    for name in COMPONENTS:
        link_tree(NANO / name, folder / name)
    (folder / "model_index.json").write_bytes((NANO / "model_index.json").read_bytes())
    (folder / "transformer").mkdir()
    (folder / "transformer/config.json").write_text(json.dumps(asdict(TINY)))
    tensors = to_diffusers(LinearDiT(TINY).state_dict(), TINY)
    save_file(tensors, folder / "transformer/diffusion_pytorch_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def quantized(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint in mxfp8, which needs no calibration."""
    out = tmp_path_factory.mktemp("quantized") / "mxfp8"
    quantize(checkpoint, "mxfp8", None, out)
    return out


@pytest.fixture(scope="session")
def onnx(quantized: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "onnx"
    export_onnx(quantized, out, shape=VIDEO)
    return out


@pytest.fixture
def copied(onnx: Path, tmp_path: Path) -> Path:
    """An ONNX folder that a test may damage."""
    link_tree(onnx, tmp_path / "onnx")
    return tmp_path / "onnx"


def rewrite(path: Path, data: bytes) -> None:
    """Changes a file that is linked elsewhere too, here only."""
    path.unlink()
    path.write_bytes(data)


def test_onnx_folder(onnx: Path, quantized: Path):
    """A whole pipeline folder but for the weights; details tell layers, passes and the comparison with torch."""
    manifest = read_manifest(onnx, "export")
    assert FILES | set(COMPONENTS) <= {p.name for p in onnx.iterdir()} <= FILES | {*COMPONENTS, "sana_edge.json"}
    assert [p.name for p in (onnx / "transformer").iterdir()] == ["config.json"]
    details = manifest.details
    assert details["video"] == {"frames": 9, "height": 64, "width": 96}
    assert (details["batch"], details["text_tokens"], details["opset"]) == (2, 300, 23)
    assert details["formats"] == read_manifest(quantized).details["formats"]
    assert {n: layer["graph"] for n, layer in details["layers"].items()} == details["formats"]
    assert details["passes"]["QuantizeGemms"] == sum(f != "bf16" for f in details["formats"].values()) > 0
    assert manifest.inputs["checkpoint"] == read_manifest(quantized).digest

    assert details["twin_check"]["latents"] == details["latents"]
    results = details["twin_check"]["results"]
    assert [r["inputs"] for r in results] == ["random", "realistic"]
    assert all(0 < r["lockstep"] < 1e-4 and 0 <= r["worst_layer_error"] < 1e-4 for r in results)

    inputs = onnxruntime.InferenceSession(str(onnx / "twin.onnx")).get_inputs()
    latents = [2, *details["latents"]]
    assert {i.name: i.shape for i in inputs} == {
        "latents": latents,
        "timesteps": [2, latents[2]],
        "text": [2, 300, 192],
        "text_mask": [2, 300],
    }


def test_exporting_again_is_skipped(onnx: Path, quantized: Path):
    before = (onnx / "manifest.json").stat().st_mtime_ns
    assert export_onnx(quantized, onnx, shape=VIDEO) == read_manifest(onnx)
    assert (onnx / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="holds another artefact"):
        export_onnx(quantized, onnx, shape=VIDEO, batch=1)


def test_bundle_and_layer_table(onnx: Path, tmp_path: Path):
    """The bundle is the ONNX folder and its engines; the table follows each layer from wish to machine code."""
    pytest.importorskip("tensorrt_rtx")
    manifest = build(onnx, tmp_path / "bundle", targets=["rtx5090"])
    assert {p.name for p in (tmp_path / "bundle").iterdir()} == {p.name for p in onnx.iterdir()} | {"engines"}
    assert (onnx / "denoiser.onnx.data").samefile(tmp_path / "bundle/denoiser.onnx.data")
    assert read_manifest(onnx).stage == "export"
    info = manifest.details["engines"]["rtx5090"]
    assert info["compute_capability"] == "SM120" and info["bytes"] > 10**6 and info["version"]
    assert manifest.inputs["onnx"] == read_manifest(onnx).digest
    assert manifest.details["video"] == asdict(VIDEO)

    rows = {row.layer: row for row in layer_table(tmp_path / "bundle")}
    low, plain = rows["blocks.0.attn1.to_qkv"], rows["proj_out"]
    assert (low.asked, low.graph, low.network, low.compiled) == (
        "mxfp8",
        "mxfp8",
        {"rtx5090": "mxfp8"},
        {"rtx5090": "bf16"},
    )
    assert (plain.asked, plain.graph, plain.network) == ("bf16", "bf16", {"rtx5090": "bf16"})
    assert low.bytes == FORMATS["mxfp8"].weight_bytes(192, 64)
    assert [row.network for row in layer_table(onnx)] == [{}] * len(rows)

    with pytest.raises(ArtefactError, match="does not match its digest"):
        rewrite(tmp_path / "bundle/engines/rtx5090.engine", b"other")
        layer_table(tmp_path / "bundle")


def test_plain_checkpoint_exports_as_bf16(checkpoint: Path, tmp_path: Path):
    """No manifest above it: its files' digest names the parent. Batch 1 serves without guidance."""
    details = export_onnx(checkpoint, tmp_path / "onnx", shape=VIDEO, batch=1).details
    assert set(details["formats"].values()) == {"bf16"}
    assert details["batch"] == 1 and details["passes"]["QuantizeGemms"] == 0


def test_a_large_model_is_checked_at_a_small_size(quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where a forward takes a CPU too long, the same passes and the written weights are checked on a few tokens."""
    monkeypatch.setattr(onnx_folder, "CHECK_LIMIT", 1)
    details = export_onnx(quantized, tmp_path / "onnx", shape=VideoShape(17, 192, 192)).details
    checked = details["twin_check"]
    assert checked["latents"][1:] == [3, 8, 8] and details["latents"][1] > 3
    assert [r["inputs"] for r in checked["results"]] == ["random"]
    assert {p.name for p in (tmp_path / "onnx").glob("*.onnx*")} == {"denoiser.onnx", "denoiser.onnx.data", "twin.onnx"}


def test_a_twin_that_differs_leaves_nothing(quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(check, "TOLERANCE", 1e-12)
    with pytest.raises(BackendError, match="Twin differs from the torch model"):
        export_onnx(quantized, tmp_path / "onnx", shape=VIDEO)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("shape", "batch", "message"),
    [
        (VideoShape(9, 65, 96), 2, "height does not divide"),
        (VideoShape(10, 64, 96), 2, "frames does not divide"),
        (VIDEO, 0, "Batch out of range"),
    ],
)
def test_sizes_that_do_not_divide(shape: VideoShape, batch: int, message: str, quantized: Path, tmp_path: Path):
    with pytest.raises(InputError, match=message):
        export_onnx(quantized, tmp_path / "onnx", shape=shape, batch=batch)
    assert not any(tmp_path.iterdir())


def test_export_refuses_other_parents(onnx: Path, quantized: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"another stage[\s\S]*quantize[\s\S]*export"):
        export_onnx(onnx, tmp_path / "out", shape=VIDEO)
    damaged = tmp_path / "quantized"
    link_tree(quantized, damaged)
    weights = damaged / "transformer/diffusion_pytorch_model.safetensors"
    rewrite(weights, weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ArtefactError, match="does not match its digest"):
        export_onnx(damaged, tmp_path / "out", shape=VIDEO)
    assert not (tmp_path / "out").exists()


def test_build_refuses_a_changed_graph(copied: Path, tmp_path: Path):
    rewrite(copied / "denoiser.onnx", (copied / "denoiser.onnx").read_bytes() + b"\x00")
    with pytest.raises(ArtefactError, match=r"does not match its digest[\s\S]*denoiser\.onnx"):
        build(copied, tmp_path / "bundle", targets=["rtx5090"])


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        (["rtx5909"], InputError, r"Unknown target GPU[\s\S]*did you mean rtx5090"),
        (["rtx5090", "rtx4090"], FormatError, "RTX 4090 does not multiply mxfp8"),
        ([], InputError, "No target GPU"),
    ],
)
def test_build_refuses_targets(
    targets: list[str],
    error: type[Exception],
    message: str,
    onnx: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Before anything is compiled: the good target in front of a bad one costs nothing."""
    compiled: list[object] = []
    monkeypatch.setattr(stage, "engine_from_onnx", lambda *arguments: compiled.append(arguments))
    with pytest.raises(error, match=message):
        build(onnx, tmp_path / "bundle", targets=targets)
    assert not compiled and not any(tmp_path.iterdir())


def test_build_without_tensorrt(onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingExtraError, match="rtx"):
        build(onnx, tmp_path / "bundle", targets=["rtx5090"])
    assert not any(tmp_path.iterdir())


def test_an_interrupted_build_leaves_nothing(onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("tensorrt_rtx")

    def interrupt(job: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "_run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(onnx, tmp_path / "bundle", targets=["rtx5090"])
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("package", "error", "message"),
    [
        ("onnx", MissingExtraError, r"'onnx'[\s\S]*sana-edge\[export\]"),
        ("onnxscript", MissingExtraError, r"'onnxscript'[\s\S]*sana-edge\[export\]"),
        ("onnxruntime", BackendError, "pip install onnxruntime"),
    ],
)
def test_export_without_onnx(
    package: str, error: type[Exception], message: str, quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(error, match=message):
        export_onnx(quantized, tmp_path / "onnx", shape=VIDEO)


def test_layer_table_of_something_else(quantized: Path):
    with pytest.raises(InputError, match="no layer table"):
        layer_table(quantized)
