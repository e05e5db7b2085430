"""What each layer of an ONNX folder or bundle was asked to be, and what it became at every step to the engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..runtime.artefact import read_manifest
from ..runtime.errors import InputError


@dataclass(frozen=True)
class LayerRow:
    """One Linear. `asked` is the checkpoint's format, `graph` what stands in the ONNX file, `bytes` what its tensors
    take there. `network` and `compiled` map target -> what TensorRT-RTX was given and what it multiplies in, the
    latter "unknown" where the engine does not tell.
    """

    layer: str
    asked: str
    graph: str
    bytes: int
    network: dict[str, str]
    compiled: dict[str, str]


def layer_table(folder: Path) -> list[LayerRow]:
    """The layers of an ONNX folder or bundle in the order of the graph, after its digests were checked.

    Raises InputError for another artefact, ArtefactError for a damaged one.
    """
    manifest = read_manifest(folder)
    if manifest.stage not in ("export", "build"):
        expected = "an ONNX folder or a bundle"
        raise InputError("Artefact has no layer table", where=folder, expected=expected, got=f"stage {manifest.stage}")
    formats, engines = manifest.details["formats"], manifest.details.get("engines", {})
    return [
        LayerRow(
            layer=name,
            asked=formats[name],
            graph=layer["graph"],
            bytes=layer["bytes"],
            network={target: engine["network"][name] for target, engine in engines.items()},
            compiled={target: engine["compiled"].get(name, "unknown") for target, engine in engines.items()},
        )
        for name, layer in manifest.details["layers"].items()
    ]
