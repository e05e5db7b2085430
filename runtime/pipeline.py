"""From a prompt to frames: text encoder, denoiser and VAE one after another, each freed before the next is loaded."""

from __future__ import annotations

import gc
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .artefact import digest_folder, digest_json, link_tree, versions
from .backends import choose_backend, open_denoiser, read_stage, verify_part
from .backends.torch_backend import choose_device
from .checkpoint import COMPONENTS, find_checkpoint, read_json
from .denoise import Step, denoise, initial_noise
from .errors import ArtefactError, BackendError, InputError
from .schedule import IMAGE_TO_VIDEO, TEXT_TO_VIDEO, load_scheduler
from .shapes import VideoShape, read_geometry
from .text import encode_prompts, with_motion_score
from .vae import decode_latents, encode_image, load_vae, to_uint8
from .video import read_image

DEFAULTS_FILE = "sana_edge.json"


@dataclass(frozen=True)
class Settings:
    """How a video is made: size in pixels and frames, denoising steps, guidance scale, motion score of the prompt.

    The values here are SANA-Video 480p's. Guidance of 1 or less means none: one forward a step instead of two.
    """

    frames: int = 81
    height: int = 480
    width: int = 832
    steps: int = 50
    guidance: float = 6.0
    motion_score: int = 30

    @property
    def shape(self) -> VideoShape:
        return VideoShape(self.frames, self.height, self.width)

    def check(self) -> None:
        """Raises InputError for values outside their range (sizes are checked against the checkpoint's geometry)."""
        if not 1 <= self.steps <= 1000:
            raise InputError("Steps out of range", where="steps", expected="1 to 1000", got=self.steps)
        if not (math.isfinite(self.guidance) and 0 <= self.guidance <= 100):
            raise InputError("Guidance out of range", where="guidance", expected="0 to 100", got=self.guidance)
        if self.motion_score < 0:
            got = self.motion_score
            raise InputError("Motion score out of range", where="motion score", expected="0 or more", got=got)


@dataclass(frozen=True)
class Result:
    """A video: uint8 frames [F, H, W, 3], and how it was made (settings, seed, what ran, digest, seconds a stage)."""

    frames: np.ndarray
    metadata: dict[str, Any]


def default_settings(source: str | Path) -> Settings:
    """What a checkpoint or artefact makes when nothing is asked for.

    Upstream's values, overridden by the folder's `sana_edge.json`, and in an ONNX folder or bundle by the one video
    shape it was exported for.
    """
    folder = find_checkpoint(source)
    values: dict[str, Any] = {}
    if (folder / DEFAULTS_FILE).exists():
        values = read_json(folder / DEFAULTS_FILE)
    stage, manifest = read_stage(folder)
    if stage != "checkpoint" and manifest is not None:
        values |= manifest.details["video"]
    try:
        return Settings(**values)
    except TypeError as error:
        raise ArtefactError("Default settings are damaged", where=folder / DEFAULTS_FILE, got=error) from error


def link_components(source: Path, target: Path) -> None:
    """Puts all of a pipeline folder but its transformer under another: what a stage leaves as it found it."""
    for name in COMPONENTS:
        link_tree(source / name, target / name)
    for name in ("model_index.json", DEFAULTS_FILE):
        if (source / name).exists():
            shutil.copy(source / name, target / name)


def generate(
    source: str | Path,
    prompt: str,
    *,
    negative_prompt: str = "",
    image: Path | None = None,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    motion_score: int | None = None,
    seed: int = 0,
    backend: str = "auto",
    device: str | None = None,
    dtype: torch.dtype = torch.bfloat16,
    observe: Callable[[Step], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Makes a video from a prompt, and from a first image if there is one.

    source: `nano`, a checkpoint (plain or quantized), an ONNX folder or a bundle. What is left out comes from
    `default_settings`. dtype concerns the text encoder and the torch backend; the same seed gives the same noise on
    every device and backend. `observe` and `progress` as in `denoise.denoise`. Raises InputError before anything is
    loaded where it can be known.
    """
    asked: dict[str, Any] = {"frames": frames, "height": height, "width": width, "steps": steps, "guidance": guidance}
    asked["motion_score"] = motion_score
    settings = replace(default_settings(source), **{k: v for k, v in asked.items() if v is not None})
    folder = find_checkpoint(source)
    noise = initial_noise(_check(folder, settings, seed), seed)
    chosen, target = choose_backend(folder, backend), choose_device(device)
    pixels = None if image is None else read_image(image, settings.height, settings.width)
    _, manifest = read_stage(folder)
    verify_part(folder, manifest, lambda name: name.split("/")[0] in COMPONENTS)
    prompt = with_motion_score(prompt, settings.motion_score)
    scheduler_name = TEXT_TO_VIDEO if pixels is None else IMAGE_TO_VIDEO
    seconds: dict[str, float] = {}

    with _stage("text", seconds):
        [conditioning] = encode_prompts(folder, [prompt], negative_prompt, dtype=dtype, device=target)
    first_frame = None
    if pixels is not None:
        with _stage("image", seconds):
            first_frame = encode_image(load_vae(folder, device=target), pixels)
    with _stage("load", seconds):
        denoiser = open_denoiser(folder, chosen, device=device, dtype=dtype)
    with _stage("denoise", seconds), closing(denoiser):
        at = denoiser.device
        latents = denoise(
            denoiser,
            noise.to(at),
            load_scheduler(folder, scheduler_name, settings.steps, device=at),
            conditioning.text.to(at),
            conditioning.mask.to(at),
            guidance=settings.guidance,
            first_frame=first_frame,
            observe=observe,
            progress=progress,
        ).cpu()
    with _stage("vae", seconds):
        video = to_uint8(decode_latents(load_vae(folder, device=target), latents))

    digest = manifest.digest if manifest else digest_json(digest_folder(folder / "transformer"))
    made = {"prompt": prompt, "negative_prompt": negative_prompt, "image": image and str(image), **asdict(settings)}
    ran = {"seed": seed, "scheduler": scheduler_name, "backend": denoiser.name, "text_dtype": str(dtype)}
    origin = {"source": str(source), "digest": digest, "versions": versions("torch", "diffusers", "transformers")}
    return Result(video, {**made, **ran, **origin, "seconds": seconds})


def _check(folder: Path, settings: Settings, seed: int) -> tuple[int, int, int, int]:
    """The latent shape [channels, frames, height, width] of a request that can be met; InputError for another."""
    settings.check()
    if not 0 <= seed < 2**63:
        raise InputError("Seed out of range", where="seed", expected="0 to 2^63 - 1", got=seed)
    stage, manifest = read_stage(folder)
    if stage != "checkpoint" and manifest is not None:
        made_for = VideoShape(**manifest.details["video"])
        if made_for != settings.shape:
            fix = "leave the size out, or export for this size"
            raise InputError("Size is fixed", where=folder, expected=made_for, got=settings.shape, fix=fix)
    return read_geometry(folder).latent_shape(settings.shape)


@contextmanager
def _stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Times a stage, frees what it left behind, and says in plain words when the GPU's memory was too small."""
    start = time.perf_counter()
    try:
        yield
    except torch.OutOfMemoryError as error:
        fix = "choose fewer frames or a smaller size, or close what else uses the GPU"
        raise BackendError("GPU memory is too small", where=f"stage {name}", got=error, fix=fix) from error
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        seconds[name] = round(time.perf_counter() - start, 3)
