"""Reports of real runs of the nano model at a small size, in this process and as a command."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sana_edge.calibration_data.moving_shapes import caption, held_out_contents, place, render
from sana_edge.calibration_data.prompts import Prompt
from sana_edge.quantize.quantize import quantize
from sana_edge.runtime.checkpoint import find_checkpoint
from sana_edge.runtime.denoise import initial_noise
from sana_edge.runtime.errors import InputError, UsageError
from sana_edge.runtime.pipeline import Settings
from sana_edge.runtime.quantized_linear import load_denoiser_model
from sana_edge.runtime.schedule import TEXT_TO_VIDEO, load_scheduler
from sana_edge.runtime.text import encode_prompts
from sana_edge.runtime.video import read_video
from sana_edge.tools.report.collect import Setup, adherence
from sana_edge.tools.report.schema import Report, read_report
from sana_edge.tools.report.stage import make_report
from sana_edge.tools.report.subjects import describe, parse_candidates

SETTINGS = Settings(frames=5, height=64, width=64, steps=2, guidance=3.0)
SETUP = Setup(SETTINGS, dtype="fp32", backend="auto", device="cpu")
PROMPTS = [Prompt(caption(c)) for c in random.sample(held_out_contents(), 2)]
SEED = random.randrange(1000)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano in mxfp8, which needs no calibration."""
    folder = tmp_path_factory.mktemp("quantized") / "mxfp8"
    quantize("nano", "mxfp8", None, folder)
    return folder


@pytest.fixture(scope="module")
def made(quantized: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    """A report of nano against itself and against mxfp8, and where it lies."""
    out = tmp_path_factory.mktemp("made") / "report"
    candidates = [describe("same", "nano"), describe("mxfp8", str(quantized))]
    report = make_report(describe("nano", "nano"), candidates, out, prompts=PROMPTS, seeds=[SEED], setup=SETUP)
    return report, out


def test_reference_against_itself_is_identical(made: tuple[Report, Path]) -> None:
    side = made[0].candidates[0]
    assert (side.cosine_mean, side.error_mean, side.drift_final, side.psnr_mean) == pytest.approx((1, 0, 0, 100))
    assert side.ssim_mean == pytest.approx(1)
    assert side.adherence == made[0].reference.adherence


def test_first_step_is_what_both_models_answer(made: tuple[Report, Path], quantized: Path) -> None:
    """Step 0 again without the report's code: noise, text and timestep through both models, compared by numpy."""
    folder = find_checkpoint("nano")
    [conditioning] = encode_prompts(folder, [PROMPTS[1].prompt], dtype=torch.float32)
    noise = initial_noise((16, 2, 8, 8), SEED)
    time = load_scheduler(folder, TEXT_TO_VIDEO, SETTINGS.steps).timesteps[:1].float()
    answers = []
    for source in (folder, quantized):
        model = load_denoiser_model(source, dtype=torch.float32)
        velocity = model(noise.repeat(2, 1, 1, 1, 1), time.repeat(2), conditioning.text, conditioning.mask)
        answers.append(velocity.detach().numpy().astype(np.float64))
    clip = made[0].candidates[1].clips[1]
    for half, cosines, errors in ((0, clip.uncond_cosine, clip.uncond_error), (1, clip.cond_cosine, clip.cond_error)):
        a, b = (answer[half].ravel() for answer in answers)
        assert cosines[0] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-7)
        assert errors[0] == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a), rel=1e-3)
    assert clip.drift[0] > 0


def test_report_says_what_ran(made: tuple[Report, Path], quantized: Path) -> None:
    report, out = made
    assert read_report(out / "report.json") == report
    assert report.protocol.prompts == [p.prompt for p in PROMPTS]
    side = report.candidates[1]
    assert (side.format, side.kind, side.source) == ("mxfp8", "quantized", str(quantized))
    assert set(side.layers.values()) == {"mxfp8", "bf16"}
    assert side.bytes < report.reference.bytes
    for clip in (*report.reference.clips, *side.clips):
        frames, rate, metadata = read_video(out / clip.video)
        assert (frames.shape, rate, metadata["seed"]) == ((5, 64, 64, 3), 16, SEED)
    assert (out / "report.html").stat().st_size > 10_000


