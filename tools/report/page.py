"""report.html: one self-contained page that a person opens, reads top down and sends on.

Videos, styles and script are embedded: the page loads nothing, works offline and is the same in ten years.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ...runtime.errors import MissingExtraError
from .charts import Line, line_chart
from .gate import FAIL, NOT_GATED, PASS
from .schema import Adherence, Report, Side

ASSETS = Path(__file__).parent
NOTHING = "\N{EN DASH}"
FORMATS = ("nvfp4", "mxfp8", "fp8", "int8", "bf16")
_STATUS = {PASS: "passed", FAIL: "failed", NOT_GATED: "not gated"}


def render(report: Report, folder: Path) -> str:
    """The page of a report whose videos lie in `folder`. Raises MissingExtraError without jinja2."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("jinja2", "report", "A report page") from error
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"size": size, "ms": milliseconds, "number": number, "percent": percent}
    return environment.get_template("page.html").render(
        report=report,
        css=Markup((ASSETS / "page.css").read_text(encoding="utf-8")),
        script=Markup((ASSETS / "page.js").read_text(encoding="utf-8")),
        candidates=[_candidate_view(report, side) for side in report.candidates],
        reference_clips={(c.prompt, c.seed): embed(folder / c.video) for c in report.reference.clips},
        embed=lambda clip: embed(folder / clip.video),
        adherence=adherence_text,
        status=_STATUS,
        gates=[(side, gate) for side in report.candidates for gate in side.gates],
        sides=[report.reference, *report.candidates],
    )


def _candidate_view(report: Report, side: Side) -> dict[str, Any]:
    ticks = [f"{t:.0f}" for t in report.timesteps]
    forced = [Line("cond", "a", [c.cond_error for c in side.clips])]
    if all(c.uncond_error for c in side.clips):
        forced.append(Line("uncond", "b", [c.uncond_error for c in side.clips]))
    drift = [Line("latents", "c", [c.drift for c in side.clips])]
    return {
        "side": side,
        "forced_chart": line_chart("Velocity error by step", forced, ticks, x_label="timestep", percent=True),
        "drift_chart": line_chart("Latent drift by step", drift, ticks, x_label="timestep", percent=True),
        "strip": precision_strip(side.layers),
        "formats": format_counts(side.layers),
    }


def precision_strip(layers: Mapping[str, str]) -> dict[str, Any]:
    """Layers as a grid: a row a kind of layer, a column a block, and what lies outside the blocks by name.

    A block without that layer has an empty cell.
    """
    blocks: dict[str, dict[int, str]] = {}
    others = {}
    for name, format_name in layers.items():
        head, _, rest = name.partition(".")
        index, _, kind = rest.partition(".")
        if head in ("blocks", "transformer_blocks") and index.isdigit():
            blocks.setdefault(kind, {})[int(index)] = format_name
        else:
            others[name] = format_name
    count = 1 + max((i for row in blocks.values() for i in row), default=-1)
    rows = {kind: [row.get(i, "") for i in range(count)] for kind, row in blocks.items()}
    return {"rows": rows, "count": count, "others": others}


def format_counts(layers: Mapping[str, str]) -> dict[str, int]:
    """How many layers compute in each format, lowest precision first."""
    counts = {name: sum(f == name for f in layers.values()) for name in FORMATS}
    return {name: count for name, count in counts.items() if count}


def embed(video: Path) -> str:
    """An mp4 file as a data URI."""
    return "data:video/mp4;base64," + base64.b64encode(video.read_bytes()).decode()


def adherence_text(adherence: Adherence | None) -> str:
    """What the judge says of a clip in words; nothing where it was not judged."""
    if adherence is None:
        return ""
    wrong = [name for name in ("shape", "colour", "background", "direction") if not getattr(adherence, name)]
    return f"shows another {', '.join(wrong)} than asked" if wrong else "shows what was asked"


def size(count: int) -> str:
    """Bytes in decimal units, as disks are sold."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError("unreachable")


def milliseconds(seconds: float) -> str:
    """A duration in ms with three digits."""
    value = 1000 * seconds
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def number(value: float | None, digits: int = 4) -> str:
    """A number with at most so many decimals; a dash for none."""
    if value is None:
        return NOTHING
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent(value: float | None) -> str:
    """A share as a percentage with one decimal; a dash for none."""
    return NOTHING if value is None else f"{100 * value:.1f}%"
