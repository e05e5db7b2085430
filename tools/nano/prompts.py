"""Write the two prompt files of calibration_data: `python -m sana_edge.tools.nano.prompts`.

Both are functions of the world alone, balanced over its attributes: calibration prompts come from what training saw,
held-out prompts from combinations it never saw.
"""

import json
import random
from collections import Counter
from pathlib import Path

from ...calibration_data.moving_shapes import ATTRIBUTES, Content, held_out_contents, prompt, training_contents

CALIBRATION, HELD_OUT = 32, 64
FOLDER = Path(__file__).parents[2] / "calibration_data"


def _balanced(contents: list[Content], count: int) -> list[Content]:
    """Pick the content whose attributes were used least so far, again and again; ties fall by a seeded shuffle."""
    contents = random.Random(0).sample(contents, len(contents))
    used: Counter[tuple[str, object]] = Counter()
    chosen: list[Content] = []
    for _ in range(count):
        best = min(contents, key=lambda content: sum(used[name, getattr(content, name)] for name in ATTRIBUTES))
        contents.remove(best)
        chosen.append(best)
        used.update((name, getattr(best, name)) for name in ATTRIBUTES)
    return chosen


def calibration_selection() -> list[Content]:
    return _balanced(training_contents(), CALIBRATION)


def held_out_selection() -> list[Content]:
    return _balanced(held_out_contents(), HELD_OUT)


def prompt_lines(contents: list[Content]) -> str:
    """JSON lines; the motion score stands apart, whoever encodes the prompt appends it."""
    records = [
        {"prompt": prompt(content), "negative_prompt": "", "motion_score": content.motion_score} for content in contents
    ]
    return "".join(json.dumps(record) + "\n" for record in records)


if __name__ == "__main__":
    (FOLDER / "prompts.jsonl").write_text(prompt_lines(calibration_selection()))
    (FOLDER / "heldout.jsonl").write_text(prompt_lines(held_out_selection()))
