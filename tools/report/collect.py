"""Runs all sides of a report over the same prompts, seeds and noise, and puts what was measured into a Report.

One denoiser is in memory at a time. The reference's runs are kept in fp32 on the CPU: 3 latents a step, prompt and
seed, which is 0.5 MB for nano and 25 MB for SANA-Video 2B at 480p.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from ...calibration_data.moving_shapes import judge, parse_caption
from ...calibration_data.prompts import Prompt
from ...runtime.backends import open_denoiser
from ...runtime.backends.torch_backend import choose_device
from ...runtime.denoise import initial_noise
from ...runtime.errors import InputError
from ...runtime.pipeline import Settings
from ...runtime.schedule import TEXT_TO_VIDEO, load_scheduler
from ...runtime.shapes import read_geometry
from ...runtime.text import Conditioning, encode_pairs, with_motion_score
from ...runtime.vae import decode_latents, load_vae, to_uint8
from ...runtime.video import FPS, write_video
from ..machine import describe_machine, describe_packages
from ..progress import bar
from . import metrics
from .runs import ForcedErrors, Run, drift, free_run, teacher_forced
from .schema import VERSION, Adherence, Clip, Protocol, Report, Side
from .subjects import Subject

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Sample:
    """One prompt, as encoded with its motion score, and one seed."""

    prompt: str
    negative_prompt: str
    seed: int


@dataclass(frozen=True)
class Setup:
    """How every side runs: settings of the video, dtype of torch sides ("bf16", "fp32"), backend of the candidates."""

    settings: Settings
    dtype: str
    backend: str
    device: str | None


@dataclass(frozen=True)
class Measured:
    """A side's runs and what they are compared by, sample by sample, and what ran them."""

    runs: list[Run]
    forced: list[ForcedErrors]
    ran: str


def samples_of(prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Sample]:
    """All prompts with all seeds."""
    texts = [(with_motion_score(p.prompt, p.motion_score), p.negative_prompt) for p in prompts]
    return [Sample(text, negative, seed) for text, negative in texts for seed in seeds]


def collect(
    reference: Subject, candidates: Sequence[Subject], samples: Sequence[Sample], setup: Setup, folder: Path
) -> Report:
    """Measures every side, writes its videos below `folder`, and returns the report, not yet gated."""
    settings = setup.settings
    pairs = [(s.prompt, s.negative_prompt) for s in samples]
    device = choose_device(setup.device)
    conditionings = encode_pairs(reference.folder, pairs, dtype=_DTYPES[setup.dtype], device=device)
    base = measure(reference, samples, conditionings, replace(setup, backend="auto"))
    measured = [measure(c, samples, conditionings, setup, base.runs) for c in candidates]

    vae = load_vae(reference.folder, device=device)
    sides, frames = [], None
    for subject, found in zip((reference, *candidates), (base, *measured), strict=True):
        videos = []
        with bar(f"{subject.name}: decode", "video") as progress:
            for index, run in enumerate(found.runs):
                videos.append(to_uint8(decode_latents(vae, run.latents[-1])))
                progress(index + 1, len(samples))
        frames = frames or videos
        sides.append(_side(subject, found, base, samples, videos, frames, folder))
    prompts, seeds = (list(dict.fromkeys(getattr(s, name) for s in samples)) for name in ("prompt", "seed"))
    video = {"frames": settings.frames, "height": settings.height, "width": settings.width, "fps": FPS}
    protocol = Protocol(prompts, seeds, settings.steps, settings.guidance, **video, scheduler=TEXT_TO_VIDEO)
    return Report(
        version=VERSION,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        passed=False,
        protocol=protocol,
        timesteps=base.runs[0].timesteps,
        environment=describe_machine() | describe_packages(),
        reference=sides[0],
        candidates=sides[1:],
        baseline=None,
    )


