"""The nano model's VAE: a small AutoencoderKLWan, trained on clips of the world in its own and in random colours.

diffusers runs this VAE frame group by frame group with a cache. Training runs the same arithmetic over the whole
clip at once (`encode_clip`, `decode_clip`): its convolutions are causal, so only the temporal resampling needs care.
"""

import random

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample, patchify, unpatchify
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from ...calibration_data.moving_shapes import Scene, masks, sample_scene, training_contents
from ...calibration_data.moving_shapes.scene import RGB
from .budget import Budget

LATENT_CHANNELS = 16
KL_WEIGHT = 3e-4


def build_vae() -> AutoencoderKLWan:
    """8x in space, 4x in time. It works on 2x2 pixel blocks, which makes decoding cheap on a CPU."""
    return AutoencoderKLWan(
        base_dim=8,
        dim_mult=[3, 6, 7],
        num_res_blocks=1,
        z_dim=LATENT_CHANNELS,
        temperal_downsample=[True, True],
        patch_size=2,
        in_channels=12,
        out_channels=12,
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    )


def _each_frame(layer: nn.Module, x: Tensor) -> Tensor:
    batch, _, frames = x.shape[:3]
    return layer(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, frames)).transpose(1, 2)


def _downsample(layer: WanResample, x: Tensor) -> Tensor:
    """The first frame stays alone; each later pair of frames becomes one."""
    x = _each_frame(layer.resample, x)
    return torch.cat([x[:, :, :1], layer.time_conv(x)], dim=2) if layer.mode == "downsample3d" else x


def _upsample(layer: WanResample, x: Tensor) -> Tensor:
    """The first frame stays alone; each later frame becomes a pair."""
    if layer.mode == "upsample3d" and x.shape[2] > 1:
        pairs = layer.time_conv(x[:, :, 1:]).unflatten(1, (2, -1))
        x = torch.cat([x[:, :, :1], pairs.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)], dim=2)
    return _each_frame(layer.resample, x)


def encode_clip(vae: AutoencoderKLWan, video: Tensor) -> DiagonalGaussianDistribution:
    """Equals `vae.encode(video).latent_dist`, but over all frames at once.

    video: [batch, 3, 1 + 4n, height, width] in [-1, 1].
    """
    encoder = vae.encoder
    x = encoder.conv_in(patchify(video, vae.config.patch_size))
    for layer in encoder.down_blocks:
        x = _downsample(layer, x) if isinstance(layer, WanResample) else layer(x)
    x = encoder.conv_out(encoder.nonlinearity(encoder.norm_out(encoder.mid_block(x))))
    return DiagonalGaussianDistribution(vae.quant_conv(x))


def decode_clip(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Equals `vae.decode(latents).sample` before its clamp, but over all frames at once."""
    decoder = vae.decoder
    x = decoder.mid_block(decoder.conv_in(vae.post_quant_conv(latents)))
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = resnet(x)
        if block.upsamplers is not None:
            x = _upsample(block.upsamplers[0], x)
    x = decoder.conv_out(decoder.nonlinearity(decoder.norm_out(x)))
    return unpatchify(x, vae.config.patch_size)


class Clips:
    """Random training clips: cut around the shape (most of a frame is empty), half of them in random colours."""

    def __init__(self, device: torch.device, seed: int = 0) -> None:
        self.device = device
        self.contents = training_contents()
        self.random = random.Random(seed)

    def draw(self, count: int, frames: int, size: int | None) -> Tensor:
        """[count, 3, frames, size, size] around the shapes, or whole frames where size is None."""
        scenes = [sample_scene(self.random, self.contents) for _ in range(count)]
        mask = masks(scenes, frames=frames, device=self.device).unsqueeze(1)
        if size is not None:
            mask = torch.stack([self._cut(m, scene, size) for m, scene in zip(mask, scenes, strict=True)])
        colours = torch.tensor([self._colours(scene) for scene in scenes], device=self.device)
        colour, background = colours[..., None, None, None].unbind(1)
        return background + (colour - background) * mask

    def _colours(self, scene: Scene) -> list[list[float]]:
        """Shape and background, RGB in [-1, 1]."""
        if self.random.random() < 0.5:
            return [[self.random.uniform(-1, 1) for _ in range(3)] for _ in range(2)]
        names = scene.content.colour, scene.content.background
        return [[channel / 127.5 - 1 for channel in RGB[name]] for name in names]

    def _cut(self, mask: Tensor, scene: Scene, size: int) -> Tensor:
        height, width = mask.shape[-2:]
        corner = [round(centre + self.random.uniform(-0.6, 0.6) * size - size / 2) for centre in scene.start]
        left, top = max(0, min(corner[0], width - size)), max(0, min(corner[1], height - size))
        return mask[..., top : top + size, left : left + size]


def train_vae(budget: Budget, device: torch.device, batch: int = 32, compiled: bool = True) -> AutoencoderKLWan:
    """L1 + L2 + a little KL; every fourth batch is whole frames and twice as long. Returns fp32 weights, EMA."""
    vae = build_vae().to(device)
    average = torch.optim.swa_utils.AveragedModel(vae, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    clips = Clips(device)

    def losses(video: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(device.type, torch.bfloat16):
            posterior = encode_clip(vae, video)
            output = decode_clip(vae, posterior.sample())
        error = output.float() - video
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).float().mean()
        return error.abs().mean(), error.square().mean(), kl

    run = torch.compile(losses) if compiled else losses
    for step in budget:
        for group in optimizer.param_groups:
            group["lr"] = budget.learning_rate(2e-3)
        video = clips.draw(max(1, batch // 4), 17, None) if step % 4 == 3 else clips.draw(batch, 9, 96)
        l1, l2, kl = run(video)
        optimizer.zero_grad()
        (l1 + l2 + KL_WEIGHT * kl).backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(vae)
        if budget.reports(step):
            budget.log(step, l1=l1, psnr=10 * torch.log10(4 / l2), kl=kl)
    return average.module.eval().requires_grad_(False)


@torch.no_grad()
def measure_latents(vae: AutoencoderKLWan, latents: Tensor) -> None:
    """Write mean and deviation of raw latents [n, channels, ...] to the VAE's config, where pipelines read them."""
    rows = latents.float().transpose(0, 1).flatten(1)
    vae.register_to_config(latents_mean=rows.mean(1).tolist(), latents_std=rows.std(1).tolist())


@torch.no_grad()
def psnr(vae: AutoencoderKLWan, video: Tensor) -> float:
    """Reconstruction of videos [batch, 3, frames, height, width] through diffusers' own encode and decode, dB."""
    decoded = vae.decode(vae.encode(video).latent_dist.mode()).sample
    return float(10 * torch.log10(4 / (decoded - video).square().mean()))
