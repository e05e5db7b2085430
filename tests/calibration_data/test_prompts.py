"""Prompt files: the packaged ones, the line to held-out prompts, and bad lines."""

from __future__ import annotations

from pathlib import Path

import pytest
from sana_edge.calibration_data.prompts import HELDOUT, PROMPTS, Prompt, read_prompts, refuse_heldout
from sana_edge.runtime.errors import InputError


def write(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_packaged_calibration_prompts_are_not_held_out():
    prompts = read_prompts(PROMPTS)
    assert len(prompts) >= 16 and len(set(prompts)) == len(prompts)
    refuse_heldout(prompts, PROMPTS)
    with pytest.raises(InputError, match="held out"):
        refuse_heldout(read_prompts(HELDOUT), HELDOUT)


def test_reads_defaults_and_skips_empty_lines(tmp_path: Path):
    line = '{"prompt": "a cat", "negative_prompt": "blurry", "motion_score": 5}'
    path = write(tmp_path, '{"prompt": "A red circle."}', "", line)
    assert read_prompts(path) == [Prompt("A red circle.", "", 30), Prompt("a cat", "blurry", 5)]


def test_one_held_out_prompt_in_other_words_is_enough(tmp_path: Path):
    stolen = read_prompts(HELDOUT)[7]
    reworded = f"  {stolen.prompt.upper().replace(' ', '  ')} Motion score: {stolen.motion_score}"
    with pytest.raises(InputError, match=r"(?s)1 of the calibration prompts.*mine\.jsonl"):
        refuse_heldout([Prompt("a cat"), Prompt(reworded)], tmp_path / "mine.jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"not valid JSON.*mine\.jsonl, line 2"),
        ('["a cat"]', r"not a prompt.*line 2.*prompt, negative_prompt, motion_score"),
        ('{"prompt": "a cat", "score": 3}', r"not a prompt.*line 2"),
        ('{"negative_prompt": "a cat"}', r"Prompt is empty.*line 2"),
        ('{"prompt": "  "}', r"Prompt is empty.*line 2"),
        ('{"prompt": 3}', r"prompt has the wrong type.*line 2.*expected: str.*got: 3"),
        ('{"prompt": "a cat", "motion_score": true}', r"motion_score has the wrong type.*expected: int"),
        ('{"prompt": "a cat", "motion_score": -1}', r"out of range.*line 2"),
    ],
)
def test_bad_lines_are_refused(tmp_path: Path, line: str, message: str):
    with pytest.raises(InputError, match=f"(?s){message}"):
        read_prompts(write(tmp_path, '{"prompt": "a dog"}', line))


def test_missing_and_empty_files_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="cannot be read"):
        read_prompts(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="is empty"):
        read_prompts(write(tmp_path, "", ""))
