"""ReLU linear attention with rotary positions, the O(tokens) core of SANA-Video (arXiv 2509.24695, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

ROPE_THETA = 10000.0
DENOMINATOR_EPS = 1e-8


def rope_axes(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head that rotate with (time, height, width); 112 gives (40, 36, 36)."""
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial, spatial


def rope_table(head_dim: int, grid: tuple[int, int, int], first_frame: int = 0) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every token's rotation.

    `grid` is (frames, height, width) in tokens, `first_frame` the absolute index of frame 0 (long video continues
    counting across chunks). Returns two fp32 tensors [frames * height * width, head_dim / 2], computed in fp64.
    """
    positions = [torch.arange(n, dtype=torch.float64) for n in grid]
    positions[0] = positions[0] + first_frame
    angles = []
    for axis, (position, dim) in enumerate(zip(positions, rope_axes(head_dim), strict=True)):
        frequency = ROPE_THETA ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        shape = [1, 1, 1, dim // 2]
        shape[axis] = grid[axis]
        angles.append(torch.outer(position, frequency).view(shape).expand(*grid, dim // 2))
    angle = torch.cat(angles, dim=-1).flatten(0, 2)
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates interleaved channel pairs of x [batch, tokens, heads, head_dim] by the angles of `rope_table`."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def linear_attention(q: Tensor, k: Tensor, v: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Attention without a softmax: out_n = (sum_m v_m kr_m^T) qr_n / (sum_m k_m . q_n + eps).

    q, k, v: [batch, tokens, heads, head_dim], any dtype; computed and returned in fp32, since the sums run over tens
    of thousands of tokens. `kr`, `qr` are rotated after the ReLU; the denominator uses the un-rotated values, so
    it stays non-negative. The cost is linear in tokens: two head_dim x head_dim products a token.
    """
    q, k, v = q.float().relu(), k.float().relu(), v.float()
    q_rotated, k_rotated = rotate(q, *rope), rotate(k, *rope)
    state = torch.einsum("bnhd,bnhe->bhde", k_rotated, v)
    numerator = torch.einsum("bnhd,bhde->bnhe", q_rotated, state)
    denominator = torch.einsum("bnhd,bhd->bnh", q, k.sum(dim=1))
    return numerator / (denominator + DENOMINATOR_EPS).unsqueeze(-1)
