"""Read shape, colour, background, direction and speed back from a video, by arithmetic alone.

The background is the border's median colour. Pixels far from it are the shape: their median is its colour, their
centroid its track, and the mask is compared with drawn templates of the same area. A video that shows no single,
lasting shape reads as None, which agrees with nothing.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...runtime.errors import InputError
from .render import coverage
from .scene import BACKGROUNDS, COLOURS, DIRECTIONS, RADII, RGB, SHAPES, SPEEDS, Content

_BORDER = 3  # pixels
_MIN_CONTRAST = 0.3  # distance of shape and background in RGB of [-1, 1]; the closest pair of the world has 0.8
_MAX_COLOUR_ERROR = 28.0  # CIE Lab distance; the closest two colours of the world are 40 apart
_MIN_OVERLAP = 0.7  # of the mask with the best template
_STILL = 0.4  # pixels per frame, half of the slowest speed
_SHAPE_FRAMES = 3  # frames whose mask is compared with the templates


@dataclass(frozen=True)
class Reading:
    """What a video shows; None where nothing of the world is recognised.

    `motion_score` is 0 for a still shape. `velocity` (x, y) is in pixels per frame, `overlap` the intersection over
    union of the mask with the template of `shape`.
    """

    shape: str | None = None
    colour: str | None = None
    background: str | None = None
    direction: str | None = None
    motion_score: int | None = None
    velocity: tuple[float, float] | None = None
    overlap: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """A reading held against the content that was asked for."""

    reading: Reading
    shape: bool
    colour: bool
    background: bool
    direction: bool
    speed: bool

    @property
    def adherence(self) -> bool:
        """Everything right but the speed, which is told apart less surely and counted on its own."""
        return self.shape and self.colour and self.background and self.direction


def judge(video: Tensor | np.ndarray, content: Content) -> Verdict:
    """Hold a video (see `read`) against what its caption says."""
    reading = read(video)
    expected_score = 0 if content.direction == "still" else content.motion_score
    return Verdict(
        reading,
        shape=reading.shape == content.shape,
        colour=reading.colour == content.colour,
        background=reading.background == content.background,
        direction=reading.direction == content.direction,
        speed=reading.motion_score == expected_score,
    )


def read(video: Tensor | np.ndarray) -> Reading:
    """Read one video.

    video: a tensor [3, frames, height, width] in [-1, 1], or an array [frames, height, width, 3] that is uint8 or
    float in [0, 1]. NaN and infinities read as nothing. Raises InputError for another layout.
    """
    pixels = _pixels(video)
    if not torch.isfinite(pixels).all():
        return Reading()
    border = _border(pixels)
    background = border.median(dim=0).values
    found_background = _nearest(background, BACKGROUNDS)

    red, green, blue = (pixels - background).unbind(-1)
    distance = (red * red + green * green + blue * blue).sqrt()
    # The far tail is the shape's inside: even the smallest ring covers 2% of a frame.
    contrast = distance.flatten().kthvalue(int(0.99 * distance.numel())).values
    if contrast < _MIN_CONTRAST:
        return Reading(background=found_background)
    inside = pixels[distance > 0.7 * contrast]
    colour = inside.median(dim=0).values
    axis = (colour - background) / (colour - background).square().sum()
    mask = _denoise((pixels - background) @ axis)

    area = mask.sum(dim=(1, 2))
    typical = area.median()
    if (area < 0.5 * typical).any() or (area > 2.0 * typical).any():
        return Reading(background=found_background, colour=_nearest(colour, COLOURS))
    track = _centroids(mask)
    velocity = _velocity(track)
    shape, overlap = _match_shape(mask, track)
    return Reading(
        shape=shape,
        colour=_nearest(colour, COLOURS),
        background=found_background,
        direction=_direction(velocity),
        motion_score=_motion_score(velocity),
        velocity=velocity,
        overlap=overlap,
    )


def _pixels(video: Tensor | np.ndarray) -> Tensor:
    """[frames, height, width, 3], fp32 in [-1, 1]."""
    if isinstance(video, Tensor) and video.ndim == 4 and video.shape[0] == 3:
        return video.detach().float().cpu().permute(1, 2, 3, 0)
    if isinstance(video, np.ndarray) and video.ndim == 4 and video.shape[-1] == 3:
        scale = 127.5 if video.dtype == np.uint8 else 0.5
        return torch.from_numpy(video.astype(np.float32) / scale - 1)
    raise InputError(
        "cannot read this video",
        where="moving-shapes judge",
        expected="a tensor [3, frames, height, width] or an array [frames, height, width, 3]",
        got=f"{type(video).__name__} {tuple(getattr(video, 'shape', ()))}",
    )


def _denoise(mask: Tensor) -> Tensor:
    """3x3 mean, then a contrast stretch about one half that takes the edges back to about a pixel: 0..1."""
    smooth = F.avg_pool2d(mask[:, None], 3, stride=1, padding=1, count_include_pad=False)[:, 0]
    return ((smooth - 0.5) * 2 + 0.5).clamp(0, 1)


def _border(pixels: Tensor) -> Tensor:
    """The pixels [n, 3] of all frames' edges."""
    b = _BORDER
    sides = (pixels[:, :b], pixels[:, -b:], pixels[:, :, :b], pixels[:, :, -b:])
    return torch.cat([side.reshape(-1, 3) for side in sides])


