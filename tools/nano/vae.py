"""The nano model's VAE: a small AutoencoderKLWan, trained on clips of the world in its own and in random colours.

Clips have the full length: trained on shorter ones, colours drift in the frames that training never reached. For the
same reason 12 of the 16 latent channels are tied to colours: those of each cell's quarters in the latest frame.

diffusers runs this VAE frame group by frame group with a cache. Training runs the same arithmetic over the whole
clip at once (`encode_clip`, `decode_clip`): its convolutions are causal, so only the temporal resampling needs care.
"""

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample, patchify, unpatchify
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from ...calibration_data.moving_shapes import Scene, masks, sample_scene, training_contents
from ...calibration_data.moving_shapes.scene import BACKGROUNDS, COLOURS, FRAMES, RGB
from .budget import Budget

LATENT_CHANNELS = 16
KL_WEIGHT = 3e-4
PEAK = 2e-3
RANDOM_COLOURS = 0.25


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
    """A pool of drawn masks that each batch paints anew, in the world's colours or in random ones."""

    def __init__(self, count: int, size: int | None, device: torch.device) -> None:
        """size: edge of a square cut around the shape (most of a frame is empty), or None for whole frames."""
        self.random, self.device = random.Random(0), device
        contents = training_contents()
        pool = []
        for _ in range(0, count, 64):
            scenes = [sample_scene(self.random, contents) for _ in range(64)]
            mask = masks(scenes, device=device)
            if size is not None:
                mask = torch.stack([self._cut(m, scene, size) for m, scene in zip(mask, scenes, strict=True)])
            pool.append((mask * 255).round().byte())
        self.pool = torch.cat(pool)
        pairs = [
            (RGB[colour], RGB[background]) for colour in COLOURS for background in BACKGROUNDS if colour != background
        ]
        self.pairs = torch.tensor(pairs, device=device) / 127.5 - 1

    def draw(self, count: int) -> Tensor:
        """[count, 3, frames, height, width] in [-1, 1]."""
        mask = self.pool[torch.randint(len(self.pool), (count,), device=self.device)].unsqueeze(1) / 255
        own = self.pairs[torch.randint(len(self.pairs), (count,), device=self.device)]
        free = torch.rand_like(own) * 2 - 1
        painted = torch.where(torch.rand(count, 1, 1, device=self.device) < RANDOM_COLOURS, free, own)
        colour, background = painted[..., None, None, None].unbind(1)
        return background + (colour - background) * mask

    def _cut(self, mask: Tensor, scene: Scene, size: int) -> Tensor:
        height, width = mask.shape[-2:]
        half_way = (start + step * FRAMES / 2 for start, step in zip(scene.start, scene.content.velocity, strict=True))
        corner = [round(centre + self.random.uniform(-0.5, 0.5) * size - size / 2) for centre in half_way]
        left, top = max(0, min(corner[0], width - size)), max(0, min(corner[1], height - size))
        return mask[..., top : top + size, left : left + size]


def _captured(run: Callable[[Tensor], Tensor], example: Tensor) -> Callable[[Tensor], Tensor]:
    """`run` as one CUDA graph: its thousands of small kernels take longer to launch than to compute."""
    if example.device.type != "cuda":
        return run
    held, stream, graph = example.clone(), torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run(held)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        result = run(held)

    def replay(video: Tensor) -> Tensor:
        held.copy_(video)
        graph.replay()
        return result

    return replay


def quarter_colours(video: Tensor) -> Tensor:
    """What the first 12 latent channels are tied to: [batch, 12, 1 + n, height / 8, width / 8] for 1 + 4n frames."""
    quarters = F.avg_pool3d(video[:, :, ::4], (1, 4, 4))
    return patchify(quarters, 2)


def train_vae(budget: Budget, device: torch.device, batch: int = 8) -> AutoencoderKLWan:
    """L1 + L2 + colour anchor + a little KL on close-ups; every fourth batch is whole frames.

    Returns the EMA weights, fp32.
    """
    vae = build_vae().to(device)
    average = torch.optim.swa_utils.AveragedModel(vae, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
    parameters = list(vae.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=PEAK, betas=(0.9, 0.99), weight_decay=1e-4, fused=device.type == "cuda"
    )

    def gradients(video: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=False)
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            posterior = encode_clip(vae, video)
            mean, deviation = posterior.mean.float(), posterior.std.float()
            output = decode_clip(vae, mean + deviation * torch.randn_like(mean))
        error = output.float() - video
        kl = 0.5 * (mean.square() + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        l1, l2 = error.abs().mean(), error.square().mean()
        anchor = (mean[:, :12] - quarter_colours(video)).square().mean()
        (l1 + l2 + anchor + KL_WEIGHT * kl).backward()
        return torch.stack([l1, l2, anchor, kl]).detach()

    close, whole = Clips(1024, 64, device), Clips(1024, None, device)
    many, few = batch, max(1, batch // 4)
    on_close, on_whole = _captured(gradients, close.draw(many)), _captured(gradients, whole.draw(few))
    for step in budget:
        for group in optimizer.param_groups:
            group["lr"] = budget.learning_rate(PEAK)
        l1, l2, anchor, kl = on_whole(whole.draw(few)) if step % 4 == 3 else on_close(close.draw(many))
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.update_parameters(vae)
        if budget.reports(step):
            budget.log(step, l1=l1, psnr=10 * torch.log10(4 / l2), anchor=anchor, kl=kl)
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
