"""The world's captions, its split and its prompt files."""

import json
import random
import time
from dataclasses import astuple, replace
from pathlib import Path

import pytest
import sana_edge.calibration_data
import torch
from sana_edge.calibration_data.moving_shapes import (
    ATTRIBUTES,
    FRAMES,
    HEIGHT,
    WIDTH,
    Content,
    all_contents,
    caption,
    held_out_contents,
    masks,
    parse_caption,
    place,
    prompt,
    render,
    sample_scene,
    training_contents,
)
from sana_edge.calibration_data.moving_shapes.scene import RGB, SPEEDS
from sana_edge.runtime.errors import InputError
from sana_edge.tools.nano.prompts import calibration_selection, held_out_selection, prompt_lines

CIRCLE = Content("circle", "red", "blue", "right", 30)


@pytest.fixture
def fresh() -> random.Random:
    seed = time.time_ns()
    print("seed", seed)
    return random.Random(seed)


def test_caption_of_the_readme_example():
    assert caption(CIRCLE) == "a red circle moves left to right on a blue background. motion score: 30."
    assert (
        prompt(replace(CIRCLE, colour="orange", direction="still"))
        == "an orange circle stays still on a blue background."
    )


def test_every_caption_parses_back_and_is_unique():
    contents = list(all_contents())
    assert [parse_caption(caption(content)) for content in contents] == contents
    assert [parse_caption(prompt(content), content.motion_score) for content in contents] == contents
    assert len({caption(content) for content in contents}) == len(contents)


def test_captions_survive_what_the_pipelines_do_to_prompts():
    assert parse_caption("  A Red circle moves left to right on a BLUE background. Motion score: 30. ") == CIRCLE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle",
        "a red red circle moves left to right on a blue background.",
        "a mauve circle moves left to right on a blue background.",
        "a red circle moves left to right on a red background.",
        "a red circle moves left to right on a blue background. motion score: 31.",
        "a red circle moves left to right on a blue background. motion score: 30. and more",
    ],
)
def test_other_texts_are_refused(text):
    with pytest.raises(InputError):
        parse_caption(text)


def test_training_and_held_out_partition_the_world():
    training, held_out = training_contents(), held_out_contents()
    assert not set(training) & set(held_out)
    assert set(training) | set(held_out) == set(all_contents())
    assert 0.05 < len(held_out) / (len(training) + len(held_out)) < 0.12


def test_training_shows_every_pair_of_attribute_values():
    def pairs(contents):
        return {
            (i, a, j, b) for c in contents for i, a in enumerate(astuple(c)) for j, b in enumerate(astuple(c)) if i < j
        }

    assert pairs(training_contents()) == pairs(all_contents())


@pytest.mark.parametrize(
    ("name", "selection", "count"),
    [("prompts.jsonl", calibration_selection, 32), ("heldout.jsonl", held_out_selection, 64)],
)
def test_prompt_files_are_what_the_world_says(name, selection, count):
    path = Path(sana_edge.calibration_data.__file__).parent / name
    assert path.read_text() == prompt_lines(selection())
    records = [json.loads(line) for line in path.read_text().splitlines()]
    contents = [parse_caption(record["prompt"], record["motion_score"]) for record in records]
    pool = set(training_contents() if name == "prompts.jsonl" else held_out_contents())
    assert len(set(contents)) == count and set(contents) <= pool
    for attribute, known in ATTRIBUTES.items():
        assert {getattr(content, attribute) for content in contents} == set(known)


def test_shapes_stay_inside_the_frame(fresh):
    everything = list(all_contents())
    mask = masks([sample_scene(fresh, everything) for _ in range(48)])
    assert mask.shape == (48, FRAMES, HEIGHT, WIDTH)
    area = mask.sum(dim=(2, 3))
    assert (area > 300).all()
    assert ((area - area[:, :1]).abs() < 0.02 * area[:, :1]).all()
    assert not mask[..., [0, -1], :].any() and not mask[..., [0, -1]].any()


def test_centroid_moves_by_the_captions_velocity(fresh):
    scenes = [sample_scene(fresh, list(all_contents())) for _ in range(16)]
    mask = masks(scenes)
    area = mask.sum(dim=(2, 3))
    x = (mask.sum(dim=2) * (torch.arange(WIDTH) + 0.5)).sum(-1) / area
    y = (mask.sum(dim=3) * (torch.arange(HEIGHT) + 0.5)).sum(-1) / area
    for scene, track_x, track_y in zip(scenes, x, y, strict=True):
        dx, dy = scene.content.velocity
        assert (track_x[-1] - track_x[0]).item() == pytest.approx(dx * (FRAMES - 1), abs=0.2)
        assert (track_y[-1] - track_y[0]).item() == pytest.approx(dy * (FRAMES - 1), abs=0.2)
        speed = 0.0 if scene.content.direction == "still" else SPEEDS[scene.content.motion_score]
        assert (dx**2 + dy**2) ** 0.5 == pytest.approx(speed)


def test_render_paints_the_named_colours(fresh):
    scene = place(Content("square", "orange", "gray", "still", 10), fresh)
    video = render([scene])
    assert video.shape == (1, 3, FRAMES, HEIGHT, WIDTH) and video.dtype == torch.float32
    x, y = (int(centre) for centre in scene.start)
    for pixel, name in ((video[0, :, 0, y, x], "orange"), (video[0, :, 0, 0, 0], "gray")):
        assert torch.allclose((pixel + 1) * 127.5, torch.tensor(RGB[name]).float(), atol=1e-3)


def test_a_path_longer_than_the_frame_is_refused(fresh):
    with pytest.raises(InputError, match="leave the frame"):
        place(replace(CIRCLE, direction="down", motion_score=50), fresh, frames=200)
