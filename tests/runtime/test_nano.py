"""The nano checkpoint: diffusers runs it unchanged, and what it can do is measured against the bars it must reach."""

import json
import random
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from sana_edge.calibration_data.moving_shapes import (
    FRAMES,
    HEIGHT,
    WIDTH,
    all_contents,
    caption,
    judge,
    render,
    sample_scene,
    training_contents,
)
from sana_edge.runtime.checkpoint import NANO, read_config
from sana_edge.runtime.pipeline import default_settings
from sana_edge.tools.nano.evaluate import image_to_video, load, text_to_video
from sana_edge.tools.nano.prompts import held_out_selection

SMALL = {"height": 64, "width": 96, "frames": 9, "use_resolution_binning": False}


@pytest.fixture(scope="module")
def pipeline():
    return load(NANO, torch.device("cpu"))


@pytest.fixture
def fresh() -> random.Random:
    seed = time.time_ns()
    print("seed", seed)
    return random.Random(seed)


def decibel(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(10 * torch.log10(4 / (a - b).square().mean()))


@torch.no_grad()
def recoded(vae, video: torch.Tensor) -> torch.Tensor:
    return vae.decode(vae.encode(video).latent_dist.mode()).sample


def test_folder_is_small_and_whole():
    files = [path for path in Path(NANO).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 24 * 2**20
    index = json.loads((NANO / "model_index.json").read_text())
    for component in ("tokenizer", "text_encoder", "transformer", "vae", "scheduler"):
        assert component in index and (NANO / component).is_dir()
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]


def test_geometry_suits_the_block_formats():
    config = read_config(NANO)
    for products in (config.width, config.hidden, config.caption_channels, config.in_channels * 4):
        assert products % 32 == 0
    scheduler = json.loads((NANO / "scheduler" / "scheduler_config.json").read_text())
    expected = {"flow_shift": 8.0, "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    assert expected.items() <= scheduler.items()


def test_default_settings_are_those_of_its_world():
    settings = default_settings("nano")
    assert (settings.frames, settings.height, settings.width) == (FRAMES, HEIGHT, WIDTH)


def test_any_text_encodes_and_begins_with_bos(pipeline):
    tokenizer = pipeline.tokenizer
    for text in ("", "a red circle", "Ünïcödé 日本語 🎬 \n\t\x00", caption(next(all_contents()))):
        ids = tokenizer(text).input_ids
        assert ids[0] == tokenizer.bos_token_id and tokenizer.unk_token_id not in ids
    assert len(tokenizer(caption(next(all_contents()))).input_ids) < 30


def test_latent_statistics_describe_the_world(pipeline, fresh):
    contents = training_contents()
    video = render([sample_scene(fresh, contents) for _ in range(3)])
    latents = pipeline.vae.encode(video).latent_dist.mode().transpose(0, 1).flatten(1)
    mean = torch.tensor(pipeline.vae.config.latents_mean)[:, None]
    std = torch.tensor(pipeline.vae.config.latents_std)[:, None]
    normalized = (latents - mean) / std
    assert 0.6 < normalized.std() < 1.5 and normalized.mean().abs() < 0.6


def test_text_to_video_runs_unchanged_in_diffusers(pipeline):
    output = pipeline(
        prompt=caption(held_out_selection()[0]),
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
        **SMALL,
    )
    assert output.frames.shape == (1, 9, 64, 96, 3)
    assert output.frames.std() > 0.01


def test_image_to_video_keeps_the_image_and_moves(pipeline, fresh):
    scene = sample_scene(fresh, [c for c in training_contents() if c.direction != "still" and c.motion_score == 50])
    given = render([scene])[0, :, 0]
    image = Image.fromarray(((given.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy())
    output = image_to_video(pipeline)(
        image=image,
        prompt=caption(scene.content),
        num_inference_steps=5,
        guidance_scale=4.5,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
        height=HEIGHT,
        width=WIDTH,
        frames=9,
        use_resolution_binning=False,
    )
    video = output.frames[0].float().transpose(0, 1) * 2 - 1
    direct = recoded(pipeline.vae, given[None, :, None])[0, :, 0]
    assert decibel(video[:, 0], direct) > 40, "frame 0 is the image's own latent, never stepped"
    assert decibel(video[:, 0], given) > 22
    assert decibel(video[:, 8], video[:, 0]) < 30


RETRAIN = "partially trained, see runtime/nano/README.md: "


@torch.no_grad()
def test_vae_keeps_first_frames(pipeline, fresh):
    contents = training_contents()
    given = render([sample_scene(fresh, contents) for _ in range(8)])[:, :, :1]
    assert decibel(recoded(pipeline.vae, given), given) > 28


@torch.no_grad()
@pytest.mark.xfail(strict=True, raises=AssertionError, reason=RETRAIN + "27.9 dB measured, the bar is 30")
def test_vae_keeps_whole_clips(pipeline):
    scenes = random.Random(5)
    video = render([sample_scene(scenes) for _ in range(2)])
    assert decibel(recoded(pipeline.vae, video), video) >= 30


@pytest.mark.slow
@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason=RETRAIN + "0 of 12 held-out captions measured, the bar is 90%"
)
def test_text_to_video_follows_held_out_captions(pipeline):
    contents = held_out_selection()[:2]
    videos = text_to_video(pipeline, contents, steps=8, guidance=4.5)
    right = [judge(video, content).adherence for video, content in zip(videos, contents, strict=True)]
    assert sum(right) >= 0.9 * len(contents)
