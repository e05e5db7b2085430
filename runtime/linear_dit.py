"""LinearDiT: SANA-Video's transformer with every matrix product as a Linear, so that all of it can be quantized.

It computes what diffusers' `SanaVideoTransformer3DModel` computes, with four exact rewrites: the patch embedding and
the 1x1 convolutions are Linears on channels-last tokens; the (3, 1) temporal convolution is one Linear that makes
three taps, which are shifted by a frame and added; q/k/v share one Linear; timesteps come per batch or per frame and
are expanded to tokens inside. Weights and activations carry the model dtype (bf16 or fp32); LayerNorm and RMSNorm
statistics, modulation, residual sums, the linear attention and the RoPE table are fp32 in any dtype.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import InputError
from .linear_attention import linear_attention, rope_table

TIMESTEP_CHANNELS = 256
QK_NORM_EPS = 1e-5
MASK_BIAS = -10000.0
OUTPUT_NORM_EPS = 1e-6

Grid = tuple[int, int, int]
Rope = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class DiTConfig:
    """Geometry of a SANA-Video transformer; the names are those of its diffusers `config.json`."""

    in_channels: int
    out_channels: int
    num_attention_heads: int
    attention_head_dim: int
    num_layers: int
    num_cross_attention_heads: int
    cross_attention_head_dim: int
    caption_channels: int
    mlp_ratio: float
    patch_size: tuple[int, int, int]
    norm_eps: float = 1e-6
    attention_bias: bool = False
    rope_max_seq_len: int = 1024

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def hidden(self) -> int:
        """Channels of the feed-forward after its gate."""
        return int(self.mlp_ratio * self.width)

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> DiTConfig:
        """Reads a diffusers `transformer/config.json`. Raises InputError for a variant this module does not compute."""
        for key, computed in _COMPUTED_VARIANT.items():
            if config.get(key, computed) != computed:
                raise InputError("Unsupported transformer variant", where=key, expected=computed, got=config[key])
        required = [f.name for f in fields(cls) if f.default is MISSING]
        if missing := [name for name in required if config.get(name) is None]:
            raise InputError("Incomplete transformer config", where="config.json", expected=", ".join(missing))
        values = {f.name: config[f.name] for f in fields(cls) if f.name in config}
        result = cls(**values | {"patch_size": tuple(values["patch_size"])})
        if result.num_cross_attention_heads * result.cross_attention_head_dim != result.width:
            cross = f"{result.num_cross_attention_heads} x {result.cross_attention_head_dim}"
            raise InputError("Unsupported cross-attention width", where="config.json", expected=result.width, got=cross)
        if result.patch_size[0] != 1:
            raise InputError("Unsupported temporal patch", where="patch_size", expected=1, got=result.patch_size[0])
        return result


_COMPUTED_VARIANT = {
    "guidance_embeds": False,
    "norm_elementwise_affine": False,
    "qk_norm": "rms_norm_across_heads",
    "interpolation_scale": None,
}


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, fp32 statistics, result in the input's dtype."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return (y * self.weight.float()).to(x.dtype)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LayerNorm without affine, then x * (1 + scale) + shift: fp32 inside, the dtype of x outside."""
    y = F.layer_norm(x.float(), (x.shape[-1],), eps=eps)
    return (y * (1 + scale) + shift).to(x.dtype)


def gated_residual(x: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    """x + gate * update with the sum in fp32, rounded once to the dtype of x."""
    return (x.float() + gate * update.float()).to(x.dtype)


class TimestepEmbedding(nn.Module):
    """Sinusoidal timestep -> embedding [.., width] and its six modulation vectors [.., 6, width], in fp32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(TIMESTEP_CHANNELS, width)
        self.linear_2 = nn.Linear(width, width)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        half = TIMESTEP_CHANNELS // 2
        steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
        angle = timesteps.float().unsqueeze(-1) * torch.exp(-math.log(10000.0) * steps / half)
        wave = torch.cat((angle.cos(), angle.sin()), dim=-1).to(self.linear_1.weight.dtype)
        embedding = self.linear_2(F.silu(self.linear_1(wave)))
        return embedding.float(), self.modulation(F.silu(embedding)).float().unflatten(-1, (6, -1))


class CaptionProjection(nn.Module):
    """Text encoder states [batch, text tokens, caption channels] -> width."""

    def __init__(self, caption_channels: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(caption_channels, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, text: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(text), approximate="tanh"))


class LinearSelfAttention(nn.Module):
    """ReLU linear self-attention over all tokens, q/k norms across heads, one Linear for q, k and v."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.to_qkv = nn.Linear(config.width, 3 * config.width, bias=config.attention_bias)
        self.norm_q = RMSNorm(config.width, QK_NORM_EPS)
        self.norm_k = RMSNorm(config.width, QK_NORM_EPS)
        self.to_out = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = self.to_qkv(x).flatten(1, 2).chunk(3, dim=-1)
        q, k = self.norm_q(q), self.norm_k(k)
        q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in (q, k, v))
        attended = linear_attention(q, k, v, rope).flatten(-2).to(x.dtype)
        return self.to_out(attended.unflatten(1, x.shape[1:3]))


