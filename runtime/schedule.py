"""Schedulers by name: which of diffusers' solvers steps the latents, with the checkpoint's own settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .checkpoint import read_json
from .errors import ArtefactError, InputError

TEXT_TO_VIDEO = "dpm-solver++"
IMAGE_TO_VIDEO = "flow-match-euler"
SCHEDULERS = (TEXT_TO_VIDEO, IMAGE_TO_VIDEO)


def load_scheduler(checkpoint: Path, name: str, steps: int, *, device: str | torch.device = "cpu") -> Any:
    """A diffusers scheduler of a checkpoint folder, ready for `steps` steps.

    `dpm-solver++` is the checkpoint's own DPMSolverMultistep (second order, over flow sigmas). `flow-match-euler` has
    the same flow shift, which that class calls `shift`: it ignores `flow_shift`. Raises InputError for an unknown name
    and ArtefactError when the checkpoint's scheduler is another one.
    """
    from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

    path = checkpoint / "scheduler" / "scheduler_config.json"
    config = read_json(path)
    match name:
        case "dpm-solver++":
            got = f"{config.get('_class_name')}, {config.get('algorithm_type')}"
            if got != "DPMSolverMultistepScheduler, dpmsolver++":
                expected = "DPMSolverMultistepScheduler, dpmsolver++"
                raise ArtefactError("Checkpoint has another scheduler", where=path, expected=expected, got=got)
            scheduler = DPMSolverMultistepScheduler.from_config(config)
        case "flow-match-euler":
            shift = config.get("flow_shift", config.get("shift"))
            if shift is None:
                raise ArtefactError("Scheduler has no flow shift", where=path, expected="flow_shift or shift")
            scheduler = FlowMatchEulerDiscreteScheduler.from_config(config, shift=shift)
        case _:
            raise InputError("Unknown scheduler", expected=", ".join(SCHEDULERS), got=name)
    scheduler.set_timesteps(steps, device=device)
    return scheduler
