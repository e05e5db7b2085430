"""The loop: exact on a flow with a known solution, guidance by formula, observers, and numbers that are not finite."""

import dataclasses

import pytest
import torch
from sana_edge.runtime.denoise import Step, denoise, initial_noise
from sana_edge.runtime.errors import BackendError
from sana_edge.runtime.schedule import SCHEDULERS, load_scheduler

SHAPE = (4, 3, 4, 6)


@pytest.fixture
def text():
    return torch.randn(2, 5, 8), torch.ones(2, 5)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_straight_flow_ends_exactly_at_its_data(checkpoint, text, name, steps):
    noise, data = initial_noise(SHAPE, 1), torch.randn(1, *SHAPE)
    scheduler = load_scheduler(checkpoint, name, steps)

    def straight(latents, timesteps, text, mask):
        return (noise - data).expand_as(latents)

    result = denoise(straight, noise, scheduler, *text, guidance=6.0)
    torch.testing.assert_close(result, data, rtol=0, atol=2e-3)  # the solver starts at sigma 0.9999


def test_guidance_extrapolates_from_the_unconditional_half(checkpoint, text):
    scheduler, noise = load_scheduler(checkpoint, "flow-match-euler", 1), initial_noise(SHAPE, 2)
    uncond, cond = torch.randn(2, 1, *SHAPE).unbind()
    seen: list[Step] = []

    def halves(latents, timesteps, given_text, given_mask):
        torch.testing.assert_close(given_text, text[0])
        return torch.cat([uncond, cond]).to(torch.bfloat16)

    result = denoise(halves, noise, scheduler, *text, guidance=3.5, observe=seen.append)
    uncond, cond = uncond.bfloat16().float(), cond.bfloat16().float()
    torch.testing.assert_close(result, noise - (cond * 3.5 - uncond * 2.5), rtol=1e-5, atol=1e-5)
    assert seen[0].uncond is not None
    assert torch.equal(seen[0].uncond, uncond)
    assert torch.equal(seen[0].cond, cond)


def test_without_guidance_only_the_conditional_half_runs(checkpoint, text):
    seen: list[Step] = []

    def conditional(latents, timesteps, given_text, given_mask):
        assert latents.shape == (1, *SHAPE)
        assert timesteps.shape == (1,)
        torch.testing.assert_close(given_text, text[0][1:])
        return latents

    scheduler = load_scheduler(checkpoint, "dpm-solver++", 2)
    denoise(conditional, initial_noise(SHAPE, 3), scheduler, *text, guidance=1.0, observe=seen.append)
    assert [step.uncond for step in seen] == [None, None]


def test_a_given_first_frame_is_shown_clean_and_never_stepped(checkpoint, text):
    first, noise = torch.randn(1, 4, 1, 4, 6), initial_noise(SHAPE, 4)
    scheduler = load_scheduler(checkpoint, "flow-match-euler", 3)
    times = []

    def wild(latents, timesteps, text, mask):
        assert torch.equal(latents[:, :, :1], first.expand(2, -1, -1, -1, -1))
        times.append(timesteps)
        return torch.randn_like(latents)

    result = denoise(wild, noise, scheduler, *text, guidance=6.0, first_frame=first)
    assert torch.equal(result[:, :, :1], first)
    assert not torch.isclose(result[:, :, 1:], noise[:, :, 1:]).any(dim=1).all()
    expected = torch.stack([torch.tensor([0.0, t, t]).expand(2, -1) for t in scheduler.timesteps.tolist()])
    torch.testing.assert_close(torch.stack(times), expected)


def test_observed_steps_form_a_chain(checkpoint, text):
    seen: list[Step] = []
    done: list[tuple[int, int]] = []
    scheduler, noise = load_scheduler(checkpoint, "dpm-solver++", 4), initial_noise(SHAPE, 5)
    result = denoise(
        lambda x, *_: torch.tanh(x),
        noise,
        scheduler,
        *text,
        guidance=2.0,
        observe=seen.append,
        progress=lambda i, n: done.append((i, n)),
    )
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [s.index for s in seen] == [0, 1, 2, 3]
    assert [s.timestep for s in seen] == scheduler.timesteps.tolist()
    chain = [noise, *(s.next_latents for s in seen)]
    assert all(torch.equal(s.latents, before) for s, before in zip(seen, chain[:-1], strict=True))
    assert torch.equal(chain[-1], result)
    with pytest.raises(dataclasses.FrozenInstanceError):
        seen[0].index = 1  # type: ignore[misc]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_a_number_stops_the_loop_and_names_the_step(checkpoint, text, bad):
    calls = []

    def breaks(latents, *_):
        calls.append(1)
        velocity = torch.zeros_like(latents)
        velocity[-1, 0, 1, 2, 3] = bad if len(calls) == 3 else 0
        return velocity

    scheduler = load_scheduler(checkpoint, "dpm-solver++", 5)
    with pytest.raises(BackendError, match=r"(?s)NaN or infinity.*step 3 of 5") as error:
        denoise(breaks, initial_noise(SHAPE, 6), scheduler, *text, guidance=6.0)
    assert len(calls) == 3
    assert f"timestep {float(scheduler.timesteps[2]):g}" in str(error.value)


def test_a_seed_means_the_same_noise_as_in_diffusers():
    from diffusers.utils.torch_utils import randn_tensor

    expected = randn_tensor((1, *SHAPE), generator=torch.Generator().manual_seed(77), dtype=torch.float32)
    assert torch.equal(initial_noise(SHAPE, 77), expected)
