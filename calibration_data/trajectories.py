"""Trajectories: what the denoiser sees while it makes calibration videos, recorded once and replayed at will.

Activations of a diffusion model change with the timestep, so ranges taken from noise alone would be wrong. A
trajectory keeps the model inputs of every step of a real denoising run, for the unconditional and the conditional
half, and the reference's velocities.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..runtime.artefact import Manifest, parent_digest, run_stage, versions
from ..runtime.backends.torch_backend import TorchDenoiser, choose_device
from ..runtime.checkpoint import find_checkpoint
from ..runtime.denoise import Denoise, Step, denoise, initial_noise
from ..runtime.errors import ArtefactError, InputError
from ..runtime.pipeline import default_settings
from ..runtime.quantized_linear import QUANT_CONFIG
from ..runtime.schedule import TEXT_TO_VIDEO, load_scheduler
from ..runtime.shapes import VideoShape, read_geometry
from ..runtime.text import Conditioning, encode_pairs, with_motion_score
from .prompts import PROMPTS, Prompt, read_prompts, refuse_heldout

STAGE = "calibrate"
Progress = Callable[[int, int], None]
TENSORS = {"latents": 5, "timesteps": 1, "text": 3, "text_mask": 2, "velocity": 6}


@dataclass(frozen=True)
class Trajectory:
    """One recorded denoising run of S steps. Rows of `text` and of `velocity` are (unconditional, conditional).

    latents: fp32 [S, channels, frames, height, width], the model's input. timesteps: fp32 [S], in 0..1000.
    text: [2, text tokens, caption channels]. text_mask: [2, text tokens]. velocity: fp32 [S, 2, channels, frames,
    height, width], before guidance. `prompt` is as encoded, with its motion score.
    """

    latents: Tensor
    timesteps: Tensor
    text: Tensor
    text_mask: Tensor
    velocity: Tensor
    prompt: str
    seed: int
    steps: int
    guidance: float

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Model inputs (latents [2, ...], timesteps [2], text, text mask) of every step, both halves together."""
        for latents, timestep in zip(self.latents, self.timesteps, strict=True):
            yield latents.expand(2, *latents.shape), timestep.expand(2), self.text, self.text_mask

    def save(self, path: Path) -> None:
        """Writes a safetensors file; what is no tensor goes into its metadata."""
        values = asdict(self)
        tensors = {name: values.pop(name).contiguous() for name in TENSORS}
        save_file(tensors, path, {"trajectory": json.dumps(values)})


