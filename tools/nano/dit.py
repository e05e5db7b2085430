"""The nano model's denoiser: latents of the world, and flow matching on them with LinearDiT.

The path from data to noise is x_t = (1 - sigma) x_0 + sigma * noise, the target its velocity noise - x_0, the timestep
1000 sigma. A tenth of the captions is replaced by the empty one (classifier-free guidance), and in three of ten clips
the first latent frame is clean, has timestep 0 and no loss: image-to-video.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from ...calibration_data.moving_shapes import place, render, training_contents
from ...runtime.linear_dit import DiTConfig, LinearDiT
from .budget import Budget
from .text import HIDDEN as CAPTION_CHANNELS
from .vae import LATENT_CHANNELS, encode_clip

TRANSFORMER = {
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "num_attention_heads": 2,
    "attention_head_dim": 112,
    "num_layers": 6,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 112,
    "cross_attention_dim": 224,
    "caption_channels": CAPTION_CHANNELS,
    "mlp_ratio": 3.0,
    "attention_bias": False,
    "sample_size": 30,
    "patch_size": (1, 2, 2),
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 1024,
}
DROP_CAPTION = 0.1
FIRST_FRAME_GIVEN = 0.3
# Colours and shapes are learnt from first frames alone, where a step sees eight times as many captions; motion after.
FIRST_FRAMES_ALONE = 0.15
FIRST_FRAMES_BATCH = 8


@dataclass
class Latents:
    """Normalized latents [n, channels, frames, height, width] in bf16 and the index of each clip's caption [n]."""

    values: Tensor
    captions: Tensor


@torch.no_grad()
def encode_world(vae: AutoencoderKLWan, budget: Budget, most: int, device: torch.device, batch: int = 64) -> Latents:
    """Raw latents of fresh clips, captions in turn, until the budget or `most` is reached."""
    contents, generator = training_contents(), random.Random(1)
    values = torch.empty(most, LATENT_CHANNELS, 9, 16, 24, dtype=torch.bfloat16, device=device)
    captions: list[int] = []
    for step in budget:
        chosen = [generator.randrange(len(contents)) for _ in range(min(batch, most - len(captions)))]
        video = render([place(contents[i], generator) for i in chosen], device=device)
        with torch.autocast(device.type, torch.bfloat16):
            encoded = encode_clip(vae, video).mode()
        values[len(captions) : len(captions) + len(chosen)] = encoded.to(torch.bfloat16)
        captions += chosen
        if budget.reports(step):
            budget.log(step, clips=len(captions))
        if len(captions) == most:
            break
    return Latents(values[: len(captions)], torch.tensor(captions, device=device))


def build_transformer() -> LinearDiT:
    """Random weights; what writes to the residual stream starts small or at zero."""
    model = LinearDiT(DiTConfig.from_diffusers(TRANSFORMER))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if name.endswith(("modulation", "proj_out", "conv_temp")):
            nn.init.zeros_(module.weight)
    return model


def draw_sigmas(count: int, device: torch.device) -> Tensor:
    """Noise levels [count]: half under the schedule of inference (flow shift 8), half flatter (shift 2)."""
    uniform = torch.rand(count, device=device)
    shift = torch.where(torch.rand(count, device=device) < 0.5, 8.0, 2.0)
    return shift * uniform / (1 + (shift - 1) * uniform)


def flow_loss(model: nn.Module, clean: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    """Velocity error of a batch of normalized latents [batch, channels, frames, height, width]."""
    batch, _, frames = clean.shape[:3]
    noise = torch.randn_like(clean)
    sigma = draw_sigmas(batch, clean.device)[:, None].repeat(1, frames)
    given = torch.rand(batch, device=clean.device) < (FIRST_FRAME_GIVEN if frames > 1 else 0)
    sigma[:, 0] = torch.where(given, 0.0, sigma[:, 0])
    level = sigma[:, None, :, None, None]
    with torch.autocast(clean.device.type, torch.bfloat16):
        velocity = model((1 - level) * clean + level * noise, 1000 * sigma, text, mask)
    error = (velocity.float() - (noise - clean)).square().mean(dim=(1, 3, 4))
    weight = torch.ones_like(error)
    weight[:, 0] = torch.where(given, 0.0, 1.0)
    return (error * weight).sum() / weight.sum()


def speed_up(model: LinearDiT) -> None:
    """Compile each block: all share one graph, so this takes a fraction of compiling the whole model."""
    for block in model.blocks:
        block.compile(dynamic=False)


def train_transformer(
    latents: Latents,
    text: tuple[Tensor, Tensor, Tensor, Tensor],
    budget: Budget,
    checkpoint: Path,
    batch: int = 128,
    peak: float = 1.5e-3,
    compiled: bool = True,
) -> LinearDiT:
    """text: states and masks of all training captions, then of the empty caption.

    Returns the EMA weights, fp32; `checkpoint` holds them from time to time meanwhile.
    """
    states, masks, empty_states, empty_mask = text
    device = latents.values.device
    model = build_transformer().to(device)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.999))
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), fused=device.type == "cuda")
    if compiled:
        speed_up(model)
    saved = 0.0
    for step in budget:
        for group in optimizer.param_groups:
            group["lr"] = budget.learning_rate(peak)
        alone = budget.progress < FIRST_FRAMES_ALONE
        count, frames = (FIRST_FRAMES_BATCH * batch, 1) if alone else (batch, latents.values.shape[2])
        chosen = torch.randint(len(latents.captions), (count,), device=device)
        caption = latents.captions[chosen]
        dropped = torch.rand(count, device=device) < DROP_CAPTION
        batch_text = torch.where(dropped[:, None, None], empty_states, states[caption])
        batch_mask = torch.where(dropped[:, None], empty_mask, masks[caption])
        loss = flow_loss(model, latents.values[chosen, :, :frames].float(), batch_text, batch_mask)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
        if budget.reports(step):
            budget.log(step, loss=loss, gradient=norm, frames=frames, batch=count)
            if budget.progress > saved + 0.1:
                saved = budget.progress
                torch.save(average.module.state_dict(), checkpoint)
    trained = average.module
    assert isinstance(trained, LinearDiT)
    return trained.eval().requires_grad_(False)
