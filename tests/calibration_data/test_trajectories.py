"""Trajectories: what is recorded is what the denoiser read and answered, and it survives the disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sana_edge.calibration_data.prompts import HELDOUT, read_prompts
from sana_edge.calibration_data.trajectories import Trajectory, calibrate, load_trajectory, read_trajectories, record
from sana_edge.runtime.artefact import link_tree, parent_digest
from sana_edge.runtime.checkpoint import COMPONENTS, NANO, to_diffusers
from sana_edge.runtime.denoise import initial_noise
from sana_edge.runtime.errors import ArtefactError, InputError
from sana_edge.runtime.linear_dit import DiTConfig, LinearDiT
from sana_edge.runtime.quantized_linear import load_denoiser_model
from sana_edge.runtime.schedule import TEXT_TO_VIDEO, load_scheduler
from sana_edge.runtime.shapes import VideoShape
from sana_edge.runtime.text import Conditioning

TINY = {
    "in_channels": 16,
    "out_channels": 16,
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "num_layers": 1,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 32,
    "caption_channels": 192,
    "mlp_ratio": 3.0,
    "patch_size": [1, 2, 2],
}
SHAPE = VideoShape(9, 64, 96)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder with a tiny random transformer and nano's other components."""
    folder = tmp_path_factory.mktemp("tiny")
    for name in COMPONENTS:
        link_tree(NANO / name, folder / name)
    model = LinearDiT(DiTConfig.from_diffusers(TINY)).requires_grad_(False)
    (folder / "transformer").mkdir()
    (folder / "transformer/config.json").write_text(json.dumps(TINY))
    tensors = to_diffusers(model.state_dict(), model.config)
    save_file(tensors, folder / "transformer/diffusion_pytorch_model.safetensors")
    return folder


def random_trajectory(steps: int = 3) -> Trajectory:
    latents, velocity = torch.randn(steps, 16, 2, 4, 4), torch.randn(steps, 2, 16, 2, 4, 4)
    text, mask = torch.randn(2, 300, 192), torch.randint(0, 2, (2, 300))
    return Trajectory(latents, torch.rand(steps) * 1000, text, mask, velocity, "a cat. motion score: 3.", 7, steps, 6.0)