def measure(
    subject: Subject,
    samples: Sequence[Sample],
    conditionings: dict[tuple[str, str], Conditioning],
    setup: Setup,
    reference: Sequence[Run] | None = None,
) -> Measured:
    """Runs a side over all samples, and teacher-forced along the reference's runs if they are given."""
    settings, runs, forced = setup.settings, [], []
    shape = read_geometry(subject.folder).latent_shape(settings.shape)
    denoiser = open_denoiser(subject.folder, setup.backend, device=setup.device, dtype=_DTYPES[setup.dtype])
    passes = 1 if reference is None else 2
    with closing(denoiser), bar(subject.name) as progress:
        total, done = len(samples) * settings.steps * passes, 0

        def advance(_: int, __: int) -> None:
            nonlocal done
            done += 1
            progress(done, total)

        for index, sample in enumerate(samples):
            conditioning = conditionings[sample.prompt, sample.negative_prompt]
            scheduler = load_scheduler(subject.folder, TEXT_TO_VIDEO, settings.steps, device=denoiser.device)
            noise = initial_noise(shape, sample.seed)
            runs.append(free_run(denoiser, noise, scheduler, conditioning, settings.guidance, advance))
            if reference is not None:
                forced.append(teacher_forced(denoiser, reference[index], conditioning, advance))
        ran = denoiser.name
    gc.collect()
    return Measured(runs, forced, ran)


def _side(
    subject: Subject,
    found: Measured,
    base: Measured,
    samples: Sequence[Sample],
    videos: Sequence[np.ndarray],
    reference_videos: Sequence[np.ndarray],
    folder: Path,
) -> Side:
    """A side of the report from its runs and decoded videos, which are written as mp4."""
    compared, clips = bool(found.forced), []
    for index, (sample, run, frames) in enumerate(zip(samples, found.runs, videos, strict=True)):
        path = f"videos/{subject.name}-{index:03}.mp4"
        write_video(folder / path, frames, metadata={"prompt": sample.prompt, "seed": sample.seed, "ran": found.ran})
        forced = asdict(found.forced[index] if compared else ForcedErrors([], [], [], []))
        clip = Clip(
            prompt=sample.prompt,
            seed=sample.seed,
            video=path,
            seconds=sum(run.seconds),
            adherence=adherence(frames, sample.prompt),
            **forced,
            drift=drift(base.runs[index], run) if compared else [],
            psnr=metrics.psnr(reference_videos[index], frames) if compared else [],
            ssim=metrics.ssim(reference_videos[index], frames) if compared else [],
        )
        clips.append(clip)
    cosines = [v for c in clips for v in (*c.cond_cosine, *c.uncond_cosine)]
    return Side(
        name=subject.name,
        source=subject.source,
        kind=subject.kind,
        digest=subject.digest,
        runs=found.ran,
        format=subject.format,
        layers=subject.layers,
        bytes=subject.bytes,
        step_seconds=statistics.median(s for run in found.runs for s in run.seconds),
        adherence=_mean([float(c.adherence.adheres) for c in clips if c.adherence is not None]),
        cosine_mean=_mean(cosines),
        cosine_min=min(cosines, default=None),
        error_mean=_mean([v for c in clips for v in (*c.cond_error, *c.uncond_error)]),
        drift_final=_mean([c.drift[-1] for c in clips if c.drift]),
        psnr_mean=_mean([v for c in clips for v in c.psnr]),
        ssim_mean=_mean([v for c in clips for v in c.ssim]),
        gates=[],
        clips=clips,
    )


def adherence(frames: np.ndarray, prompt: str) -> Adherence | None:
    """What the judge of the moving-shapes world says of a video; None for prompts that are no caption of that world."""
    try:
        content = parse_caption(prompt)
    except InputError:
        return None
    verdict = judge(frames, content)
    found = {name: getattr(verdict, name) for name in ("shape", "colour", "background", "direction", "speed")}
    return Adherence(**found, adheres=verdict.adherence)


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
