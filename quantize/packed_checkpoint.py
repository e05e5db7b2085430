"""Writes a quantized transformer folder layer by layer, in the layout of ModelOpt's unified export."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..runtime.artefact import versions
from ..runtime.checkpoint import WEIGHTS, TensorFiles, diffusers_source, from_diffusers
from ..runtime.errors import FormatError
from ..runtime.formats import Format, dequantize_weight
from ..runtime.linear_dit import DiTConfig
from ..runtime.quantized_linear import QUANT_CONFIG, InputScales, pack_linear, split_packed

SHARD_BYTES = 2**31
MAX_SQNR = 200.0


def write_transformer(
    source: Path, target: Path, config: DiTConfig, formats: Mapping[str, Format], scales: Mapping[str, InputScales]
) -> dict[str, dict[str, Any]]:
    """Packs the quantized layers of the transformer folder `source` and copies the rest as bf16 into `target`.

    `formats` and `scales` are by LinearDiT module name. Returns, for each quantized layer, its format, packed bytes
    and weight SQNR in dB. Raises FormatError, naming the layer, for weights with NaN or Inf or of zeros only.
    """
    target.mkdir()
    shutil.copy(source / "config.json", target / "config.json")
    quantized = {name: format for name, format in formats.items() if format.quantized}
    report: dict[str, dict[str, Any]] = {}
    shards = _Shards(target)
    with TensorFiles(source) as tensors:
        packed_names = set()
        for name, format in quantized.items():
            weight = from_diffusers(f"{name}.weight", tensors, config).float()
            if not weight.any():
                raise FormatError("Layer's weight is all zeros", where=name, fix="check the checkpoint")
            packed = pack_linear(weight, format, scales.get(name, InputScales()), name=name)
            modules = diffusers_source(name, config).modules
            for module, part in zip(modules, split_packed(packed, len(modules)), strict=True):
                packed_names.add(f"{module}.weight")
                for tensor, value in part.items():
                    shards.add(f"{module}.{tensor}", value)
            size = sum(t.nbytes for t in packed.values())
            report[name] = {"format": format.name, "bytes": size, "sqnr_db": round(sqnr(weight, packed, format), 2)}
        for tensor in tensors:
            if tensor not in packed_names:
                shards.add(tensor, _as_bf16(tensor, tensors[tensor]))
    shards.close()
    if quantized:
        _write_quant_config(target / QUANT_CONFIG, quantized, config)
    return report


def sqnr(weight: Tensor, packed: Mapping[str, Tensor], format: Format) -> float:
    """Signal to quantization noise of a packed weight [N, K] in dB: 10 log10(sum w^2 / sum (w - q)^2).

    A weight that was kept exactly has MAX_SQNR.
    """
    restored = dequantize_weight(packed, format)
    if "pre_quant_scale" in packed:
        restored = restored * packed["pre_quant_scale"]
    signal = weight.double().square().sum().item()
    noise = (weight - restored).double().square().sum().item()
    return 10 * math.log10(signal / noise) if noise else MAX_SQNR


def _as_bf16(name: str, value: Tensor) -> Tensor:
    if not value.isfinite().all():
        raise FormatError("Tensor holds NaN or infinite values", where=name, fix="check the checkpoint")
    return value.to(torch.bfloat16)


def _write_quant_config(path: Path, quantized: Mapping[str, Format], config: DiTConfig) -> None:
    layers: dict[str, dict[str, Any]] = {}
    for name, format in quantized.items():
        entry = {"quant_algo": format.algorithm} | ({"group_size": format.block} if format.block else {})
        layers |= dict.fromkeys(diffusers_source(name, config).modules, entry)
    content = {
        "producer": {"name": "sana-edge", "version": versions()["sana-edge"]},
        "quantization": {"quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": None, "quantized_layers": layers},
    }
    path.write_text(json.dumps(content, indent=2) + "\n")


class _Shards:
    """Collects tensors and writes a safetensors file whenever enough are together; one file needs no index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pending: dict[str, Tensor] = {}
        self.written: list[list[str]] = []

    def add(self, name: str, value: Tensor) -> None:
        self.pending[name] = value.contiguous()
        if sum(t.nbytes for t in self.pending.values()) >= SHARD_BYTES:
            self._flush()

    def _flush(self) -> None:
        save_file(self.pending, self.folder / f"shard-{len(self.written)}", {"format": "pt"})
        self.written.append(list(self.pending))
        self.pending = {}

    def close(self) -> None:
        """Writes what is left, and gives the files their final names."""
        if self.pending or not self.written:
            self._flush()
        total = len(self.written)
        if total == 1:
            (self.folder / "shard-0").rename(self.folder / WEIGHTS)
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self.written):
            file = f"{Path(WEIGHTS).stem}-{number + 1:05}-of-{total:05}.safetensors"
            (self.folder / f"shard-{number}").rename(self.folder / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {}, "weight_map": weight_map}
        (self.folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index, indent=2) + "\n")
