"""Draw moving-shapes scenes: antialiased, batched, on any device."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .scene import FRAMES, HEIGHT, RGB, SHAPES, WIDTH, Scene

# A shape only touches a small window around its centre, so that is all that is computed.
_WINDOW = 64


def _regular(count: int, *radii: float, turn: float = -math.pi / 2) -> list[tuple[float, float]]:
    """Corners on circles of the given radii in turn, the first one at the angle `turn` (up by default)."""
    angles = [turn + 2 * math.pi * i / count for i in range(count)]
    return [(radii[i % len(radii)] * math.cos(a), radii[i % len(radii)] * math.sin(a)) for i, a in enumerate(angles)]


def _cross(arm: float, half_width: float) -> list[tuple[float, float]]:
    a, w = arm, half_width
    return [(-w, -a), (w, -a), (w, -w), (a, -w), (a, w), (w, w), (w, a), (-w, a), (-w, w), (-a, w), (-a, -w), (-w, -w)]


# Corners inside the unit circle, their centroid at the origin.
_POLYGONS = {
    "square": _regular(4, 1.0, turn=-math.pi / 4),
    "triangle": _regular(3, 1.0),
    "star": _regular(10, 1.0, 0.42),
    "cross": _cross(0.94, 0.32),
}
_RING_HOLE = 0.55


def _polygon_distance(points: Tensor, corners: Tensor) -> Tensor:
    """Signed distance of `points` [..., 2] to a polygon with `corners` [n, 2], negative inside.

    Inigo Quilez, "2D distance functions": nearest edge for the size, crossings for the sign.
    """
    edges = corners.roll(1, 0) - corners
    to_corner = points.unsqueeze(-2) - corners
    along = ((to_corner * edges).sum(-1) / (edges * edges).sum(-1)).clamp(0, 1)
    nearest = (to_corner - along.unsqueeze(-1) * edges).square().sum(-1).amin(-1).sqrt()
    y, above, below = points[..., 1:], corners[:, 1], corners.roll(1, 0)[:, 1]
    crosses = (above <= y) != (below <= y)
    left = to_corner[..., 0] * edges[:, 1] - to_corner[..., 1] * edges[:, 0] < 0
    inside = (crosses & (left == (edges[:, 1] > 0))).sum(-1) % 2 == 1
    return torch.where(inside, -nearest, nearest)


def coverage(shape: str, points: Tensor, radius: Tensor) -> Tensor:
    """Share of each pixel that the shape covers, 0..1.

    points: [..., 2], x and y from the shape's centre in pixels; radius: pixels, broadcast against points[..., 0].
    """
    unit = points / radius.unsqueeze(-1)
    if shape in _POLYGONS:
        distance = _polygon_distance(unit, torch.tensor(_POLYGONS[shape], device=points.device))
    else:
        from_centre = torch.hypot(*unit.unbind(-1))
        distance = from_centre - 1
        if shape == "ring":
            distance = torch.maximum(distance, _RING_HOLE - from_centre)
    return (0.5 - distance * radius).clamp(0, 1)


def _colours(names: Sequence[str], device: torch.device) -> Tensor:
    """[len(names), 3] in [-1, 1]."""
    return torch.tensor([RGB[name] for name in names], dtype=torch.float32, device=device) / 127.5 - 1


def masks(
    scenes: Sequence[Scene],
    *,
    frames: int = FRAMES,
    height: int = HEIGHT,
    width: int = WIDTH,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Coverage [batch, frames, height, width] of the shapes, 0..1."""
    start = torch.tensor([scene.start for scene in scenes], device=device)
    velocity = torch.tensor([scene.content.velocity for scene in scenes], device=device)
    radius = torch.tensor([scene.radius for scene in scenes], device=device)
    time = torch.arange(frames, device=device, dtype=torch.float32)
    centre = start[:, None] + velocity[:, None] * time[None, :, None]  # [batch, frames, 2]
    corner = centre.floor().long() - _WINDOW // 2
    offset = torch.arange(_WINDOW, device=device)
    columns, rows = corner[..., 0:1] + offset, corner[..., 1:2] + offset  # [batch, frames, window]
    x = (columns + 0.5 - centre[..., 0:1])[..., None, :].expand(-1, -1, _WINDOW, _WINDOW)
    y = (rows + 0.5 - centre[..., 1:2])[..., :, None].expand(-1, -1, _WINDOW, _WINDOW)
    points = torch.stack([x, y], dim=-1)

    window = torch.zeros(points.shape[:-1], device=device)
    names = [scene.content.shape for scene in scenes]
    for shape in SHAPES:
        chosen = torch.tensor([name == shape for name in names], device=device)
        if any(name == shape for name in names):
            window[chosen] = coverage(shape, points[chosen], radius[chosen, None, None, None])

    pad = _WINDOW  # the window may reach over the frame's edge
    canvas = torch.zeros(len(scenes), frames, (height + 2 * pad) * (width + 2 * pad), device=device)
    rows, columns = rows.clamp(-pad, height + pad - 1) + pad, columns.clamp(-pad, width + pad - 1) + pad
    index = rows[..., :, None] * (width + 2 * pad) + columns[..., None, :]
    canvas.scatter_(2, index.flatten(2), window.flatten(2))
    canvas = canvas.view(len(scenes), frames, height + 2 * pad, width + 2 * pad)
    return canvas[..., pad : pad + height, pad : pad + width]


def render(
    scenes: Sequence[Scene],
    *,
    frames: int = FRAMES,
    height: int = HEIGHT,
    width: int = WIDTH,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Videos [batch, 3, frames, height, width], fp32 in [-1, 1]."""
    device = torch.device(device)
    mask = masks(scenes, frames=frames, height=height, width=width, device=device).unsqueeze(1)
    colour = _colours([scene.content.colour for scene in scenes], device)[:, :, None, None, None]
    background = _colours([scene.content.background for scene in scenes], device)[:, :, None, None, None]
    return background + (colour - background) * mask
