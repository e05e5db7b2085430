"""Recipes: what the packaged ones assign, and how bad files are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sana_edge.quantize.recipe import RECIPES, load_recipe
from sana_edge.runtime.errors import FormatError, InputError
from sana_edge.runtime.linear_dit import DiTConfig, LinearDiT

LOW = ["int8", "fp8", "mxfp8", "nvfp4"]
SPLIT = {"attn1.to_qkv", "attn1.to_out", "attn2.to_q", "attn2.to_out", "ff.conv_inverted", "ff.conv_point"}


def full_size_model(**changes: int) -> LinearDiT:
    """SANA-Video 2B's geometry without memory."""
    geometry = {
        "in_channels": 16,
        "out_channels": 16,
        "num_attention_heads": 20,
        "attention_head_dim": 112,
        "num_layers": 20,
        "num_cross_attention_heads": 20,
        "cross_attention_head_dim": 112,
        "caption_channels": 2304,
        "mlp_ratio": 3.0,
        "patch_size": [1, 2, 2],
    }
    with torch.device("meta"):
        return LinearDiT(DiTConfig.from_diffusers(geometry | changes))


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


def test_a_recipe_of_each_format_is_packaged():
    assert {p.stem for p in RECIPES.glob("*.toml")} >= {"bf16", *LOW}
    assert {f.name for f in load_recipe("bf16").assign(full_size_model()).values()} == {"bf16"}


@pytest.mark.parametrize("name", LOW)
def test_low_precision_recipes_are_the_papers_split(name: str):
    recipe = load_recipe(name)
    formats = recipe.assign(full_size_model())
    quantized = {layer for layer, format in formats.items() if format.name == name}
    assert quantized == {f"blocks.{i}.{layer}" for i in range(20) for layer in SPLIT}
    assert {formats[layer].name for layer in formats.keys() - quantized} == {"bf16"}
    assert {
        "blocks.3.ff.conv_temp",
        "blocks.3.attn2.to_kv",
        "proj_out",
        "patch_embedding",
    } <= formats.keys() - quantized
    assert recipe.description and recipe.algorithm == ("smoothquant" if name == "int8" else "max")


def test_the_last_matching_rule_counts(tmp_path: Path):
    path = write(
        tmp_path,
        """
        [[layers]]
        pattern = "blocks.*.ff.conv_*"
        format = "nvfp4"
        [[layers]]
        pattern = "blocks.7.ff.conv_point"
        format = "fp8"
        """,
    )
    formats = load_recipe(path).assign(full_size_model())
    assert formats["blocks.7.ff.conv_point"].name == "fp8"
    assert formats["blocks.8.ff.conv_point"].name == formats["blocks.7.ff.conv_temp"].name == "nvfp4"
    assert "blocks.7.ff.conv_depth" not in formats
    assert load_recipe(path).name == "mine"


RULE = '[[layers]]\npattern = "blocks.*.attn1.to_qkv"\nformat = "fp8"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layers = [", r"not valid TOML.*mine\.toml"),
        ("", r"Key is missing.*mine\.toml.*layers"),
        ("layers = 3", r"wrong type.*mine\.toml.*layers as list.*got: 3"),
        (RULE + "colour = 1", r"Unknown key.*layers rule 1.*got: colour"),
        ("descripton = 'x'\n" + RULE, r"Unknown key.*expected: description.*got: descripton"),
        (RULE.replace("fp8", "nvfp3"), r"Unknown number format.*layers rule 1.*expected: .*nvfp4.*got: nvfp3"),
        (RULE + '[[layers]]\npattern = "proj_out"', r"Key is missing.*layers rule 2.*format"),
        (RULE.replace('"fp8"', "8"), r"wrong type.*layers rule 1.*format as str.*got: 8"),
        ("layers = ['fp8']", r"wrong type.*layers rule 1.*a table"),
        ("[calibration]\nalgorithm = 'mex'\n" + RULE, r"Unknown calibration algorithm.*expected: max.*got: mex"),
        ("[calibration]\nalpha = 1.5\n" + RULE, r"out of range.*alpha.*0 to 1.*1\.5"),
        ("[calibration]\nalgorithm = 'smoothquant'\n" + RULE, r"no layer to smooth.*format int8"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, message: str):
    with pytest.raises(InputError, match=f"(?s){message}"):
        load_recipe(write(tmp_path, text))


def test_a_pattern_without_a_layer_names_the_close_ones(tmp_path: Path):
    recipe = load_recipe(write(tmp_path, RULE + RULE.replace("to_qkv", "to_qvk")))
    with pytest.raises(InputError, match=r"(?s)no layer.*mine, layers rule 2.*blocks\.\*\.attn1\.to_qkv.*to_qvk"):
        recipe.assign(full_size_model())
    depthwise = load_recipe(write(tmp_path, RULE.replace("attn1.to_qkv", "ff.conv_depth")))
    with pytest.raises(InputError, match="no layer"):
        depthwise.assign(full_size_model())


def test_layers_of_partial_blocks_are_refused(tmp_path: Path):
    recipe = load_recipe(write(tmp_path, RULE.replace("fp8", "nvfp4")))
    odd = full_size_model(num_attention_heads=10, attention_head_dim=20, cross_attention_head_dim=10)
    with pytest.raises(FormatError, match=r"(?s)blocks\.0\.attn1\.to_qkv.*K = 200"):
        recipe.assign(odd)


def test_unknown_recipe_names_the_close_ones():
    with pytest.raises(InputError, match=r"(?s)No such recipe.*nvfp4"):
        load_recipe("nvfp")
