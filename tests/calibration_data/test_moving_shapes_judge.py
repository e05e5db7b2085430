"""The judge reads fresh scenes, through degradations, and is not fooled by planted errors."""

import io
import random
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sana_edge.calibration_data.moving_shapes import ATTRIBUTES, Scene, all_contents, judge, read, render, sample_scene
from sana_edge.runtime.errors import InputError

EVERYTHING = list(all_contents())


@pytest.fixture
def fresh() -> random.Random:
    seed = time.time_ns()
    print("seed", seed)
    torch.manual_seed(seed % 2**31)
    return random.Random(seed)


def clean(video):
    return video


def blur_and_noise(video):
    """3x3 mean and noise of 5% of the range."""
    return F.avg_pool3d(video[None], (1, 3, 3), 1, (0, 1, 1))[0] + 0.1 * torch.randn_like(video)


def jpeg(video):
    frames = []
    for frame in ((video.permute(1, 2, 3, 0) + 1) * 127.5).round().byte().numpy():
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=40)
        frames.append(np.asarray(Image.open(buffer)))
    return np.stack(frames)


@pytest.mark.slow
@pytest.mark.parametrize("degrade", [clean, blur_and_noise, jpeg])
def test_fresh_scenes_read_right(fresh, degrade):
    scenes = [sample_scene(fresh, EVERYTHING) for _ in range(100)]
    wrong = []
    for first in range(0, len(scenes), 10):
        some = scenes[first : first + 10]
        for scene, video in zip(some, render(some), strict=True):
            verdict = judge(degrade(video), scene.content)
            if not (verdict.adherence and verdict.speed):
                wrong.append((scene, verdict))
    assert len(wrong) <= 1, wrong


def moving_scene(fresh: random.Random) -> Scene:
    return sample_scene(fresh, [content for content in EVERYTHING if content.direction != "still"])


@pytest.mark.parametrize("attribute", ["shape", "colour", "background", "direction"])
def test_a_wrong_attribute_is_found_and_nothing_else(fresh, attribute):
    for _ in range(5):
        scene = moving_scene(fresh)
        taken = {scene.content.colour, scene.content.background}
        other = fresh.choice(
            [
                value
                for value in ATTRIBUTES[attribute]
                if value not in taken | {scene.content.direction, scene.content.shape}
            ]
        )
        claimed = replace(scene.content, **{attribute: other})
        verdict = judge(render([scene])[0], claimed)
        right = {name: getattr(verdict, name) for name in ("shape", "colour", "background", "direction")}
        assert right == {name: name != attribute for name in right}
        assert not verdict.adherence


def test_a_wrong_speed_is_found_on_its_own(fresh):
    scene = moving_scene(fresh)
    claimed = replace(scene.content, motion_score={10: 30, 30: 50, 50: 10}[scene.content.motion_score])
    verdict = judge(render([scene])[0], claimed)
    assert verdict.adherence and not verdict.speed


def test_a_frozen_video_does_not_move(fresh):
    scene = moving_scene(fresh)
    video = render([scene])[0]
    verdict = judge(video[:, :1].expand_as(video), scene.content)
    assert verdict.reading.direction == "still" and verdict.shape and verdict.colour
    assert not verdict.direction and not verdict.speed and not verdict.adherence


@pytest.mark.parametrize("spoil", ["blank", "not a number", "noise", "vanishing"])
def test_a_spoilt_video_adheres_to_nothing(fresh, spoil):
    scene = moving_scene(fresh)
    video = render([scene])[0]
    if spoil == "blank":
        video = video[:, :, :1, :1].expand_as(video)
    elif spoil == "not a number":
        video[0, 3, 5, 7] = float("nan")
    elif spoil == "noise":
        video = torch.rand_like(video) * 2 - 1
    else:
        video[:, video.shape[1] // 2 :] = video[:, :1, :1, :1]
    verdict = judge(video, scene.content)
    assert not (verdict.shape or verdict.direction or verdict.adherence)
    if spoil == "not a number":
        assert not (verdict.colour or verdict.background or verdict.speed)


def test_arrays_read_as_tensors_do(fresh):
    video = render([sample_scene(fresh, EVERYTHING)])[0]
    array = ((video.permute(1, 2, 3, 0) + 1) / 2).numpy()
    expected = read(video)
    for reading in (read(array), read((array * 255).round().astype(np.uint8))):
        assert replace(reading, velocity=None, overlap=0.0) == replace(expected, velocity=None, overlap=0.0)


def test_another_layout_is_refused():
    with pytest.raises(InputError, match="cannot read"):
        judge(torch.zeros(33, 3, 64, 64), EVERYTHING[0])
