"""From prompt to frames: the same seed gives the same video as the upstream pipelines, on every kind of artefact."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sana_edge.export.stage import export_onnx
from sana_edge.runtime.artefact import read_manifest
from sana_edge.runtime.checkpoint import NANO, WEIGHTS
from sana_edge.runtime.errors import ArtefactError, BackendError, InputError
from sana_edge.runtime.pipeline import DEFAULTS_FILE, Settings, default_settings, generate
from sana_edge.runtime.shapes import VideoShape

PROMPT = "A Red circle moves left to right on a blue background."
SMALL = {"frames": 9, "height": 64, "width": 96, "steps": 5}


def psnr(a, b):
    error = np.mean((a.astype(float) - b.astype(float)) ** 2)
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng().integers(0, 256, (8, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((96, 64)).save(tmp_path / "first.png")
    return tmp_path / "first.png"


def upstream(folder, dtype, seed, guidance, image):
    """The frames of diffusers' own pipeline, with the VAE in fp32 as its documentation demands."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SanaImageToVideoPipeline, SanaVideoPipeline

    pipe = (SanaImageToVideoPipeline if image else SanaVideoPipeline).from_pretrained(folder, torch_dtype=dtype)
    pipe.vae.to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    extra = {}
    if image:
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=8.0)
        extra["image"] = Image.open(image)
    frames = pipe(
        prompt=f"{PROMPT} motion score: 30.",
        negative_prompt="Blurry",
        frames=9,
        height=64,
        width=96,
        num_inference_steps=5,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(seed),
        use_resolution_binning=False,
        **extra,
    ).frames[0]
    return np.stack([np.asarray(frame) for frame in frames])


@pytest.mark.parametrize("kind", ["text", "image"])
@pytest.mark.parametrize(
    ("source", "dtype", "guidance", "least"),
    [
        ("nano", torch.float32, 6.0, 60),
        ("nano", torch.bfloat16, 6.0, 40),
        ("random", torch.float32, 1.0, 60),
        ("random", torch.float32, 6.0, 60),
    ],
)
def test_a_seed_gives_the_upstream_video(checkpoint, image, source, kind, dtype, guidance, least):
    seed = int(torch.randint(2**40, ()))
    first = image if kind == "image" else None
    folder = NANO if source == "nano" else checkpoint
    expected = upstream(folder, dtype, seed, guidance, first)
    result = generate(
        "nano" if source == "nano" else checkpoint,
        PROMPT,
        negative_prompt="Blurry",
        image=first,
        guidance=guidance,
        motion_score=30,
        seed=seed,
        device="cpu",
        dtype=dtype,
        **SMALL,
    )
    assert result.frames.shape == expected.shape == (9, 64, 96, 3)
    assert psnr(result.frames, expected) >= least


def test_the_result_says_how_it_was_made(checkpoint, image):
    steps = []
    result = generate(checkpoint, PROMPT, image=image, seed=5, device="cpu", observe=steps.append, **SMALL)
    metadata = json.loads(json.dumps(result.metadata))
    made = {"prompt": f"{PROMPT} motion score: 30.", "image": str(image), "seed": 5, "scheduler": "flow-match-euler"}
    assert made.items() <= metadata.items()
    assert SMALL.items() <= metadata.items()
    assert metadata["backend"] == "torch bfloat16 on cpu"
    assert len(metadata["digest"]) == 64
    assert set(metadata["seconds"]) == {"text", "image", "load", "denoise", "vae"}
    assert len(steps) == 5


def test_seeds_repeat_and_differ(checkpoint):
    first, again, other = (generate(checkpoint, PROMPT, seed=s, device="cpu", **SMALL).frames for s in (3, 3, 4))
    assert (first == again).all()
    assert (first != other).any()


def test_defaults_are_upstreams_unless_the_checkpoint_has_its_own(checkpoint, tmp_path):
    assert default_settings(checkpoint) == Settings(81, 480, 832, 50, 6.0, 30)
    shutil.copytree(checkpoint, tmp_path / "own")
    (tmp_path / "own" / DEFAULTS_FILE).write_text(json.dumps({"frames": 33, "height": 128, "width": 192, "steps": 20}))
    assert default_settings(tmp_path / "own") == Settings(33, 128, 192, 20, 6.0, 30)
    (tmp_path / "own" / DEFAULTS_FILE).write_text('{"num_frames": 33}')
    with pytest.raises(ArtefactError, match=r"(?s)damaged.*num_frames"):
        default_settings(tmp_path / "own")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"frames": 10}, r"(?s)frames.*multiple of 4 plus 1.*use 9 or 13"),
        ({"height": 60}, r"(?s)height.*multiple of 16.*use 48 or 64"),
        ({"width": 0}, r"(?s)width.*multiple of 16"),
        ({"steps": 0}, r"(?s)Steps.*1 to 1000.*0"),
        ({"guidance": float("nan")}, r"Guidance out of range"),
        ({"guidance": -1.0}, r"Guidance out of range"),
        ({"motion_score": -1}, r"Motion score out of range"),
        ({"seed": -1}, r"Seed out of range"),
        ({"seed": 2**64}, r"Seed out of range"),
        ({"image": "missing.png"}, r"(?s)Image cannot be read.*missing.png"),
        ({"backend": "onnxruntime"}, r"(?s)cannot run this artefact.*onnxruntime"),
    ],
)
def test_impossible_requests_are_refused_before_anything_is_loaded(checkpoint, monkeypatch, values, message):
    monkeypatch.setattr("sana_edge.runtime.pipeline.encode_prompts", None)
    with pytest.raises(InputError, match=message):
        generate(checkpoint, PROMPT, device="cpu", **SMALL | values)


