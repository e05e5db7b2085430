"""Moving shapes: the procedural world that the nano model is trained on, with a judge that reads videos back."""

from .judge import Reading, Verdict, judge, read
from .render import masks, render
from .scene import (
    ATTRIBUTES,
    FPS,
    FRAMES,
    HEIGHT,
    SPEEDS,
    WIDTH,
    Content,
    Scene,
    all_contents,
    caption,
    held_out_contents,
    is_held_out,
    parse_caption,
    place,
    prompt,
    sample_scene,
    training_contents,
)

__all__ = [
    "ATTRIBUTES",
    "FPS",
    "FRAMES",
    "HEIGHT",
    "SPEEDS",
    "WIDTH",
    "Content",
    "Reading",
    "Scene",
    "Verdict",
    "all_contents",
    "caption",
    "held_out_contents",
    "is_held_out",
    "judge",
    "masks",
    "parse_caption",
    "place",
    "prompt",
    "read",
    "render",
    "sample_scene",
    "training_contents",
]
