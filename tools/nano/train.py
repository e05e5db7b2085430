"""Train the nano model from nothing on one GPU: `python -m sana_edge.tools.nano.train --out DIR`, 20 minutes.

Four stages, each with its own budget of seconds: text encoder, VAE, latents of the world, denoiser. The result is a
diffusers pipeline folder DIR/nano, measured at the end (DIR/metrics.json, contact sheets). A stage whose weights are
already in DIR/nano is not trained again, except the denoiser.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, DPMSolverMultistepScheduler, SanaVideoPipeline, SanaVideoTransformer3DModel
from transformers import Gemma2Model, GemmaTokenizer

from ...calibration_data.moving_shapes import FRAMES, HEIGHT, WIDTH, caption, training_contents
from ...runtime.checkpoint import to_diffusers
from ...runtime.linear_dit import LinearDiT
from ...runtime.pipeline import DEFAULTS_FILE
from .budget import Budget
from .dit import TRANSFORMER, Latents, encode_world, train_transformer
from .evaluate import evaluate
from .prompts import held_out_selection
from .text import encode_captions, train_encoder, train_tokenizer
from .vae import measure_latents, train_vae

# What the model makes when nothing is asked for.
DEFAULTS = {"frames": FRAMES, "height": HEIGHT, "width": WIDTH, "steps": 20, "guidance": 4.5, "motion_score": 30}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--text-seconds", type=float, default=12)
    parser.add_argument("--vae-seconds", type=float, default=300)
    parser.add_argument("--latent-seconds", type=float, default=30)
    parser.add_argument("--dit-seconds", type=float, default=800)
    parser.add_argument("--clips", type=int, default=49152, help="latents of the world to train on")
    parser.add_argument("--vae-batch", type=int, default=8)
    parser.add_argument("--dit-batch", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3, help="of the denoiser, at its peak")
    parser.add_argument("--captions", type=int, default=64, help="held-out captions to measure")
    parser.add_argument("--steps", type=int, nargs="+", default=[30], help="denoising steps to measure")
    parser.add_argument("--guidance", type=float, nargs="+", default=[4.5])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true")
    return parser.parse_args()


def text_stage(folder: Path, log: Path, seconds: float, device: torch.device) -> tuple[GemmaTokenizer, Gemma2Model]:
    if not (folder / "text_encoder").exists():
        tokenizer = train_tokenizer()
        encoder = train_encoder(tokenizer, Budget("text", seconds, log), device)
        tokenizer.save_pretrained(folder / "tokenizer")
        encoder.save_pretrained(folder / "text_encoder")
    tokenizer = GemmaTokenizer.from_pretrained(folder / "tokenizer")
    encoder = Gemma2Model.from_pretrained(folder / "text_encoder", dtype=torch.bfloat16)
    return tokenizer, encoder.to(device).eval()


def world_stage(
    folder: Path, log: Path, options: argparse.Namespace, device: torch.device
) -> tuple[AutoencoderKLWan, Latents]:
    """The VAE with its latent statistics, and the world's latents normalized by them."""
    if not (folder / "vae").exists():
        budget = Budget("vae", options.vae_seconds, log)
        train_vae(budget, device, options.vae_batch).save_pretrained(folder / "vae")
    vae = AutoencoderKLWan.from_pretrained(folder / "vae").to(device)
    latents = encode_world(vae, Budget("latents", options.latent_seconds, log), options.clips, device)
    measure_latents(vae, latents.values[:2048])
    vae.save_pretrained(folder / "vae")
    mean, std = (
        torch.tensor(vae.config[key], device=device).view(-1, 1, 1, 1) for key in ("latents_mean", "latents_std")
    )
    for part in latents.values.split(1024):
        part.copy_((part.float() - mean) / std)
    return vae, latents


def save_pipeline(
    folder: Path, tokenizer: GemmaTokenizer, encoder: Gemma2Model, vae: AutoencoderKLWan, model: LinearDiT
) -> None:
    """A diffusers pipeline folder with the scheduler of the real model: transformer and text encoder bf16, VAE fp32."""
    transformer = SanaVideoTransformer3DModel(**TRANSFORMER)
    transformer.load_state_dict(to_diffusers(model.cpu().state_dict(), model.config))
    SanaVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder.cpu().to(torch.bfloat16),
        vae=vae.cpu(),
        transformer=transformer.to(torch.bfloat16),
        scheduler=DPMSolverMultistepScheduler(
            flow_shift=8.0, use_flow_sigmas=True, prediction_type="flow_prediction", num_train_timesteps=1000
        ),
    ).save_pretrained(folder)
    forget_origin(folder / "vae" / "config.json")
    (folder / DEFAULTS_FILE).write_text(json.dumps(DEFAULTS) + "\n")


def forget_origin(path: Path) -> None:
    """Drop the local path that diffusers writes into the config of a model it has loaded."""
    config = json.loads(path.read_text())
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    options = arguments()
    started = time.monotonic()
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    device = torch.device(options.device)
    folder, log = options.out / "nano", options.out / "train.jsonl"
    folder.mkdir(parents=True, exist_ok=True)

    tokenizer, encoder = text_stage(folder, log, options.text_seconds, device)
    text = encode_captions(tokenizer, encoder, [caption(content) for content in training_contents()])
    vae, latents = world_stage(folder, log, options, device)
    budget = Budget("denoiser", options.dit_seconds, log)
    checkpoint = options.out / "denoiser.pt"
    model = train_transformer(
        latents, text, budget, checkpoint, options.dit_batch, options.learning_rate, not options.no_compile
    )
    del latents
    save_pipeline(folder, tokenizer, encoder, vae, model)

    settings = [(steps, guidance) for steps in options.steps for guidance in options.guidance]
    metrics = evaluate(folder, options.out, held_out_selection()[: options.captions], settings, device)
    metrics["training_seconds"] = round(time.monotonic() - started)
    (options.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(json.dumps(metrics))


if __name__ == "__main__":
    main()
