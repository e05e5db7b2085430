"""The verb `inspect`: what a folder of sana-edge holds, read from its manifest after every digest was checked."""

from __future__ import annotations

import json
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from ..runtime.artefact import read_manifest
from .doctor import columns
from .report.page import size

_SHOWN = 100
"""Characters of a value on its line; --json has all."""


def inspect(options: Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Says stage, origin, per-layer formats and files of an artefact. Raises ArtefactError for a changed payload."""
    folder = options.folder
    manifest = read_manifest(folder)
    sizes = {name: (folder / name).stat().st_size for name in manifest.payloads}
    formats: Mapping[str, str] = manifest.details.get("formats", {})
    say(columns([["stage", manifest.stage], ["digest", manifest.digest]]))
    details = {k: v for k, v in manifest.details.items() if k not in ("formats", "layers", "engines")}
    for title, values in (("made from", manifest.inputs), ("result", details)):
        if values:
            say(f"\n{title}\n" + columns([[f"  {name}", _short(value)] for name, value in values.items()]))
    for target, engine in manifest.details.get("engines", {}).items():
        say(
            f"\nengine {target}\n" + columns([[f"  {k}", str(v)] for k, v in engine.items() if not isinstance(v, dict)])
        )
    if formats:
        counts = ", ".join(f"{count} {name}" for name, count in Counter(formats.values()).most_common())
        say(f"\nlayers ({counts})")
        say(columns(layer_rows(formats, manifest.details)))
    say(f"\nfiles ({size(sum(sizes.values()))})")
    say(columns([[f"  {name}", size(sizes[name]), manifest.payloads[name][:16]] for name in sizes]))
    inputs = {"inputs": manifest.inputs, "details": manifest.details}
    return {"folder": folder, "stage": manifest.stage, "digest": manifest.digest, **inputs, "bytes": sizes}


def layer_rows(formats: Mapping[str, str], details: Mapping[str, Any]) -> list[list[str]]:
    """A row a layer: the format asked for, then whatever the stage knows: what graph and engines got, bytes, SQNR."""
    layers = details.get("layers", {})
    got: dict[str, Mapping[str, str]] = {"asked": formats}
    for title, key, unit in (("graph", "graph", ""), ("bytes", "bytes", ""), ("weight SQNR", "sqnr_db", " dB")):
        found = {name: f"{layer[key]}{unit}" for name, layer in layers.items() if key in layer}
        got |= {title: found} if found else {}
    got |= {target: engine.get("compiled", {}) for target, engine in details.get("engines", {}).items()}
    return [["", *got], *([f"  {name}", *(column.get(name, "") for column in got.values())] for name in formats)]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