def test_no_such_checkpoint_is_said_plainly():
    with pytest.raises(InputError, match=r"(?s)No such checkpoint.*nowhere"):
        generate("nowhere", PROMPT)


@pytest.fixture
def rounded(checkpoint, tmp_path):
    """The tiny checkpoint with a bf16 transformer, as it is published: a graph's weights are bf16."""
    folder = tmp_path / "rounded"
    shutil.copytree(checkpoint, folder)
    weights = folder / "transformer" / WEIGHTS
    save_file({name: tensor.bfloat16() for name, tensor in load_file(weights).items()}, weights)
    return folder


@pytest.fixture
def exported(rounded, tmp_path):
    export_onnx(rounded, tmp_path / "onnx", shape=VideoShape(9, 64, 96))
    return tmp_path / "onnx"


def test_an_onnx_folder_makes_the_video_of_its_checkpoint(rounded, exported, image):
    for first in (None, image):
        expected = generate(rounded, PROMPT, image=first, seed=9, device="cpu", dtype=torch.float32, **SMALL)
        result = generate(exported, PROMPT, image=first, seed=9, steps=5, device="cpu", dtype=torch.float32)
        assert psnr(result.frames, expected.frames) >= 60
        assert result.metadata["backend"].startswith("onnxruntime")
        assert result.metadata["digest"] == read_manifest(exported).digest
    with pytest.raises(InputError, match=r"(?s)Size is fixed.*9 frames of 64x96.*13 frames of 64x96"):
        generate(exported, PROMPT, frames=13)
    vae = exported / "vae" / "config.json"
    text = vae.read_text()
    vae.unlink()
    vae.write_text(text + " ")
    with pytest.raises(ArtefactError, match=r"(?s)does not match its digest.*vae"):
        generate(exported, PROMPT)


def test_too_little_gpu_memory_names_the_stage(checkpoint, monkeypatch):
    def starve(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")

    monkeypatch.setattr("sana_edge.runtime.pipeline.decode_latents", starve)
    with pytest.raises(BackendError, match=r"(?s)memory is too small.*stage vae.*9.00 GiB.*fewer frames"):
        generate(checkpoint, PROMPT, device="cpu", **SMALL)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_makes_the_video_of_the_cpu(image, dtype):
    for first in (None, image):
        settings = {"image": first, "seed": 11, "dtype": dtype, **SMALL}
        expected = generate("nano", PROMPT, device="cpu", **settings)
        result = generate("nano", PROMPT, **settings)
        assert result.metadata["backend"].endswith("on cuda")
        assert psnr(result.frames, expected.frames) >= (50 if dtype == torch.float32 else 35)


def test_stages_live_one_after_another(checkpoint, monkeypatch):
    """While the denoiser runs, neither text encoder nor VAE is in memory; while the VAE runs, no denoiser is."""
    import gc

    from sana_edge.runtime import pipeline

    def alive(but=()):
        gc.collect()
        wanted = {"Gemma2Model", "LinearDiT", "AutoencoderKLWan"}
        return {id(o): type(o).__name__ for o in gc.get_objects() if type(o).__name__ in wanted and id(o) not in but}

    seen, decode, before = [], pipeline.decode_latents, alive()
    monkeypatch.setattr(pipeline, "decode_latents", lambda *a: (seen.append(alive(before)), decode(*a))[1])
    generate(checkpoint, PROMPT, device="cpu", observe=lambda step: seen.append(alive(before)), **SMALL)
    assert [set(s.values()) for s in seen] == [{"LinearDiT"}] * 5 + [{"AutoencoderKLWan"}]


def test_importing_the_package_stays_light():
    code = (
        "import sys, sana_edge.runtime; print([m for m in ('torch', 'diffusers', 'numpy', 'av') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    names = "from sana_edge.runtime import *; print(generate.__name__, LinearDiT.__name__, write_video.__name__)"
    done = subprocess.run([sys.executable, "-c", names], capture_output=True, text=True, check=True)
    assert done.stdout == "generate LinearDiT write_video\n"