class CrossAttention(nn.Module):
    """Softmax attention from video tokens to text tokens."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.heads = config.num_cross_attention_heads
        self.to_q = nn.Linear(config.width, config.width)
        self.to_kv = nn.Linear(config.width, 2 * config.width)
        self.norm_q = RMSNorm(config.width, QK_NORM_EPS)
        self.norm_k = RMSNorm(config.width, QK_NORM_EPS)
        self.to_out = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, text: Tensor, text_bias: Tensor) -> Tensor:
        q = self.norm_q(self.to_q(x).flatten(1, 2))
        k, v = self.to_kv(text).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, self.norm_k(k), v))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=text_bias)
        return self.to_out(attended.transpose(1, 2).flatten(-2).unflatten(1, x.shape[1:3]))


class FeedForward(nn.Module):
    """GLUMBTempConv: expand, 3x3 depthwise over space, SiLU gate, project, then add a three-tap mix over time."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.conv_inverted = nn.Linear(config.width, 2 * config.hidden)
        self.conv_depth = nn.Conv2d(2 * config.hidden, 2 * config.hidden, 3, padding=1, groups=2 * config.hidden)
        self.conv_point = nn.Linear(config.hidden, config.width, bias=False)
        self.conv_temp = nn.Linear(config.width, 3 * config.width, bias=False)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        batch, frames = x.shape[:2]
        y = F.silu(self.conv_inverted(x)).flatten(0, 1).unflatten(1, (height, width))
        y = self.conv_depth(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        value, gate = y.chunk(2, dim=-1)
        y = self.conv_point((value * F.silu(gate)).flatten(1, 2).unflatten(0, (batch, frames)))
        from_previous, from_same, from_next = self.conv_temp(y).float().chunk(3, dim=-1)
        y = y.float() + from_same
        y = y + F.pad(from_previous[:, :-1], (0, 0, 0, 0, 1, 0)) + F.pad(from_next[:, 1:], (0, 0, 0, 0, 0, 1))
        return y.to(x.dtype)


class Block(nn.Module):
    """One transformer block: linear self-attention, cross-attention on the un-normalised stream, feed-forward."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.attn1 = LinearSelfAttention(config)
        self.attn2 = CrossAttention(config)
        self.ff = FeedForward(config)
        self.scale_shift_table = nn.Parameter(torch.randn(6, config.width) / config.width**0.5)

    def forward(self, x: Tensor, modulation: Tensor, text: Tensor, text_bias: Tensor, rope: Rope, grid: Grid) -> Tensor:
        table = self.scale_shift_table.float() + modulation
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = table.unbind(dim=-2)
        x = gated_residual(x, gate_msa, self.attn1(modulated_norm(x, shift_msa, scale_msa, self.eps), rope))
        x = x + self.attn2(x, text, text_bias)
        return gated_residual(x, gate_mlp, self.ff(modulated_norm(x, shift_mlp, scale_mlp, self.eps), *grid[1:]))


class LinearDiT(nn.Module):
    """The denoiser. See the module docstring; `quantized_linear.load_denoiser_model` makes one from a checkpoint."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.width, math.prod(config.patch_size)
        self.patch_embedding = nn.Linear(config.in_channels * patch, width)
        self.time_embed = TimestepEmbedding(width)
        self.caption_projection = CaptionProjection(config.caption_channels, width)
        self.caption_norm = RMSNorm(width, QK_NORM_EPS)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.proj_out = nn.Linear(width, config.out_channels * patch)
        self._ropes: dict[tuple[Grid, torch.device], Rope] = {}

    @property
    def dtype(self) -> torch.dtype:
        """The carrier dtype: weights and activations outside the fp32 islands."""
        return self.scale_shift_table.dtype

    def forward(self, latents: Tensor, timesteps: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """Velocity of the flow at `latents`.

        latents: [batch, channels, frames, height, width] in latent cells. timesteps: [batch], or [batch, frames] for
        image-to-video, in 0..1000. text: [batch, text tokens, caption channels]. text_mask: [batch, text tokens],
        1 keeps a token. Returns [batch, out channels, frames, height, width] in the carrier dtype.
        """
        patch = self.config.patch_size
        frames, height, width = latents.shape[2:]
        grid = (frames, height // patch[1], width // patch[2])
        x = self.patch_embedding(patchify(latents.to(self.dtype), patch))
        if timesteps.ndim == 1:
            timesteps = timesteps[:, None]
        embedding, modulation = self.time_embed(timesteps[:, :, None])
        text = self.caption_norm(self.caption_projection(text.to(self.dtype)))
        text_bias = ((1 - text_mask.to(self.dtype)) * MASK_BIAS)[:, None, None, :]
        rope = self.rope(grid, x.device)
        for block in self.blocks:
            x = block(x, modulation, text, text_bias, rope, grid)
        shift, scale = (self.scale_shift_table.float() + embedding.unsqueeze(-2)).unbind(dim=-2)
        return unpatchify(self.proj_out(modulated_norm(x, shift, scale, OUTPUT_NORM_EPS)), grid, patch)

    def rope(self, grid: Grid, device: torch.device) -> Rope:
        """The fp32 rotation table of a token grid (frames, height, width), computed once a grid and device."""
        if (grid, device) not in self._ropes:
            cos, sin = rope_table(self.config.attention_head_dim, grid)
            self._ropes[grid, device] = cos.to(device), sin.to(device)
        return self._ropes[grid, device]


def patchify(latents: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """[batch, channels, frames, height, width] -> tokens [batch, frames, cells, channels * patch volume]."""
    batch, channels, frames, height, width = latents.shape
    _, ph, pw = patch
    x = latents.reshape(batch, channels, frames, height // ph, ph, width // pw, pw)
    return x.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(2, 3)


def unpatchify(tokens: Tensor, grid: Grid, patch: tuple[int, int, int]) -> Tensor:
    """Tokens [batch, frames, cells, patch volume * channels] -> [batch, channels, frames, height, width]."""
    _, ph, pw = patch
    x = tokens.unflatten(2, grid[1:]).unflatten(4, (ph, pw, -1))
    return x.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
