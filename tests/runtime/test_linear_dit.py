"""LinearDiT equals diffusers' transformer on random geometries, and keeps fp32 where bf16 would lose the video."""

import random
from statistics import median

import pytest
import torch
from sana_edge.runtime.checkpoint import from_diffusers
from sana_edge.runtime.linear_attention import linear_attention, rope_table
from sana_edge.runtime.linear_dit import DiTConfig, LinearDiT, RMSNorm, gated_residual, modulated_norm


def random_pair(patch, mlp_ratio):
    """diffusers' transformer of a random geometry, and the LinearDiT with its weights.

    Heads are wide enough that no token's attention sum nearly vanishes, where the two epsilons differ.
    """
    from diffusers import SanaVideoTransformer3DModel

    heads, dim, channels = random.randint(1, 4), random.choice([24, 32, 38]), random.randint(1, 6)
    cross = random.choice([n for n in (1, 2, heads) if heads * dim % n == 0])
    upstream = SanaVideoTransformer3DModel(
        in_channels=channels,
        out_channels=channels,
        num_attention_heads=heads,
        attention_head_dim=dim,
        num_layers=random.randint(1, 3),
        num_cross_attention_heads=cross,
        cross_attention_head_dim=heads * dim // cross,
        cross_attention_dim=heads * dim,
        caption_channels=random.choice([8, 24]),
        mlp_ratio=mlp_ratio,
        patch_size=patch,
        attention_bias=random.random() < 0.5,
    ).eval()
    for name, parameter in upstream.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, 1, 0.3)
    config = DiTConfig.from_diffusers(upstream.config)
    model = LinearDiT(config)
    state = upstream.state_dict()
    model.load_state_dict({name: from_diffusers(name, state, config) for name in model.state_dict()})
    return upstream, model.eval()


def random_inputs(config, *, per_frame):
    """Latents, timesteps, text and a mask with padding, for a batch of 2 of any size."""
    frames, tokens, rows, columns = (random.randint(low, 5) for low in (1, 1, 3, 3))
    latents = torch.randn(2, config.in_channels, frames, rows * config.patch_size[1], columns * config.patch_size[2])
    timesteps = torch.rand(2, frames) * 1000 if per_frame else torch.rand(2) * 1000
    text = torch.randn(2, tokens, config.caption_channels)
    return latents, timesteps, text, (torch.arange(tokens) < torch.tensor([[1], [tokens]])).long()


def run_upstream(upstream, latents, timesteps, text, mask):
    """diffusers takes the timesteps of image-to-video per token."""
    patch = upstream.config.patch_size
    if timesteps.ndim == 2:
        rows, columns = latents.shape[3] // patch[1], latents.shape[4] // patch[2]
        timesteps = timesteps[:, None, :, None, None].expand(-1, 1, -1, rows, columns)
    dtype = upstream.dtype
    with torch.no_grad():
        return upstream(latents.to(dtype), text.to(dtype), timesteps, encoder_attention_mask=mask).sample


