"""Prompt files: JSON lines of prompt, negative prompt and motion score; and the line between calibration and held-out.

Calibration that saw the prompts a report is judged on would flatter the report, so a held-out prompt in a calibration
file is an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from ..runtime.errors import InputError
from ..runtime.text import with_motion_score

PROMPTS = Path(__file__).with_name("prompts.jsonl")
HELDOUT = Path(__file__).with_name("heldout.jsonl")


@dataclass(frozen=True)
class Prompt:
    """One line of a prompt file. `motion_score` is what the prompt's " motion score: N." will say."""

    prompt: str
    negative_prompt: str = ""
    motion_score: int = 30


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a JSON-lines file; empty lines are skipped.

    Raises InputError naming file and line for what is no prompt, and for a file without any.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("Prompt file cannot be read", where=path, got=error) from error
    prompts = [_parse(line, f"{path}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise InputError("Prompt file is empty", where=path, expected='lines like {"prompt": "a red circle ..."}')
    return prompts


def refuse_heldout(prompts: Iterable[Prompt], path: Path) -> None:
    """Raises InputError when a prompt of the file `path` is one of the packaged held-out prompts."""
    heldout = {_wording(p) for p in read_prompts(HELDOUT)}
    overlap = [p.prompt for p in prompts if _wording(p) in heldout]
    if overlap:
        raise InputError(
            f"{len(overlap)} of the calibration prompts are held out for evaluation",
            where=path,
            expected=f"no prompt of {HELDOUT.name}",
            got=overlap[0],
            fix="calibrate with other prompts",
        )


def _parse(line: str, where: str) -> Prompt:
    kinds = {"prompt": str, "negative_prompt": str, "motion_score": int}
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError("Line is not valid JSON", where=where, got=error) from error
    known = ", ".join(f.name for f in fields(Prompt))
    if not isinstance(entry, dict) or not entry.keys() <= kinds.keys():
        raise InputError("Line is not a prompt", where=where, expected=f"an object with {known}", got=line.strip())
    for key, value in entry.items():
        if type(value) is not kinds[key]:
            raise InputError(f"{key} has the wrong type", where=where, expected=kinds[key].__name__, got=repr(value))
    if not entry.get("prompt", "").strip():
        raise InputError("Prompt is empty", where=where, fix="describe the video in a sentence")
    if entry.get("motion_score", 0) < 0:
        raise InputError("Motion score out of range", where=where, expected="0 or more", got=entry["motion_score"])
    return Prompt(**entry)


def _wording(prompt: Prompt) -> str:
    """What the text encoder will read of a prompt, motion score included, without case, spacing and stops."""
    return " ".join(with_motion_score(prompt.prompt, prompt.motion_score).casefold().replace(".", " ").split())
