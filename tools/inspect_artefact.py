"""The verb `inspect`: what a folder of sana-edge holds, read from its manifest after every digest was checked."""

from __future__ import annotations

import json
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..runtime.artefact import Manifest, read_manifest, verify_payloads
from .doctor import columns
from .report.page import size

_SHOWN = 100
"""Characters of a value on its line; --json has all."""


def inspect(options: Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Says stage, origin, per-layer formats and files of an artefact. Raises ArtefactError for a changed payload."""
    folder = options.folder
    manifest = read_manifest(folder, verify=False)
    layers = layer_rows(folder, manifest)
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
        say(columns(layers))
    say(f"\nfiles ({size(sum(sizes.values()))})")
    say(columns([[f"  {name}", size(sizes[name]), manifest.payloads[name][:16]] for name in sizes]))
    inputs = {"inputs": manifest.inputs, "details": manifest.details}
    return {"folder": folder, "stage": manifest.stage, "digest": manifest.digest, **inputs, "bytes": sizes}


def layer_rows(folder: Path, manifest: Manifest) -> list[list[str]]:
    """A row a layer: the format asked for, and what the stage made of it. Checks the payloads' digests."""
    if manifest.stage in ("export", "build"):
        from ..export.inspect import layer_table

        table = layer_table(folder)
        rows = [[f"  {r.layer}", r.asked, r.graph, str(r.bytes), *r.compiled.values()] for r in table]
        return [["", "asked", "graph", "bytes", *table[0].compiled], *rows]
    verify_payloads(folder, manifest)
    layers = manifest.details.get("layers", {})
    known = {name: [str(layer["bytes"]), f"{layer['sqnr_db']} dB"] for name, layer in layers.items()}
    formats = manifest.details.get("formats", {})
    return [
        ["", "asked", "bytes", "weight SQNR"],
        *([f"  {n}", f, *known.get(n, ["", ""])] for n, f in formats.items()),
    ]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
