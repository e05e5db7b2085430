"""Every way to make a denoiser gives the same velocity, and says what ran or why it cannot."""

import logging
import shutil

import pytest
import torch
from sana_edge.runtime.artefact import Manifest, link_tree, run_stage
from sana_edge.runtime.backends import choose_backend, open_denoiser
from sana_edge.runtime.backends.tensorrt_rtx_backend import TensorRtRtxDenoiser, choose_engine
from sana_edge.runtime.errors import ArtefactError, BackendError, InputError
from sana_edge.runtime.quantized_linear import load_denoiser_model

LATENTS = (4, 3, 8, 12)
VIDEO = {"frames": 9, "height": 64, "width": 96}
ENGINES = {"rtx4090": {"compute_capability": "SM89"}, "rtx5090": {"compute_capability": "SM120"}}
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="describes a machine without a GPU")


def export_twin(checkpoint, folder, batch):
    """LinearDiT as an fp32 graph, straight from torch's exporter."""
    model = load_denoiser_model(checkpoint, dtype=torch.float32)
    inputs = (torch.randn(batch, *LATENTS), torch.rand(batch, 3), torch.randn(batch, 300, 32), torch.ones(batch, 300))
    names = ["latents", "timesteps", "text", "text_mask"]
    torch.onnx.export(
        model, inputs, folder / "twin.onnx", input_names=names, output_names=["velocity"], dynamo=True, opset_version=20
    )
    link_tree(checkpoint / "transformer", folder / "transformer")


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    """ONNX folders of batch 2 and 1."""
    root = tmp_path_factory.mktemp("exported")

    def make(batch):
        def produce(folder):
            export_twin(checkpoint, folder, batch)
            return {"video": VIDEO, "batch": batch}

        return produce

    for batch in (1, 2):
        run_stage(root / str(batch), "export", {"batch": batch}, make(batch))
    return root


@pytest.fixture
def bundle(exported, tmp_path):
    """A bundle with the twin and two engine files (of no content)."""

    def produce(folder):
        shutil.copy(exported / "2" / "twin.onnx", folder)
        for extra in (exported / "2").glob("twin.onnx.*"):
            shutil.copy(extra, folder)
        (folder / "engines").mkdir()
        for target in ENGINES:
            (folder / "engines" / f"{target}.engine").write_bytes(b"engine of " + target.encode())
        return {"video": VIDEO, "engines": ENGINES}

    run_stage(tmp_path / "bundle", "build", {}, produce)
    return tmp_path / "bundle"


def inputs(batch):
    mask = (torch.arange(300) < torch.tensor([[40], [300]])[:batch]).float()
    return torch.randn(batch, *LATENTS), torch.rand(batch) * 1000, torch.randn(batch, 300, 32), mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_computes_what_diffusers_computes(checkpoint, dtype):
    from diffusers import SanaVideoTransformer3DModel

    latents, timesteps, text, mask = inputs(2)
    upstream = SanaVideoTransformer3DModel.from_pretrained(checkpoint / "transformer")
    with torch.no_grad():
        expected = upstream(latents, text, timesteps, encoder_attention_mask=mask).sample
    denoiser = open_denoiser(checkpoint, device="cpu", dtype=dtype)
    velocity = denoiser(latents, timesteps, text, mask).float()
    assert (velocity - expected).norm() / expected.norm() < (1e-5 if dtype == torch.float32 else 0.03)
    assert denoiser.name == f"torch {str(dtype).removeprefix('torch.')} on cpu"
    assert denoiser.device == torch.device("cpu")
    denoiser.close()


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("per_frame", [False, True])
def test_onnxruntime_computes_what_torch_computes(checkpoint, exported, batch, per_frame):
    latents, timesteps, text, mask = inputs(2)
    if per_frame:
        timesteps = timesteps[:, None] * torch.tensor([0.0, 1.0, 1.0])
    expected = open_denoiser(checkpoint, device="cpu", dtype=torch.float32)(latents, timesteps, text, mask)
    denoiser = open_denoiser(exported / str(batch))
    torch.testing.assert_close(
        denoiser(latents, timesteps, text.bfloat16().float(), mask), expected, rtol=0.05, atol=0.05
    )
    torch.testing.assert_close(denoiser(latents, timesteps, text, mask.bool()), expected, rtol=1e-4, atol=1e-4)
    assert denoiser.name.startswith("onnxruntime ")
    denoiser.close()


def test_a_graph_refuses_other_shapes_and_a_lone_half(exported):
    denoiser = open_denoiser(exported / "2")
    latents, timesteps, text, mask = inputs(2)
    with pytest.raises(InputError, match=r"(?s)twin.onnx: latents.*\[2, 4, 3, 8, 12\].*\[2, 4, 3, 8, 10\]"):
        denoiser(latents[..., :10], timesteps, text, mask)
    with pytest.raises(InputError, match=r"(?s)twin.onnx: text.*\[2, 300, 32\].*\[2, 299, 32\]"):
        denoiser(latents, timesteps, text[:, 1:], mask[:, 1:])
    with pytest.raises(InputError, match=r"(?s)\[1, 4, 3, 8, 12\].*guidance above 1"):
        denoiser(*(t[:1] for t in (latents, timesteps, text, mask)))


