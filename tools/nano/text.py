"""The nano model's text side: a BPE tokenizer and a two-layer Gemma-2, trained on the captions, then frozen.

The encoder learns to predict the next caption token and, at the last one, every attribute: so each token's state
knows the words before it. Embeddings come from the pipeline's own `encode_prompt`, the path that inference takes.
"""

import json
import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import SanaVideoPipeline
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

from ...calibration_data.moving_shapes import ATTRIBUTES, Content, caption, training_contents
from ...runtime.text import instruction
from .budget import Budget

HIDDEN = 192
VOCABULARY = 1024
# Gemma's order: pad 0, eos 1, bos 2; the 256 bytes make every text encodable.
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
TOKENS = 40  # the longest caption has 20 tokens; what lies behind is padding, which the mask removes exactly


def train_tokenizer() -> GemmaTokenizer:
    """BPE with byte fallback over the captions and the instruction: any text encodes, captions encode briefly.

    Gemma's tokenizer merges over the whole text at once. Here pieces are cut before each blank, so no learned merge
    spans two words and both ways of cutting agree.
    """
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=[chr(code) for code in range(33, 127)],
        show_progress=False,
    )
    captions = [caption(content) for content in training_contents()[::7]]
    tokenizer.train_from_iterator([*captions, *[instruction()] * 20], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return GemmaTokenizer(vocab=model["vocab"], merges=merges, add_bos_token=True)


def build_encoder(vocabulary: int) -> Gemma2Model:
    config = Gemma2Config(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=48,
        query_pre_attn_scalar=48,
        max_position_embeddings=2048,
    )
    return Gemma2Model(config)


def _targets(contents: Sequence[Content]) -> Tensor:
    """Attribute indices [batch, attributes]."""
    rows = [[known.index(getattr(content, name)) for name, known in ATTRIBUTES.items()] for content in contents]
    return torch.tensor(rows)


def train_encoder(tokenizer: GemmaTokenizer, budget: Budget, device: torch.device) -> Gemma2Model:
    """Train on instruction + caption with next-token and attribute losses; returns bf16 weights, the loss is logged."""
    encoder = build_encoder(len(tokenizer)).to(device)
    heads = nn.ModuleList(nn.Linear(HIDDEN, len(known)) for known in ATTRIBUTES.values()).to(device)
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    contents, generator = training_contents(), random.Random(0)
    tokenizer.padding_side = "right"
    prefix_tokens = len(tokenizer.encode(instruction())) - 1
    for step in budget:
        for group in optimizer.param_groups:
            group["lr"] = budget.learning_rate(1e-3)
        batch = generator.choices(contents, k=64)
        texts = [instruction() + caption(content) for content in batch]
        tokens = tokenizer(texts, padding=True, return_tensors="pt").to(device)
        states = encoder(**tokens).last_hidden_state
        logits = states[:, prefix_tokens:-1] @ encoder.embed_tokens.weight.T / HIDDEN**0.5
        following = tokens.input_ids[:, prefix_tokens + 1 :]
        loss_next = F.cross_entropy(logits.flatten(0, 1), following.flatten(), ignore_index=tokenizer.pad_token_id)
        last = states[torch.arange(len(batch)), tokens.attention_mask.sum(1) - 1]
        targets = _targets(batch).to(device)
        losses = [F.cross_entropy(head(last), targets[:, i]) for i, head in enumerate(heads)]
        loss_attributes = torch.stack(losses).mean()
        optimizer.zero_grad()
        (loss_next + loss_attributes).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if budget.reports(step):
            budget.log(step, next_token=loss_next, attributes=loss_attributes)
    return encoder.to(torch.bfloat16).eval().requires_grad_(False)


@torch.no_grad()
def encode_captions(
    tokenizer: GemmaTokenizer, encoder: Gemma2Model, captions: Sequence[str]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Text states [n, TOKENS, hidden] and masks [n, TOKENS] of captions, then of the empty negative prompt [1, ...]."""
    pipeline = SanaVideoPipeline(tokenizer=tokenizer, text_encoder=encoder, vae=None, transformer=None, scheduler=None)

    def encode(texts: list[str], lines: list[str] | None) -> tuple[Tensor, Tensor]:
        states, mask, _, _ = pipeline.encode_prompt(
            texts, do_classifier_free_guidance=False, device=encoder.device, complex_human_instruction=lines
        )
        if mask[:, TOKENS:].any():
            raise ValueError(f"a caption has more than {TOKENS} tokens")
        return states[:, :TOKENS], mask[:, :TOKENS]

    batches = [captions[first : first + 256] for first in range(0, len(captions), 256)]
    parts = [encode(list(batch), instruction().split("\n")) for batch in batches]
    states, masks = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return states, masks, *encode([""], None)