def _lab(rgb: Tensor) -> Tensor:
    """CIE Lab (D65) of sRGB [..., 3] in [-1, 1]."""
    srgb = (rgb.double().clamp(-1, 1) + 1) / 2
    linear = torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_xyz = torch.tensor(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    ).double()
    xyz = linear @ to_xyz.T / torch.tensor([0.95047, 1.0, 1.08883]).double()
    f = torch.where(xyz > (6 / 29) ** 3, xyz.clamp(min=1e-9) ** (1 / 3), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-1)


def _nearest(rgb: Tensor, names: tuple[str, ...]) -> str | None:
    known = _lab(torch.tensor([RGB[name] for name in names]) / 127.5 - 1)
    errors = (known - _lab(rgb)).norm(dim=-1)
    best = int(errors.argmin())
    return names[best] if errors[best] <= _MAX_COLOUR_ERROR else None


def _centroids(mask: Tensor) -> Tensor:
    """[frames, 2], x and y in pixels."""
    _, height, width = mask.shape
    area = mask.sum(dim=(1, 2))
    x = (mask.sum(dim=1) * (torch.arange(width) + 0.5)).sum(-1) / area
    y = (mask.sum(dim=2) * (torch.arange(height) + 0.5)).sum(-1) / area
    return torch.stack([x, y], dim=-1)


def _velocity(track: Tensor) -> tuple[float, float]:
    """Median slope over half the clip (Theil-Sen with one lag), pixels per frame."""
    lag = max(1, len(track) // 2)
    slope = ((track[lag:] - track[:-lag]) / lag).median(dim=0).values if len(track) > 1 else torch.zeros(2)
    return float(slope[0]), float(slope[1])


def _direction(velocity: tuple[float, float]) -> str:
    speed = math.hypot(*velocity)
    if speed < _STILL:
        return "still"
    moving = [name for name in DIRECTIONS if name != "still"]
    return max(moving, key=lambda name: velocity[0] * DIRECTIONS[name][0] + velocity[1] * DIRECTIONS[name][1])


def _motion_score(velocity: tuple[float, float]) -> int:
    speed = math.hypot(*velocity)
    return 0 if speed < _STILL else min(SPEEDS, key=lambda score: abs(SPEEDS[score] - speed))


@lru_cache
def _unit_area(shape: str) -> float:
    """Area of a shape of radius 1."""
    size, radius = 256, 100.0
    axis = torch.arange(size) + 0.5 - size / 2
    points = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)
    return float(coverage(shape, points, torch.tensor(radius)).sum()) / radius**2


def _match_shape(mask: Tensor, track: Tensor) -> tuple[str | None, float]:
    """The template that overlaps best over a few frames, each drawn at the mask's centroid with the mask's area."""
    chosen = torch.linspace(0, len(mask) - 1, min(_SHAPE_FRAMES, len(mask))).round().long()
    _, height, width = mask.shape
    grid = torch.meshgrid(torch.arange(width) + 0.5, torch.arange(height) + 0.5, indexing="xy")
    points = torch.stack(grid, dim=-1)[None] - track[chosen, None, None]
    seen = mask[chosen]
    area = seen.sum(dim=(1, 2))
    overlaps = {}
    for shape in SHAPES:
        radius = (area / _unit_area(shape)).sqrt().clamp(0.7 * RADII[0], 1.3 * RADII[1])
        template = coverage(shape, points, radius[:, None, None])
        union = torch.maximum(seen, template).sum(dim=(1, 2))
        overlaps[shape] = float((torch.minimum(seen, template).sum(dim=(1, 2)) / union).mean())
    best = max(overlaps, key=lambda shape: overlaps[shape])
    return (best if overlaps[best] >= _MIN_OVERLAP else None), overlaps[best]