def test_same_report_is_not_made_twice(made: tuple[Report, Path]) -> None:
    report, out = made
    candidates = [describe(side.name, side.source) for side in report.candidates]
    again = make_report(describe("nano", "nano"), candidates, out, prompts=PROMPTS, seeds=[SEED], setup=SETUP)
    assert again == report


def test_candidate_of_another_geometry_is_refused(quantized: Path, tmp_path: Path) -> None:
    reference, candidate = describe("nano", "nano"), describe("q", str(quantized))
    config = json.loads((quantized / "vae" / "config.json").read_text())
    other = tmp_path / "other"
    for name in ("transformer", "vae"):
        (other / name).mkdir(parents=True)
        (other / name / "config.json").write_text((quantized / name / "config.json").read_text())
    (other / "vae" / "config.json").write_text(json.dumps(config | {"scale_factor_temporal": 8}))
    with pytest.raises(InputError, match="other latents"):
        make_report(
            reference, [replace(candidate, folder=other)], tmp_path / "r", prompts=PROMPTS, seeds=[0], setup=SETUP
        )


@pytest.mark.parametrize(
    ("texts", "pairs"),
    [
        (["out/nvfp4"], [("nvfp4", "out/nvfp4")]),
        (["a=x/y", "b=x/z"], [("a", "x/y"), ("b", "x/z")]),
        (["dir/with=sign"], [("with=sign", "dir/with=sign")]),
    ],
)
def test_candidates_are_named_or_take_their_folders_name(texts: list[str], pairs: list[tuple[str, str]]) -> None:
    assert parse_candidates(texts, "nano") == pairs


@pytest.mark.parametrize("texts", [["x/a", "y/a"], ["x/nano"]])
def test_sides_of_one_name_are_refused(texts: list[str]) -> None:
    with pytest.raises(UsageError, match="NAME=DIR"):
        parse_candidates(texts, "nano")


def test_adherence_reads_videos_of_captions_and_no_others() -> None:
    content = random.choice(held_out_contents())
    video = render([place(content, random.Random(SEED))])[0].permute(1, 2, 3, 0).numpy()
    frames = ((video + 1) * 127.5).round().astype(np.uint8)
    shown = adherence(frames, caption(content))
    assert shown is not None and shown.adheres
    another = next(c for c in held_out_contents() if c.shape != content.shape and c.colour != content.colour)
    unasked = adherence(frames, caption(another))
    assert unasked is not None and not (unasked.adheres or unasked.shape or unasked.colour)
    assert adherence(frames, "a cat bakes a cake") is None


def test_missed_gate_exits_with_3_after_writing(quantized: Path, tmp_path: Path) -> None:
    gates, out = tmp_path / "gates.toml", tmp_path / "report"
    gates.write_text("[mxfp8]\ncosine_mean = 1.01\nadherence_drop = 100.0\n")
    size = ("--frames", "5", "--height", "64", "--width", "64", "--steps", "1", "--samples", "1")
    sides = ("--reference", "nano", "--candidate", str(quantized))
    command = (sys.executable, "-m", "sana_edge.tools.cli", "report", *sides, "--out", str(out), *size)
    done = subprocess.run(
        [*command, "--gates", str(gates), "--json"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 3, done.stderr
    assert "mxfp8: mean velocity cosine is" in done.stderr and "1.01" in done.stderr
    answer = json.loads(done.stdout)
    assert (answer["ok"], answer["error"]["type"]) == (False, "GateError")
    assert not read_report(out / "report.json").passed
    assert "Failed" in (out / "report.html").read_text()
