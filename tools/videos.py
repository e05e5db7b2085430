"""The verb `generate`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

from ..runtime.errors import UsageError
from ..runtime.pipeline import generate as run_generate
from ..runtime.video import FPS, check_output, write_video
from .progress import bar


def generate(options: Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Makes a video and writes it with how it was made."""
    check_output(options.out)
    with bar("generate") as progress:
        result = run_generate(
            options.source,
            options.prompt,
            negative_prompt=options.negative_prompt,
            image=options.image,
            frames=frames_of(options),
            height=options.height,
            width=options.width,
            steps=options.steps,
            guidance=options.guidance,
            motion_score=options.motion_score,
            seed=options.seed,
            backend=options.backend,
            device=options.device,
            progress=progress,
        )
    write_video(options.out, result.frames, metadata=result.metadata)
    seconds = sum(result.metadata["seconds"].values())
    frames, height, width, _ = result.frames.shape
    say(f"{options.out}: {frames} frames of {width} x {height} in {seconds:.1f} s, {result.metadata['backend']}")
    return {"out": options.out, **result.metadata}


def frames_of(options: Namespace) -> int | None:
    """Frames asked for by --frames or --seconds. Raises UsageError when both are given."""
    if options.seconds is None:
        return options.frames
    if options.frames is not None:
        raise UsageError("Length given twice", expected="--frames or --seconds", got="both")
    if not 0 < options.seconds <= 3600:
        raise UsageError(
            "Length out of range", where="--seconds", expected="more than 0, at most 3600", got=options.seconds
        )
    # Frames of this model's VAEs are a multiple of 4 or 8 plus one; 5 s at 16 frames a second are 81.
    return round(options.seconds * FPS / 8) * 8 + 1