def relative_error(got, expected):
    return ((got.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize("mlp_ratio", [2.5, 3.0])
@pytest.mark.parametrize("patch", [(1, 2, 2), (1, 1, 1)])
@pytest.mark.parametrize("per_frame", [False, True])
def test_fp32_equals_diffusers(patch, mlp_ratio, per_frame):
    for _ in range(5):
        upstream, model = random_pair(patch, mlp_ratio)
        inputs = random_inputs(model.config, per_frame=per_frame)
        with torch.no_grad():
            velocity = model(*inputs)
        expected = run_upstream(upstream, *inputs)
        assert velocity.shape == inputs[0].shape
        assert relative_error(velocity, expected) < 1e-5, model.config


def test_bf16_is_closer_to_fp32_than_diffusers_is():
    ours, theirs = [], []
    for _ in range(15):
        upstream, model = random_pair((1, 2, 2), 3.0)
        inputs = random_inputs(model.config, per_frame=False)
        expected = run_upstream(upstream, *inputs)
        with torch.no_grad():
            ours.append(relative_error(model.bfloat16()(*inputs), expected))
        theirs.append(relative_error(run_upstream(upstream.bfloat16(), *inputs), expected))
    assert median(ours) < median(theirs)
    assert median(ours) < 0.02


def reference_attention(q, k, v, rope):
    """The same attention token by token in fp64, with complex rotation instead of pairs."""
    q, k, v = q.double().relu(), k.double().relu(), v.double()
    turn = torch.complex(rope[0].double(), rope[1].double())[:, None]

    def rotated(x):
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)

    weights = torch.einsum("bnhd,bmhd->bhnm", rotated(q), rotated(k))
    sums = torch.einsum("bnhd,bmhd->bhnm", q, k).sum(dim=-1)
    return torch.einsum("bhnm,bmhd->bnhd", weights, v) / (sums + 1e-8).transpose(1, 2).unsqueeze(-1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_over_many_tokens_stays_exact_in_low_precision_inputs(dtype):
    grid, heads, dim = (4, 16, 32), 2, 24
    rope = rope_table(dim, grid)
    q, k, v = (torch.randn(1, 4 * 16 * 32, heads, dim).mul(s).to(dtype) for s in (4, 40, 1))
    attended = linear_attention(q, k, v, rope)
    assert attended.dtype == torch.float32
    assert relative_error(attended, reference_attention(q, k, v, rope)) < 1e-5


def test_a_token_that_attends_to_nothing_gets_zero_and_not_nan():
    q, k, v = -torch.rand(1, 6, 1, 8), torch.rand(1, 6, 1, 8), torch.rand(1, 6, 1, 8)
    assert (linear_attention(q, k, v, rope_table(8, (1, 2, 3))) == 0).all()


def test_norms_survive_a_large_offset_in_bf16():
    """With statistics in bf16, a mean of 60 at a spread of 0.5 would be rounded away."""
    x = (60 + 0.5 * torch.randn(4, 50, 2240)).bfloat16()
    shift, scale = torch.randn(2, 4, 1, 2240).unbind()
    exact = x.double()
    exact = (exact - exact.mean(-1, keepdim=True)) / (exact.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    exact = exact * (1 + scale.double()) + shift.double()
    assert relative_error(modulated_norm(x, shift, scale, 1e-6), exact) < 3e-3

    norm = RMSNorm(2240, 1e-5)
    torch.nn.init.normal_(norm.weight, 1, 0.3)
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight.double().bfloat16()
    assert relative_error(norm.bfloat16()(x), exact) < 2e-3


def test_rms_statistics_do_not_overflow_in_fp16():
    x = torch.full((1, 64), 1000.0, dtype=torch.float16)
    torch.testing.assert_close(RMSNorm(64, 1e-5).half()(x), torch.ones(1, 64, dtype=torch.float16))


def test_a_gate_smaller_than_bf16_resolution_is_rounded_once():
    x, update = torch.randn(2, 3000).bfloat16(), torch.randn(2, 3000).bfloat16()
    gate = 1 + torch.rand(2, 3000) / 128
    exact = (x.double() + gate.double() * update.double()).bfloat16()
    assert (gated_residual(x, gate, update) == exact).float().mean() > 0.999


def test_the_temporal_mix_is_summed_in_fp32_and_rounded_once():
    _, model = random_pair((1, 1, 1), 3.0)
    ff, parts = model.blocks[0].ff.bfloat16(), []
    for linear in (ff.conv_point, ff.conv_temp):
        linear.register_forward_hook(lambda module, args, output: parts.append(output.double()))
    with torch.no_grad():
        mixed = ff(torch.randn(2, 5, 6, model.config.width).bfloat16(), 2, 3)
    y, (previous, same, following) = parts[0], parts[1].chunk(3, dim=-1)
    exact = y + same
    exact[:, 1:] += previous[:, :-1]
    exact[:, :-1] += following[:, 1:]
    assert (mixed == exact.bfloat16()).float().mean() > 0.999


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rope_tables_stay_fp32_whatever_the_model_is_cast_to(dtype):
    _, model = random_pair((1, 1, 1), 3.0)
    cos, sin = model.to(dtype).rope((3, 5, 7), torch.device("cpu"))
    assert cos.dtype == sin.dtype == torch.float32
    torch.testing.assert_close(cos.double() ** 2 + sin.double() ** 2, torch.ones_like(cos).double(), rtol=0, atol=1e-6)


def test_rope_tables_are_exact_far_along_each_axis():
    dim, grid = 112, (30, 9, 11)
    cos, sin = rope_table(dim, grid, first_frame=1000)
    angle = torch.atan2(sin.double(), cos.double()).view(*grid, dim // 2)
    positions = {0: (1029, 0, 0), 1: (1000, 8, 0), 2: (1000, 0, 10)}
    frequencies = [[10000 ** (-2 * i / n) for i in range(n // 2)] for n in (40, 36, 36)]
    for frame, row, column in positions.values():
        expected = [p * f for p, axis in zip((frame, row, column), frequencies, strict=True) for f in axis]
        turned = torch.exp(1j * (angle[frame - 1000, row, column] - torch.tensor(expected, dtype=torch.float64)))
        assert (turned - 1).abs().max() < 1e-6


def test_masked_text_changes_nothing():
    _, model = random_pair((1, 2, 2), 3.0)
    latents, timesteps, _, _ = random_inputs(model.config, per_frame=False)
    text = torch.randn(2, 6, model.config.caption_channels)
    mask = torch.tensor([1.0, 1, 0, 1, 0, 0]).expand(2, -1)
    other = torch.where(mask.bool()[..., None], text, torch.randn_like(text) * 10)
    with torch.no_grad():
        torch.testing.assert_close(model(latents, timesteps, text, mask), model(latents, timesteps, other, mask.bool()))
        assert (
            relative_error(model(latents, timesteps, other, torch.ones(2, 6)), model(latents, timesteps, text, mask))
            > 1e-4
        )
