"""Prompts to text states, against diffusers' own pipeline on the same checkpoint."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from sana_edge.runtime.errors import ArtefactError, InputError
from sana_edge.runtime.text import encode_prompts, instruction, load_tokenizer, with_motion_score

PROMPTS = ["  A Red Circle, 红色 🔴 moves LEFT to right. motion score: 30. ", "x"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_equal_those_of_the_upstream_pipeline(checkpoint, dtype):
    from diffusers import SanaVideoPipeline

    pipe = SanaVideoPipeline.from_pretrained(checkpoint, torch_dtype=dtype)
    ours = encode_prompts(checkpoint, PROMPTS, "Blurry", dtype=dtype)
    for prompt, conditioning in zip(PROMPTS, ours, strict=True):
        cond, cond_mask, uncond, uncond_mask = pipe.encode_prompt(
            prompt, negative_prompt="Blurry", complex_human_instruction=instruction().split("\n")
        )
        assert conditioning.text.dtype == dtype
        assert torch.equal(conditioning.text, torch.cat([uncond, cond]))
        assert torch.equal(conditioning.mask, torch.cat([uncond_mask, cond_mask]))


def test_positive_prompts_alone_follow_the_instruction(checkpoint):
    [conditioning] = encode_prompts(checkpoint, ["a cat"], "a cat", dtype=torch.float32)
    assert conditioning.text.shape == (2, 300, 32)
    assert conditioning.mask.sum(dim=1).unique().numel() == 2
    assert instruction().startswith("Given a user prompt")


def longest_prompt(checkpoint) -> str:
    """A prompt that fills the window to the last token."""
    tokenizer, prompt = load_tokenizer(checkpoint), ""
    allowed = len(tokenizer.encode(instruction())) + 298
    while len(tokenizer.encode(instruction() + prompt + "z")) <= allowed:
        prompt += "z"
    return prompt


def test_the_longest_prompt_fits_and_a_longer_one_is_refused_with_counts(checkpoint):
    prompt = longest_prompt(checkpoint)
    [conditioning] = encode_prompts(checkpoint, [prompt], dtype=torch.float32)
    assert conditioning.mask[1].sum() >= 299
    with pytest.raises(
        InputError, match=r"(?s)too long.*expected: 298 tokens.*got: 299 tokens.*shorten it by 1 tokens"
    ):
        encode_prompts(checkpoint, [prompt + "z"], dtype=torch.float32)
    with pytest.raises(InputError, match=r"(?s)too long.*expected: 300 tokens"):
        encode_prompts(checkpoint, ["fine"], "z" * 300, dtype=torch.float32)


@pytest.mark.parametrize(
    ("prompt", "dtype", "message"),
    [
        ("", torch.float32, "empty"),
        (" \n\t ", torch.float32, "empty"),
        ("a \udcff cat", torch.float32, "not valid Unicode"),
        ("a cat", torch.float16, "bfloat16 or float32"),
    ],
)
def test_unusable_prompts_are_refused(checkpoint, prompt, dtype, message):
    with pytest.raises(InputError, match=message):
        encode_prompts(checkpoint, [prompt], dtype=dtype)


def test_motion_score_is_added_once():
    assert with_motion_score("A cat runs. ", 30) == "A cat runs. motion score: 30."
    assert with_motion_score("A cat runs. Motion score: 5.", 30) == "A cat runs. Motion score: 5."


def test_incomplete_and_truncated_encoders_are_refused(checkpoint, tmp_path):
    for name in ("tokenizer", "text_encoder"):
        shutil.copytree(checkpoint / name, tmp_path / name)
    weights = tmp_path / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    save_file({k: v for k, v in tensors.items() if "layers.1.mlp" not in k}, weights, {"format": "pt"})
    with pytest.raises(ArtefactError, match=r"(?s)incomplete.*layers\.1\.mlp"):
        encode_prompts(tmp_path, ["a cat"], dtype=torch.float32)
    weights.write_bytes((checkpoint / "text_encoder" / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ArtefactError, match=r"(?s)cannot be loaded.*text_encoder"):
        encode_prompts(tmp_path, ["a cat"], dtype=torch.float32)
    weights.unlink()
    torch.save(tensors, tmp_path / "text_encoder" / "pytorch_model.bin")
    with pytest.raises(ArtefactError, match=r"(?s)cannot be loaded.*text_encoder"):
        encode_prompts(tmp_path, ["a cat"], dtype=torch.float32)
    shutil.rmtree(tmp_path / "tokenizer")
    with pytest.raises(ArtefactError, match="Tokenizer"):
        encode_prompts(tmp_path, ["a cat"], dtype=torch.float32)