def test_backends_are_those_of_the_artefact(checkpoint, exported, bundle, tmp_path):
    assert choose_backend(checkpoint) == "torch"
    assert choose_backend(exported / "2") == "onnxruntime"
    assert choose_backend(bundle, "onnxruntime") == "onnxruntime"
    for folder, backend in (
        (checkpoint, "onnxruntime"),
        (exported / "2", "tensorrt-rtx"),
        (bundle, "torch"),
        (bundle, "x"),
    ):
        with pytest.raises(InputError, match=rf"(?s)cannot run this artefact.*auto.*{backend}"):
            choose_backend(folder, backend)
    run_stage(tmp_path / "calibration", "calibrate", {}, lambda folder: {})
    with pytest.raises(InputError, match=r"(?s)makes no video.*calibrate"):
        choose_backend(tmp_path / "calibration")


@no_gpu
def test_without_a_gpu_auto_takes_the_twin_and_logs_why(bundle, caplog):
    caplog.set_level(logging.INFO)
    denoiser = open_denoiser(bundle)
    assert denoiser.name.startswith("onnxruntime")
    assert "backend onnxruntime: TensorRT-RTX needs an NVIDIA GPU" in caplog.text


@no_gpu
def test_without_a_gpu_engines_and_cuda_are_refused_with_what_they_need(bundle, checkpoint):
    with pytest.raises(
        BackendError, match=r"(?s)NVIDIA GPU.*rtx4090 \(SM89\), rtx5090 \(SM120\).*no CUDA GPU.*onnxruntime"
    ):
        open_denoiser(bundle, "tensorrt-rtx")
    with pytest.raises(BackendError, match="NVIDIA GPU"):
        TensorRtRtxDenoiser(bundle / "engines" / "rtx5090.engine")
    with pytest.raises(BackendError, match="No CUDA GPU"):
        open_denoiser(checkpoint, device="cuda")


def test_the_engine_is_that_of_the_gpu_or_none():
    manifest = Manifest("build", {}, {"engines": ENGINES})
    assert choose_engine(manifest, (12, 0)) == "engines/rtx5090.engine"
    assert choose_engine(manifest, (8, 9)) == "engines/rtx4090.engine"
    with pytest.raises(BackendError, match=r"(?s)no engine for this GPU.*rtx5090 \(SM120\).*SM90.*build"):
        choose_engine(manifest, (9, 0))


def test_unusable_torch_settings_are_refused(checkpoint):
    with pytest.raises(InputError, match=r"(?s)dtype.*float16"):
        open_denoiser(checkpoint, device="cpu", dtype=torch.float16)
    with pytest.raises(InputError, match=r"(?s)Unknown device.*tpu9"):
        open_denoiser(checkpoint, device="tpu9")


@pytest.mark.parametrize("name", ["twin.onnx", "twin.onnx.data"])
def test_graphs_and_weights_that_changed_are_refused(exported, tmp_path, name):
    shutil.copytree(exported / "2", tmp_path / "damaged")
    data = bytearray((tmp_path / "damaged" / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "damaged" / name).write_bytes(data)
    with pytest.raises(ArtefactError, match=rf"(?s)does not match its digest.*{name}"):
        open_denoiser(tmp_path / "damaged")


def test_what_is_no_denoiser_is_refused(exported, tmp_path):
    twin = tmp_path / "twin.onnx"
    twin.write_bytes((exported / "2" / "twin.onnx").read_bytes()[:-50])
    from sana_edge.runtime.backends.onnxruntime_backend import OnnxRuntimeDenoiser

    with pytest.raises(ArtefactError, match=r"(?s)cannot be loaded.*twin.onnx"):
        OnnxRuntimeDenoiser(twin)
    torch.onnx.export(
        torch.nn.Identity().eval(), (torch.zeros(1),), twin, input_names=["x"], output_names=["y"], dynamo=True
    )
    with pytest.raises(ArtefactError, match=r"(?s)no denoiser.*x -> y"):
        OnnxRuntimeDenoiser(twin)


@pytest.mark.gpu
def test_torch_on_a_gpu_computes_what_the_cpu_computes(checkpoint):
    arguments = inputs(2)
    expected = open_denoiser(checkpoint, device="cpu", dtype=torch.float32)(*arguments)
    velocity = open_denoiser(checkpoint, dtype=torch.float32)(*(t.cuda() for t in arguments)).cpu()
    torch.testing.assert_close(velocity, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
def test_an_engine_computes_what_its_twin_computes(checkpoint, tmp_path):
    from sana_edge.export.stage import build, export_onnx
    from sana_edge.runtime.shapes import VideoShape
    from sana_edge.runtime.targets import load_targets

    capability = "SM{}{}".format(*torch.cuda.get_device_capability())
    target = next((t.name for t in load_targets().values() if t.capability == capability), None)
    if target is None:
        pytest.skip(f"TensorRT-RTX has no target of {capability}")
    export_onnx(checkpoint, tmp_path / "onnx", shape=VideoShape(**VIDEO))
    build(tmp_path / "onnx", tmp_path / "bundle", targets=[target])
    engine, twin = open_denoiser(tmp_path / "bundle"), open_denoiser(tmp_path / "bundle", "onnxruntime")
    assert engine.name.startswith("tensorrt-rtx")
    for _ in range(2):
        arguments = inputs(2)
        velocity, expected = engine(*(t.to(engine.device) for t in arguments)).cpu(), twin(*arguments)
        assert (velocity - expected).norm() / expected.norm() < 0.03
    engine.close()
