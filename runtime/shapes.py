"""Sizes of a video in pixels and of its latents in cells, and the rules that tie them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .checkpoint import read_config, read_json
from .errors import InputError


@dataclass(frozen=True)
class VideoShape:
    """A video in pixels and frames, before the VAE and after it."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames} frames of {self.height}x{self.width}"


@dataclass(frozen=True)
class LatentGeometry:
    """How a checkpoint's VAE and patch embedding divide a video.

    `temporal` and `spatial` are the VAE's compression (pixels a latent cell), `patch` the transformer's spatial patch
    in latent cells, `channels` the latent channels.
    """

    channels: int
    temporal: int
    spatial: int
    patch: int

    def latent_shape(self, video: VideoShape) -> tuple[int, int, int, int]:
        """[channels, frames, height, width] of a video's latents. Raises InputError for sizes that don't divide."""
        self.check(video)
        frames = (video.frames - 1) // self.temporal + 1
        return self.channels, frames, video.height // self.spatial, video.width // self.spatial

    def tokens(self, video: VideoShape) -> int:
        """Video tokens that the transformer sees."""
        _, frames, height, width = self.latent_shape(video)
        return frames * (height // self.patch) * (width // self.patch)

    def check(self, video: VideoShape) -> None:
        """Raises InputError, naming the nearest sizes that work, unless the latents of `video` are whole patches."""
        step = self.spatial * self.patch
        rules = (
            ("frames", video.frames, self.temporal, 1),
            ("height", video.height, step, 0),
            ("width", video.width, step, 0),
        )
        for name, value, multiple, rest in rules:
            if value < max(rest, 1) or value % multiple != rest % multiple:
                below = max((value - rest) // multiple, 0 if rest else 1) * multiple + rest
                near = f"{below} or {below + multiple}" if value > rest else f"{below}"
                rule = f"a multiple of {multiple}" + (f" plus {rest}" if rest else "")
                raise InputError(
                    f"Video {name} does not divide", where=name, expected=rule, got=value, fix=f"use {near}"
                )


def read_geometry(checkpoint: Path) -> LatentGeometry:
    """The latent geometry of a checkpoint folder, from its transformer and VAE configs."""
    vae = read_json(checkpoint / "vae" / "config.json")
    config = read_config(checkpoint)
    match vae.get("_class_name"):
        case "AutoencoderKLWan":
            temporal, spatial = vae.get("scale_factor_temporal", 4), vae.get("scale_factor_spatial", 8)
        case "AutoencoderKLLTX2Video":
            temporal, spatial = vae.get("temporal_compression_ratio", 8), vae.get("spatial_compression_ratio", 32)
        case other:
            expected = "AutoencoderKLWan or AutoencoderKLLTX2Video"
            raise InputError("Unsupported VAE", where=checkpoint / "vae", expected=expected, got=other)
    return LatentGeometry(config.in_channels, temporal, spatial, config.patch_size[1])