def load_trajectory(path: Path) -> Trajectory:
    """Reads a file of `Trajectory.save`. Raises ArtefactError for one that is damaged or incomplete."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
            values: dict[str, Any] = json.loads((file.metadata() or {}).get("trajectory", "{}"))
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ArtefactError("Trajectory cannot be read", where=path, got=error, fix="calibrate again") from error
    expected = {f.name for f in fields(Trajectory)}
    if expected != tensors.keys() | values.keys():
        got = ", ".join(sorted(tensors.keys() | values.keys()))
        raise ArtefactError("Not a trajectory", where=path, expected=", ".join(sorted(expected)), got=got)
    for name, dims in TENSORS.items():
        if tensors[name].ndim != dims:
            shape = list(tensors[name].shape)
            raise ArtefactError("Tensor has the wrong shape", where=f"{path}: {name}", expected=f"{dims}-D", got=shape)
    return Trajectory(**tensors, **values)


def read_trajectories(folder: Path) -> Iterator[Trajectory]:
    """The trajectories of a calibration folder in order, one in memory at a time."""
    for path in sorted(folder.glob("trajectory-*.safetensors")):
        yield load_trajectory(path)


def record(
    denoiser: Denoise,
    noise: Tensor,
    scheduler: Any,
    conditioning: Conditioning,
    *,
    guidance: float,
    prompt: str,
    seed: int,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Trajectory:
    """Denoises `noise` [1, channels, frames, height, width] and keeps what the denoiser read and answered.

    `scheduler` is ready for its steps (`schedule.load_scheduler`). Raises InputError for a guidance of 1 or less, where
    the unconditional half would not run.
    """
    if guidance <= 1:
        raise InputError("Calibration needs both halves", where="guidance", expected="more than 1", got=guidance)
    latents, timesteps, velocity = [], [], []

    def observe(step: Step) -> None:
        assert step.uncond is not None
        latents.append(step.latents.cpu())
        timesteps.append(step.timestep)
        velocity.append(torch.cat([step.uncond, step.cond]).cpu())

    text, mask = conditioning.text.to(device), conditioning.mask.to(device)
    denoise(denoiser, noise.to(device), scheduler, text, mask, guidance=guidance, observe=observe, progress=progress)
    return Trajectory(
        latents=torch.cat(latents),
        timesteps=torch.tensor(timesteps),
        text=text.cpu(),
        text_mask=mask.cpu(),
        velocity=torch.stack(velocity),
        prompt=prompt,
        seed=seed,
        steps=len(timesteps),
        guidance=guidance,
    )


def calibrate(
    checkpoint: str | Path,
    out: Path,
    *,
    prompts: Path | None = None,
    samples: int = 16,
    steps: int | None = None,
    shape: VideoShape | None = None,
    guidance: float | None = None,
    seed: int = 0,
    device: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Stage `calibrate`: records the trajectories of the first `samples` prompts of a file into the folder `out`.

    What is left out comes from the package's calibration prompts and the checkpoint's default settings; a smaller
    `shape` and fewer `steps` suit smaller machines. Sample n starts from the noise of `seed` + n. The reference runs in
    bf16 on a GPU and in fp32 on the CPU. `progress(done, total)` counts denoising steps. Raises InputError for held-out
    prompts, for fewer prompts than samples, and for a quantized checkpoint, which is no reference.
    """
    folder = find_checkpoint(checkpoint)
    if (folder / "transformer" / QUANT_CONFIG).exists():
        fix = "calibrate the checkpoint that it was made from"
        raise InputError("Checkpoint is quantized already", where=folder, expected="a plain checkpoint", fix=fix)
    defaults = default_settings(folder)
    steps, shape = steps or defaults.steps, shape or defaults.shape
    guidance = defaults.guidance if guidance is None else guidance
    path = prompts or PROMPTS
    chosen = _choose(path, samples)
    latent_shape = read_geometry(folder).latent_shape(shape)
    if not 1 <= steps <= 1000:
        raise InputError("Steps out of range", where="steps", expected="1 to 1000", got=steps)
    if guidance <= 1:
        raise InputError("Calibration needs both halves", where="guidance", expected="more than 1", got=guidance)
    target = choose_device(device)
    dtype = torch.float32 if target.type == "cpu" else torch.bfloat16

    settings = {"video": asdict(shape), "steps": steps, "guidance": guidance, "seed": seed, "dtype": str(dtype)}
    inputs = {
        "checkpoint": parent_digest(folder),
        "prompts": [asdict(p) for p in chosen],
        **settings,
        "versions": versions("torch", "diffusers", "transformers"),
    }

    def produce(folder_out: Path) -> dict[str, Any]:
        pairs = [(with_motion_score(p.prompt, p.motion_score), p.negative_prompt) for p in chosen]
        conditionings = encode_pairs(folder, pairs, dtype=dtype, device=target)
        denoiser = TorchDenoiser(folder, device=str(target), dtype=dtype)
        for number, pair in enumerate(pairs):
            trajectory = record(
                denoiser,
                initial_noise(latent_shape, seed + number),
                load_scheduler(folder, TEXT_TO_VIDEO, steps, device=target),
                conditionings[pair],
                guidance=guidance,
                prompt=pair[0],
                seed=seed + number,
                device=target,
                progress=progress and partial(_report, progress, number * steps, samples * steps),
            )
            trajectory.save(folder_out / f"trajectory-{number:04}.safetensors")
        return {"prompts": [asdict(p) for p in chosen], "samples": len(chosen), **settings}

    return run_stage(out, STAGE, inputs, produce, force=force)


def _report(progress: Progress, before: int, total: int, done: int, _: int) -> None:
    progress(before + done, total)


def _choose(path: Path, samples: int) -> list[Prompt]:
    """The first `samples` prompts of a file, none of them held out."""
    available = read_prompts(path)
    refuse_heldout(available, path)
    if not 1 <= samples <= len(available):
        fix = "ask for fewer samples or add prompts"
        raise InputError(
            "Samples out of range", where=path, expected=f"1 to its {len(available)} prompts", got=samples, fix=fix
        )
    return available[:samples]
