"""The moving-shapes world: what a scene is, the captions that describe it, and which captions training never sees."""

import hashlib
import itertools
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ...runtime.errors import InputError

HEIGHT, WIDTH, FRAMES, FPS = 128, 192, 33, 16

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")

# sRGB, 8 bit. A name means the same colour on a shape and on a background.
RGB = {
    "red": (215, 35, 40),
    "green": (30, 150, 60),
    "blue": (45, 75, 215),
    "yellow": (245, 225, 50),
    "orange": (245, 130, 25),
    "purple": (170, 40, 170),
    "cyan": (60, 215, 230),
    "white": (245, 245, 245),
    "black": (18, 18, 22),
    "gray": (120, 120, 125),
}
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "cyan", "white")
BACKGROUNDS = ("black", "gray", "white", "red", "green", "blue")

# Unit steps in pixels: x grows to the right, y grows downwards.
_DIAGONAL = math.sqrt(0.5)
DIRECTIONS = {
    "right": (1.0, 0.0),
    "left": (-1.0, 0.0),
    "down": (0.0, 1.0),
    "up": (0.0, -1.0),
    "down-right": (_DIAGONAL, _DIAGONAL),
    "down-left": (-_DIAGONAL, _DIAGONAL),
    "up-right": (_DIAGONAL, -_DIAGONAL),
    "up-left": (-_DIAGONAL, -_DIAGONAL),
    "still": (0.0, 0.0),
}
PHRASES = {
    "right": "moves left to right",
    "left": "moves right to left",
    "down": "moves top to bottom",
    "up": "moves bottom to top",
    "down-right": "moves from the top left to the bottom right",
    "down-left": "moves from the top right to the bottom left",
    "up-right": "moves from the bottom left to the top right",
    "up-left": "moves from the bottom right to the top left",
    "still": "stays still",
}
SPEEDS = {10: 0.8, 30: 1.5, 50: 2.2}  # motion score -> pixels per frame

RADII = (18.0, 26.0)  # pixels; the 8x VAE and 2x2 patches still resolve the corners at 18
MARGIN = 2.0  # pixels between the shape's bounding circle and the frame's edge
HELD_OUT_PERCENT = 8


@dataclass(frozen=True)
class Content:
    """What a caption says. A still shape may carry any motion score: it stays where it is."""

    shape: str
    colour: str
    background: str
    direction: str
    motion_score: int

    def __post_init__(self) -> None:
        for field, known in ATTRIBUTES.items():
            if getattr(self, field) not in known:
                raise InputError(
                    f"unknown {field}",
                    where="moving-shapes content",
                    expected=", ".join(map(str, known)),
                    got=str(getattr(self, field)),
                )
        if self.colour == self.background:
            raise InputError(
                "the shape would be invisible",
                where="moving-shapes content",
                expected="a colour other than the background's",
                got=f"{self.colour} on {self.background}",
            )

    @property
    def velocity(self) -> tuple[float, float]:
        """(x, y) in pixels per frame."""
        x, y = DIRECTIONS[self.direction]
        speed = SPEEDS[self.motion_score]
        return x * speed, y * speed


ATTRIBUTES: dict[str, tuple[str | int, ...]] = {
    "shape": SHAPES,
    "colour": COLOURS,
    "background": BACKGROUNDS,
    "direction": tuple(DIRECTIONS),
    "motion_score": tuple(SPEEDS),
}


@dataclass(frozen=True)
class Scene:
    """One video: its content and what the caption leaves open.

    `start` is the shape's centre (x, y) in frame 0 and `radius` that of its bounding circle, in pixels.
    """

    content: Content
    start: tuple[float, float]
    radius: float


def prompt(content: Content) -> str:
    """The caption without its motion score, as prompt files hold it."""
    article = "an" if content.colour[0] in "aeiou" else "a"
    return (
        f"{article} {content.colour} {content.shape} {PHRASES[content.direction]} on a {content.background} background."
    )


def caption(content: Content) -> str:
    """The whole caption, as the text encoder reads it."""
    return f"{prompt(content)} motion score: {content.motion_score}."


_CAPTION = re.compile(
    rf"an? (?P<colour>{'|'.join(COLOURS)}) (?P<shape>{'|'.join(SHAPES)}) (?P<phrase>{'|'.join(PHRASES.values())})"
    rf" on a (?P<background>{'|'.join(BACKGROUNDS)}) background\.(?: motion score: (?P<score>\d+)\.)?"
)


def parse_caption(text: str, motion_score: int = 30) -> Content:
    """Inverse of `caption` and, with the motion score given, of `prompt`. Case and outer blanks don't matter.

    Raises InputError where the text isn't of the grammar.
    """
    match = _CAPTION.fullmatch(text.strip().lower())
    if match is None:
        raise InputError(
            "not a moving-shapes caption",
            where="parse_caption",
            expected='e.g. "a red circle moves left to right on a blue background. motion score: 30."',
            got=repr(text),
        )
    direction = next(name for name, phrase in PHRASES.items() if phrase == match["phrase"])
    score = int(match["score"]) if match["score"] else motion_score
    return Content(match["shape"], match["colour"], match["background"], direction, score)


def all_contents() -> Iterator[Content]:
    """Every content that has a caption, in a fixed order."""
    for shape, colour, background, direction, score in itertools.product(
        SHAPES, COLOURS, BACKGROUNDS, DIRECTIONS, SPEEDS
    ):
        if colour != background:
            yield Content(shape, colour, background, direction, score)


def is_held_out(content: Content) -> bool:
    """Whether training must not see this combination. A hash decides, so the split needs no file."""
    digest = hashlib.sha256(caption(content).encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100 < HELD_OUT_PERCENT


def training_contents() -> list[Content]:
    return [content for content in all_contents() if not is_held_out(content)]


def held_out_contents() -> list[Content]:
    return [content for content in all_contents() if is_held_out(content)]


def place(
    content: Content, generator: random.Random, height: int = HEIGHT, width: int = WIDTH, frames: int = FRAMES
) -> Scene:
    """Draw a size and a start so that the shape stays inside the frame for the whole clip.

    Raises InputError where the path is longer than the frame allows.
    """
    radius = generator.uniform(*RADII)
    start = []
    for extent, step in zip((width, height), content.velocity, strict=True):
        path = step * (frames - 1)
        low = radius + MARGIN + max(0.0, -path)
        high = extent - radius - MARGIN - max(0.0, path)
        if low > high:
            raise InputError(
                "the shape would leave the frame",
                where=f"{width}x{height} pixels, {frames} frames",
                expected=f"room for a path of {abs(path):.0f} pixels and a radius of {radius:.0f}",
                got=caption(content),
                fix="use a larger frame, fewer frames or a lower motion score",
            )
        start.append(generator.uniform(low, high))
    return Scene(content, (start[0], start[1]), radius)


def sample_scene(generator: random.Random, contents: list[Content] | None = None) -> Scene:
    """A random scene of the given contents (default: those of training), every content equally likely."""
    return place(generator.choice(contents or training_contents()), generator)
