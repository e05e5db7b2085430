"""Prompts to text states: the wording rules SANA-Video was trained with, the tokenizer and the Gemma-2 encoder."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import ArtefactError, InputError

TEXT_TOKENS = 300
"""Text tokens the transformer reads (SANA, arXiv 2410.10629, section 2.3)."""


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser reads of a prompt: row 0 is the negative (unconditional) prompt, row 1 the prompt.

    text: [2, 300, caption channels] in the encoder's dtype. mask: [2, 300], 1 keeps a token.
    """

    text: Tensor
    mask: Tensor


@cache
def instruction() -> str:
    """The text before every positive prompt: upstream's default, read from its pipeline's signature."""
    from diffusers.pipelines.sana_video.pipeline_sana_video import SanaVideoPipeline

    lines = inspect.signature(SanaVideoPipeline.__call__).parameters["complex_human_instruction"].default
    return "\n".join(lines)


def with_motion_score(prompt: str, score: int) -> str:
    """The prompt with the motion score in words, as in training; a prompt that states its score keeps it.

    Raises InputError for an empty prompt, which the score would hide.
    """
    if not prompt.strip():
        raise InputError("Prompt is empty", where="prompt", fix="describe the video in a sentence")
    return prompt if "motion score:" in prompt.lower() else f"{prompt.strip()} motion score: {score}."


def encode_prompts(
    checkpoint: Path,
    prompts: Sequence[str],
    negative_prompt: str = "",
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cpu",
) -> list[Conditioning]:
    """Encodes prompts with the checkpoint's text encoder, loaded for all of them and freed afterwards.

    Prompts are lowercased and stripped; positive ones follow the `instruction`, and of their tokens the first and the
    last 299 are kept. dtype: bf16 or fp32 (Gemma-2 overflows in fp16). Raises InputError for an empty prompt and for
    one that does not fit, before the encoder is loaded.
    """
    if dtype not in (torch.bfloat16, torch.float32):
        raise InputError("Text encoder cannot run in this dtype", expected="bfloat16 or float32", got=dtype)
    tokenizer = load_tokenizer(checkpoint)
    tokens = [tokenize(tokenizer, negative_prompt, "")]
    for prompt in prompts:
        if not prompt.strip():
            raise InputError("Prompt is empty", where="prompt", fix="describe the video in a sentence")
        tokens.append(tokenize(tokenizer, prompt, instruction()))
    encoder = load_encoder(checkpoint, dtype, device)
    negative, *positive = [encode(encoder, ids, mask) for ids, mask in tokens]
    return [Conditioning(torch.cat([negative[0], text]), torch.cat([negative[1], mask])) for text, mask in positive]


def encode_pairs(
    checkpoint: Path,
    pairs: Sequence[tuple[str, str]],
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cpu",
) -> dict[tuple[str, str], Conditioning]:
    """The conditioning of every (prompt, negative prompt), with one pass of the encoder for each negative prompt."""
    found: dict[tuple[str, str], Conditioning] = {}
    for negative in dict.fromkeys(negative for _, negative in pairs):
        group = list(dict.fromkeys(pair for pair in pairs if pair[1] == negative))
        encoded = encode_prompts(checkpoint, [prompt for prompt, _ in group], negative, dtype=dtype, device=device)
        found |= dict(zip(group, encoded, strict=True))
    return found


def load_tokenizer(checkpoint: Path) -> Any:
    """The tokenizer of a checkpoint folder, padding on the right."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(checkpoint / "tokenizer", padding_side="right", local_files_only=True)
    except (OSError, ValueError) as error:
        raise ArtefactError("Tokenizer cannot be loaded", where=checkpoint / "tokenizer", got=error) from error


def tokenize(tokenizer: Any, prompt: str, prefix: str) -> tuple[Tensor, Tensor]:
    """Token ids and mask [1, window] of prefix + prompt; the window leaves 298 tokens to a prefixed prompt.

    Raises InputError for a prompt that is longer (upstream cuts it silently) or that is not valid text.
    """
    prompt = prompt.lower().strip()
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise InputError("Prompt is not valid Unicode", where="prompt", got=error.reason) from error
    prefix_tokens = len(tokenizer.encode(prefix)) if prefix else 0
    window = prefix_tokens + TEXT_TOKENS - 2 if prefix else TEXT_TOKENS
    counted = len(tokenizer.encode(prefix + prompt))
    if counted > window:
        allowed, got = window - prefix_tokens, counted - prefix_tokens
        fix = f"shorten it by {counted - window} tokens"
        raise InputError(
            "Prompt is too long", where="prompt", expected=f"{allowed} tokens", got=f"{got} tokens", fix=fix
        )
    encoded = tokenizer(prefix + prompt, padding="max_length", max_length=window, return_tensors="pt")
    return encoded.input_ids, encoded.attention_mask


def load_encoder(checkpoint: Path, dtype: torch.dtype, device: str | torch.device) -> torch.nn.Module:
    """The Gemma-2 decoder of a checkpoint folder, without its language-model head."""
    from transformers import AutoModel

    folder = checkpoint / "text_encoder"
    try:
        encoder, info = AutoModel.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # transformers and safetensors raise OSError, ValueError, RuntimeError and their own
        raise ArtefactError("Text encoder cannot be loaded", where=folder, got=error) from error
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise ArtefactError("Text encoder weights are incomplete", where=folder, expected=missing, got="missing")
    return encoder.to(device).eval()


@torch.no_grad()
def encode(encoder: torch.nn.Module, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """States [1, 300, caption channels] and mask [1, 300] of the first and the last 299 tokens."""
    device = next(encoder.parameters()).device
    states = encoder(ids.to(device), attention_mask=mask.to(device))[0]
    kept = torch.tensor([0, *range(-TEXT_TOKENS + 1, 0)], device=device)
    return states[:, kept], mask.to(device)[:, kept]
