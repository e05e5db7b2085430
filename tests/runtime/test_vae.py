"""Both VAE families in fp32, against diffusers' own pre- and postprocessing."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sana_edge.runtime.errors import ArtefactError, InputError
from sana_edge.runtime.vae import decode_latents, encode_image, load_vae, to_uint8

WEIGHTS = "vae/diffusion_pytorch_model.safetensors"


def ltx2(folder):
    """A tiny AutoencoderKLLTX2Video (compression 8x32x32 as in the 720p checkpoint) with its statistics as buffers."""
    from diffusers import AutoencoderKLLTX2Video

    vae = AutoencoderKLLTX2Video(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(16, 32, 64),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
    )
    vae.latents_mean.copy_(torch.randn(8))
    vae.latents_std.copy_(torch.rand(8) + 0.5)
    vae.save_pretrained(folder / "vae")
    return folder


@pytest.fixture(params=["wan", "ltx2"])
def family(request, checkpoint, tmp_path):
    """A folder with a VAE, the VAE as diffusers loads it, its latents' mean and std, and its compression."""
    import diffusers

    if request.param == "wan":
        vae = diffusers.AutoencoderKLWan.from_pretrained(checkpoint / "vae")
        return checkpoint, vae, torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std), (4, 8)
    vae = diffusers.AutoencoderKLLTX2Video.from_pretrained(ltx2(tmp_path) / "vae")
    return tmp_path, vae, vae.latents_mean, vae.latents_std, (8, 32)


def test_decoding_equals_upstream(family):
    from diffusers.video_processor import VideoProcessor

    folder, vae, mean, std, (temporal, spatial) = family
    latents = torch.randn(1, len(mean), 3, 64 // spatial, 96 // spatial)
    with torch.no_grad():
        video = vae.decode(latents * std.view(1, -1, 1, 1, 1) + mean.view(1, -1, 1, 1, 1)).sample
    frames = decode_latents(load_vae(folder), latents)
    assert frames.shape == (2 * temporal + 1, 64, 96, 3)
    expected = VideoProcessor().postprocess_video(video, output_type="np")[0]
    np.testing.assert_allclose(frames, expected, atol=1e-5)
    pil = VideoProcessor().postprocess_video(video, output_type="pil")[0]
    assert np.abs(to_uint8(frames).astype(int) - np.stack([np.asarray(i, dtype=int) for i in pil])).max() <= 1


def test_encoding_equals_upstream_and_ignores_chance(family):
    from diffusers.video_processor import VideoProcessor
    from PIL import Image

    folder, vae, mean, std, (_, spatial) = family
    image = np.random.default_rng().integers(0, 256, (64, 96, 3), dtype=np.uint8)
    pixels = VideoProcessor().preprocess(Image.fromarray(image), height=64, width=96)
    with torch.no_grad():
        mode = vae.encode(pixels[:, :, None]).latent_dist.mode()
    latents = encode_image(load_vae(folder), image)
    assert latents.shape == (1, len(mean), 1, 64 // spatial, 96 // spatial)
    expected = (mode - mean.view(1, -1, 1, 1, 1)) / std.view(1, -1, 1, 1, 1)
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)


def test_uint8_rounds_to_nearest():
    levels = torch.arange(256)
    assert (to_uint8((levels + 0.4) / 255) == levels.numpy()).all()
    assert (to_uint8((levels - 0.4).clamp(min=0) / 255) == levels.numpy()).all()


def test_the_vae_is_fp32_even_from_bf16_weights_and_without_tf32(checkpoint, tmp_path, monkeypatch):
    shutil.copytree(checkpoint / "vae", tmp_path / "vae")
    save_file({k: v.bfloat16() for k, v in load_file(tmp_path / WEIGHTS).items()}, tmp_path / WEIGHTS)
    vae = load_vae(tmp_path)
    assert {p.dtype for p in vae.parameters()} == {torch.float32}
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    decode, seen = vae.decode, []

    def watch(*args, **kwargs):
        seen.append((torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()))
        return decode(*args, **kwargs)

    monkeypatch.setattr(vae, "decode", watch)
    try:
        decode_latents(vae, torch.randn(1, 4, 1, 4, 4))
        assert seen == [(False, "highest")]
        assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (True, "high")
    finally:
        torch.set_float32_matmul_precision(before)


def test_unsupported_and_damaged_vaes_are_refused(checkpoint, tmp_path):
    shutil.copytree(checkpoint / "vae", tmp_path / "vae")
    tensors = load_file(tmp_path / WEIGHTS)
    first = next(iter(tensors))
    save_file(tensors | {first: tensors[first][:1]}, tmp_path / WEIGHTS)
    with pytest.raises(ArtefactError, match=rf"(?s)do not fit.*{first}"):
        load_vae(tmp_path)
    save_file({k: v for k, v in tensors.items() if k != first}, tmp_path / WEIGHTS)
    with pytest.raises(ArtefactError, match=rf"(?s)missing.*{first}"):
        load_vae(tmp_path)
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    (tmp_path / "vae" / "config.json").write_text(json.dumps(config | {"_class_name": "AutoencoderDC"}))
    with pytest.raises(InputError, match=r"(?s)Unsupported VAE.*AutoencoderDC"):
        load_vae(tmp_path)
