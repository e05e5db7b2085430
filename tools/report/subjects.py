"""What a report compares: a checkpoint, quantized checkpoint, ONNX folder or bundle, described before it is loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ...runtime.artefact import parent_digest
from ...runtime.backends import read_stage
from ...runtime.checkpoint import find_checkpoint, read_config
from ...runtime.errors import InputError, UsageError
from ...runtime.linear_dit import LinearDiT
from ...runtime.quantized_linear import read_formats

LOWEST_FIRST = ("nvfp4", "int8", "fp8", "mxfp8", "bf16")
"""Formats by how much they lose here; a subject is gated as the first of these that it uses."""


@dataclass(frozen=True)
class Subject:
    """One side of a report. `layers` maps every Linear of the denoiser to its format.

    `bytes` is the denoiser's weights on disk; of a bundle those of its graph, since an engine adds compiled kernels.
    """

    name: str
    source: str
    folder: Path
    kind: str
    digest: str
    layers: dict[str, str]
    bytes: int

    @property
    def format(self) -> str:
        """The lowest number format among the layers."""
        return min(self.layers.values(), key=LOWEST_FIRST.index, default="bf16")


def describe(name: str, source: str) -> Subject:
    """Reads what a source is. Raises InputError for what makes no video, ArtefactError for damaged payloads."""
    folder = find_checkpoint(source)
    stage, manifest = read_stage(folder)
    digest = parent_digest(folder)
    if manifest is None or stage == "checkpoint":
        kind = "quantized" if manifest else "checkpoint"
        size = sum(p.stat().st_size for p in (folder / "transformer").glob("*.safetensors"))
        return Subject(name, source, folder, kind, digest, checkpoint_layers(folder), size)
    kind = {"export": "onnx", "build": "bundle"}[stage]
    size = sum(p.stat().st_size for p in folder.glob("denoiser.onnx*"))
    return Subject(name, source, folder, kind, digest, dict(manifest.details["formats"]), size)


def checkpoint_layers(folder: Path) -> dict[str, str]:
    """The format of every Linear of a plain or quantized checkpoint."""
    config = read_config(folder)
    with torch.device("meta"):
        linears = {n: m for n, m in LinearDiT(config).named_modules() if isinstance(m, nn.Linear)}
    formats = read_formats(folder, linears, config)
    return {name: formats[name].name if name in formats else "bf16" for name in linears}


def parse_candidates(texts: Sequence[str], reference: str) -> list[tuple[str, str]]:
    """(name, source) of `[NAME=]DIR` arguments; the name is the folder's unless given.

    Raises UsageError for names that appear twice or are the reference's.
    """
    pairs = []
    for text in texts:
        name, equals, source = text.partition("=")
        if not equals or not re.fullmatch(r"[\w.-]+", name):
            name, source = Path(text).name or text, text
        pairs.append((name, source))
    names = [reference, *(name for name, _ in pairs)]
    if twice := [name for name in names if names.count(name) > 1]:
        fix = "give names: --candidate NAME=DIR"
        raise UsageError("Two sides of the report have one name", where="--candidate", got=twice[0], fix=fix)
    if not pairs:
        raise InputError("No candidate", expected="at least one")
    return pairs
