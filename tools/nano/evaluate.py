"""Measure a nano folder the way users run it: diffusers' own pipelines, bf16 transformer, fp32 VAE."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SanaImageToVideoPipeline, SanaVideoPipeline
from PIL import Image
from torch import Tensor

from ...calibration_data.moving_shapes import FRAMES, HEIGHT, WIDTH, Content, caption, judge, place, render
from .vae import psnr

SHAPE = {"height": HEIGHT, "width": WIDTH, "frames": FRAMES, "use_resolution_binning": False}


def load(folder: Path, device: torch.device) -> SanaVideoPipeline:
    pipeline = SanaVideoPipeline.from_pretrained(folder)
    pipeline.transformer.to(torch.bfloat16)
    pipeline.text_encoder.to(torch.bfloat16)
    pipeline.vae.to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def image_to_video(pipeline: SanaVideoPipeline) -> SanaImageToVideoPipeline:
    """The same modules under the image-to-video pipeline and its own scheduler."""
    modules = pipeline.components | {"scheduler": FlowMatchEulerDiscreteScheduler(shift=8.0)}
    pipeline = SanaImageToVideoPipeline(**modules)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _generators(count: int, device: torch.device, seed: int) -> list[torch.Generator]:
    return [torch.Generator(device).manual_seed(seed + i) for i in range(count)]


def text_to_video(
    pipeline: SanaVideoPipeline, contents: Sequence[Content], steps: int, guidance: float, seed: int = 0
) -> Tensor:
    """Videos [n, 3, frames, height, width] in [-1, 1], on the CPU."""
    videos = []
    for first in range(0, len(contents), 32):
        some = contents[first : first + 32]
        output = pipeline(
            prompt=[caption(content) for content in some],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=_generators(len(some), pipeline.device, seed + first),
            output_type="pt",
            **SHAPE,
        )
        videos.append(output.frames.float().cpu().transpose(1, 2) * 2 - 1)
    return torch.cat(videos)


def score(videos: Tensor, contents: Sequence[Content]) -> dict[str, float]:
    """Share of videos that the judge finds right, for each attribute and for all but the speed."""
    verdicts = [judge(video, content) for video, content in zip(videos, contents, strict=True)]
    names = ("adherence", "shape", "colour", "background", "direction", "speed")
    return {name: sum(getattr(verdict, name) for verdict in verdicts) / len(verdicts) for name in names}


def measure_image_to_video(
    pipeline: SanaVideoPipeline, contents: Sequence[Content], steps: int, guidance: float
) -> tuple[dict[str, float], Tensor]:
    """Give frame 0 of a fresh scene; returns the scores with frame 0's PSNR in dB, and the videos."""
    animator, generator = image_to_video(pipeline), random.Random(2)
    scenes = [place(content, generator) for content in contents]
    given = render(scenes)[:, :, 0]
    videos = []
    for i, content in enumerate(contents):
        image = Image.fromarray(((given[i].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy())
        output = animator(
            image=image,
            prompt=caption(content),
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=torch.Generator(pipeline.device).manual_seed(i),
            output_type="pt",
            **SHAPE,
        )
        videos.append(output.frames[0].float().cpu().transpose(0, 1) * 2 - 1)
    result = torch.stack(videos)
    error = (result[:, :, 0] - given).square().mean(dim=(1, 2, 3))
    first = 10 * torch.log10(4 / error)
    return score(result, contents) | {
        "first_frame_db": float(first.mean()),
        "first_frame_db_min": float(first.min()),
    }, result


def contact_sheet(videos: Tensor, path: Path) -> None:
    """One row a video, five frames each."""
    frames = torch.linspace(0, videos.shape[2] - 1, 5).round().long()
    rows = [torch.cat(list(video[:, frames].unbind(1)), dim=-1) for video in videos]
    sheet = ((torch.cat(rows, dim=-2).clamp(-1, 1) + 1) * 127.5).round().byte()
    Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(path)


def evaluate(
    folder: Path, out: Path, contents: Sequence[Content], settings: Sequence[tuple[int, float]], device: torch.device
) -> dict[str, object]:
    """Everything the model card states, for each (steps, guidance); writes metrics.json and contact sheets to `out`."""
    pipeline = load(folder, device)
    generator = random.Random(3)
    fresh = render([place(content, generator) for content in contents[:16]], device=device)
    metrics: dict[str, object] = {"vae_psnr_db": psnr(pipeline.vae, fresh), "captions": len(contents)}
    for steps, guidance in settings:
        videos = text_to_video(pipeline, contents, steps, guidance)
        metrics[f"text_to_video {steps} steps guidance {guidance}"] = score(videos, contents)
        contact_sheet(videos[:12], out / f"t2v-{steps}-{guidance}.png")
        (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    steps, guidance = settings[0]
    metrics["image_to_video"], videos = measure_image_to_video(pipeline, contents[:8], steps, guidance)
    contact_sheet(videos, out / f"i2v-{steps}-{guidance}.png")
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics
