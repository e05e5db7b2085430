"""Checkpoints on disk: every way of storing the same weights loads the same model, everything else is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from sana_edge.runtime.checkpoint import WEIGHTS, find_checkpoint, read_config, to_diffusers
from sana_edge.runtime.errors import ArtefactError, InputError
from sana_edge.runtime.quantized_linear import load_denoiser_model


@pytest.fixture
def copy(checkpoint, tmp_path):
    """A copy of the tiny checkpoint's transformer that a test may damage."""
    shutil.copytree(checkpoint / "transformer", tmp_path / "copy" / "transformer")
    return tmp_path / "copy"


def rewrite(folder, change):
    """Saves the transformer's tensors again after `change(tensors)`."""
    tensors = load_file(folder / "transformer" / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / "transformer" / WEIGHTS, {"format": "pt"})


def test_names_go_to_diffusers_and_back(checkpoint):
    state = to_diffusers(load_denoiser_model(checkpoint, dtype=torch.float32).state_dict(), read_config(checkpoint))
    expected = load_file(checkpoint / "transformer" / WEIGHTS)
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name


@pytest.mark.parametrize("shard", ["40KB", "15KB"])
def test_shards_load_like_one_file(checkpoint, tmp_path, shard):
    from diffusers import SanaVideoTransformer3DModel

    whole = load_denoiser_model(checkpoint, dtype=torch.float32).state_dict()
    upstream = SanaVideoTransformer3DModel.from_pretrained(checkpoint / "transformer")
    upstream.save_pretrained(tmp_path / "transformer", max_shard_size=shard)
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 2
    sharded = load_denoiser_model(tmp_path, dtype=torch.float32).state_dict()
    assert whole.keys() == sharded.keys()
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)
    next((tmp_path / "transformer").glob("*-00002-of-*.safetensors")).unlink()
    with pytest.raises(ArtefactError, match=r"(?s)cannot be read.*00002-of-"):
        load_denoiser_model(tmp_path)


def test_weights_take_the_carrier_dtype(checkpoint):
    model = load_denoiser_model(checkpoint)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad or p.is_meta for p in model.parameters())
    assert not model.training


def test_pickled_weights_are_refused(copy):
    torch.save(load_file(copy / "transformer" / WEIGHTS), copy / "transformer" / "diffusion_pytorch_model.bin")
    (copy / "transformer" / WEIGHTS).unlink()
    with pytest.raises(ArtefactError, match=r"(?s)safetensors.*expected: .*safetensors.*got: .*model\.bin"):
        load_denoiser_model(copy)


@pytest.mark.parametrize("keep", [0, 7, 0.5, -1])
def test_truncated_weights_are_refused(copy, keep):
    path = copy / "transformer" / WEIGHTS
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(ArtefactError, match=r"(?s)Weights cannot be read.*diffusion_pytorch_model.*again"):
        load_denoiser_model(copy)


def test_weights_of_another_geometry_are_refused(copy):
    path = copy / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mlp_ratio": 2.5}))
    with pytest.raises(
        ArtefactError, match=r"(?s)wrong shape.*conv_inverted.*\[160, 32\].*\[192, 32\].*another config"
    ):
        load_denoiser_model(copy)


def test_a_missing_tensor_is_named(copy):
    rewrite(copy, lambda tensors: tensors.pop("transformer_blocks.1.attn1.to_k.weight"))
    with pytest.raises(ArtefactError, match=r"(?s)missing.*transformer_blocks\.1\.attn1\.to_k\.weight"):
        load_denoiser_model(copy)


def move_rows(tensors):
    """q and k still stack to the fused shape."""
    q, k = (f"transformer_blocks.0.attn1.to_{c}.weight" for c in "qk")
    tensors[q], tensors[k] = torch.cat([tensors[q], tensors[k][:8]]), tensors[k][8:].contiguous()


def other_patch(tensors):
    """The patch embedding of 16 channels and patch 1x1x1, which has as many columns as 4 channels and patch 1x2x2."""
    tensors["patch_embedding.weight"] = tensors["patch_embedding.weight"].reshape(32, 16, 1, 1, 1)


def flat_temporal(tensors):
    """A temporal convolution whose taps are lost."""
    name = "transformer_blocks.1.ff.conv_temp.weight"
    tensors[name] = tensors[name][:, :, 0, 0].contiguous()


@pytest.mark.parametrize(
    ("change", "name"),
    [(move_rows, "attn1.to_q"), (other_patch, "patch_embedding"), (flat_temporal, "conv_temp")],
)
def test_weights_that_fit_only_after_reshaping_are_refused(copy, change, name):
    rewrite(copy, change)
    with pytest.raises(ArtefactError, match=rf"(?s)wrong shape.*{name}"):
        load_denoiser_model(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guidance_embeds": True}, r"(?s)Unsupported.*guidance_embeds"),
        ({"qk_norm": "layer_norm"}, r"(?s)Unsupported.*qk_norm.*rms_norm_across_heads"),
        ({"patch_size": [2, 2, 2]}, r"(?s)temporal patch"),
        ({"cross_attention_head_dim": 32}, r"(?s)cross-attention width.*32.*2 x 32"),
        ({"mlp_ratio": None}, r"(?s)Incomplete.*mlp_ratio"),
    ],
)
def test_variants_that_are_not_computed_are_refused(copy, change, message):
    path = copy / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        load_denoiser_model(copy)


@pytest.mark.parametrize("text", ["{", "\udcff"])
def test_damaged_configs_are_refused(copy, text):
    (copy / "transformer" / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ArtefactError, match=r"(?s)not valid JSON.*config\.json"):
        load_denoiser_model(copy)
    (copy / "transformer" / "config.json").unlink()
    with pytest.raises(ArtefactError, match=r"(?s)missing.*config\.json"):
        load_denoiser_model(copy)


def test_checkpoints_are_found_by_name_path_and_cached_id(tmp_path, monkeypatch):
    assert (find_checkpoint("nano") / "transformer" / "config.json").exists()
    assert find_checkpoint(tmp_path) == tmp_path
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"(?s)not in the local.*someone/something"):
        find_checkpoint("someone/something")
    with pytest.raises(InputError, match=r"(?s)No such checkpoint.*nothing.*nano"):
        find_checkpoint("nothing")