def same(a: Trajectory, b: Trajectory) -> bool:
    pairs = ((getattr(a, name), getattr(b, name)) for name in vars(a))
    return all(x.dtype == y.dtype and torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


def test_record_keeps_what_a_denoiser_read_and_answered():
    """With a denoiser that answers from a formula, every recorded number can be recomputed."""
    calls: list[tuple[torch.Tensor, ...]] = []

    def denoiser(latents: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor, mask: torch.Tensor):
        calls.append((latents.clone(), timesteps.clone(), text, mask))
        return 0.1 * latents + text.mean((1, 2)).view(-1, 1, 1, 1, 1)

    noise = initial_noise((16, 2, 4, 4), seed=3)
    conditioning = Conditioning(torch.randn(2, 300, 192), torch.ones(2, 300))
    scheduler, progress = load_scheduler(NANO, TEXT_TO_VIDEO, 4), []
    trajectory = record(
        denoiser,
        noise,
        scheduler,
        conditioning,
        guidance=3.0,
        prompt="a cat",
        seed=3,
        progress=lambda done, total: progress.append((done, total)),
    )
    assert progress == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert torch.equal(trajectory.latents[0], noise[0])
    assert trajectory.timesteps.tolist() == pytest.approx(scheduler.timesteps.tolist())
    assert (trajectory.prompt, trajectory.seed, trajectory.steps, trajectory.guidance) == ("a cat", 3, 4, 3.0)
    assert len(calls) == 4
    for call, batch, velocity in zip(calls.copy(), trajectory.batches(), trajectory.velocity, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(call, batch, strict=True))
        assert torch.equal(denoiser(*batch), velocity)


def test_guidance_off_is_refused():
    conditioning = Conditioning(torch.randn(2, 300, 192), torch.ones(2, 300))
    scheduler = load_scheduler(NANO, TEXT_TO_VIDEO, 2)
    with pytest.raises(InputError, match="both halves"):
        record(
            lambda *x: x[0], initial_noise((16, 1, 2, 2), 0), scheduler, conditioning, guidance=1.0, prompt="", seed=0
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_files_keep_every_field(dtype: torch.dtype, tmp_path: Path):
    trajectory = random_trajectory()
    trajectory = Trajectory(**vars(trajectory) | {"text": trajectory.text.to(dtype)})
    trajectory.save(tmp_path / "t.safetensors")
    assert same(load_trajectory(tmp_path / "t.safetensors"), trajectory)


def test_damaged_files_are_refused(tmp_path: Path):
    path = tmp_path / "trajectory-0000.safetensors"
    random_trajectory().save(path)
    whole, tensors = path.read_bytes(), load_file(path)
    path.write_bytes(whole[:-7])
    with pytest.raises(ArtefactError, match=r"(?s)cannot be read.*trajectory-0000"):
        list(read_trajectories(tmp_path))
    save_file(tensors, path)
    with pytest.raises(ArtefactError, match=r"(?s)Not a trajectory.*guidance"):
        load_trajectory(path)
    bad = Trajectory(**vars(random_trajectory()) | {"text": torch.randn(300, 192)})
    bad.save(path)
    with pytest.raises(ArtefactError, match=r"(?s)wrong shape.*text.*3-D.*\[300, 192\]"):
        load_trajectory(path)
    with pytest.raises(ArtefactError, match="cannot be read"):
        load_trajectory(tmp_path / "none.safetensors")


def test_stage_records_real_runs(checkpoint: Path, tmp_path: Path):
    """Two samples of two negative prompts: each replayed velocity is the reference model's own."""
    lines = [
        {"prompt": "a red circle moves", "negative_prompt": "blurry", "motion_score": 10},
        {"prompt": "a blue star moves"},
        {"prompt": "never used"},
    ]
    prompts, progress = tmp_path / "prompts.jsonl", []
    prompts.write_text("\n".join(json.dumps(line) for line in lines))
    manifest = calibrate(
        checkpoint,
        tmp_path / "out",
        prompts=prompts,
        samples=2,
        steps=3,
        shape=SHAPE,
        guidance=3.0,
        seed=5,
        device="cpu",
        progress=lambda done, total: progress.append((done, total)),
    )
    assert manifest.inputs["checkpoint"] == parent_digest(checkpoint)
    assert manifest.details["video"] == {"frames": 9, "height": 64, "width": 96}
    assert (manifest.details["samples"], manifest.details["steps"]) == (2, 3)
    assert progress == [(n, 6) for n in range(1, 7)]
    first, second = read_trajectories(tmp_path / "out")
    assert first.prompt == "a red circle moves motion score: 10." and second.prompt.endswith("motion score: 30.")
    assert (first.seed, second.seed) == (5, 6)
    assert first.latents.shape == (3, 16, 3, 8, 12) and torch.equal(
        second.latents[:1], initial_noise((16, 3, 8, 12), 6)
    )
    assert first.text_mask[0].sum() != second.text_mask[0].sum()  # "blurry" and nothing
    model = load_denoiser_model(checkpoint, dtype=torch.float32)
    for trajectory in (first, second):
        for batch, velocity in zip(trajectory.batches(), trajectory.velocity, strict=True):
            assert torch.equal(model(*batch), velocity)


def test_stage_refuses_held_out_prompts(checkpoint: Path, tmp_path: Path):
    stolen = read_prompts(HELDOUT)[3]
    lines = [{"prompt": "a cat"}, {"prompt": stolen.prompt.title(), "motion_score": stolen.motion_score}]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    for prompts, samples in ((HELDOUT, 4), (path, 1)):
        with pytest.raises(InputError, match="held out"):
            calibrate(checkpoint, tmp_path / "out", prompts=prompts, samples=samples, steps=2, shape=SHAPE)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 0}, "Samples out of range"),
        ({"samples": 1000}, r"(?s)Samples out of range.*1 to its \d+ prompts"),
        ({"steps": 1001}, "Steps out of range"),
        ({"guidance": 1.0}, "both halves"),
        ({"shape": VideoShape(10, 64, 96)}, "frames does not divide"),
    ],
)
def test_stage_refuses_bad_settings(checkpoint: Path, tmp_path: Path, changes: dict, message: str):
    settings = {"samples": 1, "steps": 2, "shape": SHAPE, "guidance": 3.0} | changes
    with pytest.raises(InputError, match=message):
        calibrate(checkpoint, tmp_path / "out", **settings)
