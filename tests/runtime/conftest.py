"""A tiny random SANA-Video pipeline folder, made by diffusers itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

LATENT_CHANNELS = 4
CAPTION_CHANNELS = 32


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["a red circle moves left to right. motion score: 30."], trainer)
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    ).save_pretrained(folder)


def save_pipeline(folder: Path, *, layers: int = 2, seed: int | None = None) -> Path:
    """Writes a random pipeline (patch 1x2x2, Wan VAE 4x8x8) that `SanaVideoPipeline.from_pretrained` loads."""
    from diffusers import (
        AutoencoderKLWan,
        DPMSolverMultistepScheduler,
        SanaVideoPipeline,
        SanaVideoTransformer3DModel,
    )
    from transformers import AutoTokenizer, Gemma2Config, Gemma2Model

    if seed is not None:
        torch.manual_seed(seed)
    _tokenizer(folder / "tokenizer")
    transformer = SanaVideoTransformer3DModel(
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=layers,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=CAPTION_CHANNELS,
        mlp_ratio=3.0,
    )
    vae = AutoencoderKLWan(
        base_dim=8,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=torch.randn(LATENT_CHANNELS).tolist(),
        latents_std=(torch.rand(LATENT_CHANNELS) + 0.5).tolist(),
    )
    encoder = Gemma2Model(
        Gemma2Config(
            vocab_size=320,
            hidden_size=CAPTION_CHANNELS,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=4096,
            initializer_range=0.5,
        )
    )
    scheduler = DPMSolverMultistepScheduler(
        flow_shift=8.0, use_flow_sigmas=True, prediction_type="flow_prediction", num_train_timesteps=1000
    )
    SanaVideoPipeline(
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=encoder.eval(),
        vae=vae.eval(),
        transformer=transformer.eval(),
        scheduler=scheduler,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random pipeline folder, shared by the tests of a run: do not write into it."""
    return save_pipeline(tmp_path_factory.mktemp("pipeline") / "tiny")
