"""Checkpoints on disk: finding one, and the one map between diffusers' tensor names and LinearDiT's.

A checkpoint is a diffusers pipeline folder. Tensors are read one at a time from safetensors (sharded or not), so the
model is never in memory twice; pickled weights are refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import ArtefactError, InputError
from .linear_dit import DiTConfig

NANO = Path(__file__).parent / "nano"
WEIGHTS = "diffusion_pytorch_model.safetensors"
FLOATS = (torch.bfloat16, torch.float32, torch.float16)
COMPONENTS = ("text_encoder", "tokenizer", "vae", "scheduler")


def find_checkpoint(name: str | Path) -> Path:
    """The folder of a checkpoint: `nano`, a local path, or a Hugging Face id that is already in the local cache."""
    if str(name) == "nano":
        return NANO
    path = Path(name)
    if path.is_dir():
        return path
    if str(name).count("/") == 1 and not path.is_absolute():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            return Path(snapshot_download(str(name), local_files_only=True))
        except LocalEntryNotFoundError:
            fix = f"hf download {name}"
            raise InputError("Checkpoint is not in the local Hugging Face cache", where=name, fix=fix) from None
    raise InputError(
        "No such checkpoint", where=name, expected="nano, a diffusers pipeline folder, or a Hugging Face id"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ArtefactError when it is missing or malformed."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ArtefactError("File is missing", where=path) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtefactError("File is not valid JSON", where=path, got=error) from error


class TensorFiles:
    """Read access by name to all tensors of a folder of safetensors, one tensor in memory at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._reader: dict[str, Any] = {}

    def __enter__(self) -> TensorFiles:
        for path in self._paths():
            try:
                reader = self._stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                fix = "download or make the file again"
                raise ArtefactError("Weights cannot be read", where=path, got=error, fix=fix) from error
            self._reader.update(dict.fromkeys(reader.keys(), reader))
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _paths(self) -> list[Path]:
        index = self.folder / f"{WEIGHTS}.index.json"
        if index.exists():
            return [self.folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
        if (self.folder / WEIGHTS).exists():
            return [self.folder / WEIGHTS]
        found = ", ".join(sorted(p.name for p in self.folder.glob("*"))) or "nothing"
        raise ArtefactError("No weights in safetensors format", where=self.folder, expected=WEIGHTS, got=found)

    def __contains__(self, name: str) -> bool:
        return name in self._reader

    def __iter__(self) -> Iterator[str]:
        return iter(self._reader)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._reader:
            raise ArtefactError("Tensor is missing from the weights", where=self.folder, expected=name)
        return self._reader[name].get_tensor(name)


@dataclass(frozen=True)
class Source:
    """Where a LinearDiT module comes from: diffusers modules stacked along output rows, and how each is reshaped."""

    modules: tuple[str, ...]
    to_linear: Callable[[Tensor], Tensor] = lambda w: w
    to_diffusers: Callable[[Tensor], Tensor] = lambda w: w


def _pointwise(name: str) -> Source:
    return Source((name,), lambda w: w.flatten(1), lambda w: w[:, :, None, None])


def _temporal(name: str) -> Source:
    """[out, in, 3, 1] convolution <-> [3 * out, in] Linear whose thirds read frames f-1, f, f+1."""
    return Source(
        (name,),
        lambda w: w[..., 0].permute(2, 0, 1).flatten(0, 1),
        lambda w: w.unflatten(0, (3, -1)).permute(1, 2, 0).unsqueeze(-1),
    )


def diffusers_source(module: str, config: DiTConfig) -> Source:
    """The diffusers modules that a LinearDiT module (name without `.weight` or `.bias`) is made of."""
    if module == "patch_embedding":
        shape = (config.in_channels, *config.patch_size)
        return Source((module,), lambda w: w.flatten(1), lambda w: w.unflatten(1, shape))
    if module.startswith("time_embed."):
        leaf = module.removeprefix("time_embed.")
        return Source(("time_embed.linear" if leaf == "modulation" else f"time_embed.emb.timestep_embedder.{leaf}",))
    module = module.replace("blocks.", "transformer_blocks.", 1) if module.startswith("blocks.") else module
    stem, _, leaf = module.rpartition(".")
    match leaf:
        case "to_qkv":
            return Source((f"{stem}.to_q", f"{stem}.to_k", f"{stem}.to_v"))
        case "to_kv":
            return Source((f"{stem}.to_k", f"{stem}.to_v"))
        case "to_out":
            return Source((f"{module}.0",))
        case "conv_inverted" | "conv_point":
            return _pointwise(module)
        case "conv_temp":
            return _temporal(module)
    return Source((module,))


def from_diffusers(name: str, tensors: Mapping[str, Tensor] | TensorFiles, config: DiTConfig) -> Tensor:
    """The LinearDiT parameter `name`, assembled from diffusers tensors. Raises ArtefactError for packed ones."""
    module, _, leaf = name.rpartition(".")
    if leaf == "scale_shift_table":
        return tensors[name.replace("blocks.", "transformer_blocks.", 1)]
    source = diffusers_source(module, config)
    parts = [tensors[f"{m}.{leaf}"] for m in source.modules]
    for module_name, part in zip(source.modules, parts, strict=True):
        if part.dtype not in FLOATS:
            expected = " or ".join(str(d) for d in FLOATS)
            raise ArtefactError(
                "Tensor is packed, not a plain weight", where=f"{module_name}.{leaf}", expected=expected, got=part.dtype
            )
    if len({p.shape for p in parts}) > 1:
        got = [list(p.shape) for p in parts]
        raise ArtefactError(
            "Tensor has the wrong shape", where=f"{source.modules[0]}.{leaf}", expected="equal", got=got
        )
    if leaf == "weight" and not module.endswith("conv_depth"):
        parts = [_reshaped(p, source) for p in parts]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _reshaped(weight: Tensor, source: Source) -> Tensor:
    """A diffusers weight in Linear form, refused unless it is what the Linear form goes back to."""
    try:
        linear = source.to_linear(weight)
        if source.to_diffusers(linear).shape == weight.shape:
            return linear
    except RuntimeError:
        pass
    where, fix = f"{source.modules[0]}.weight", "the weights belong to another config.json; fetch the checkpoint again"
    raise ArtefactError("Tensor has the wrong shape", where=where, got=list(weight.shape), fix=fix)


def to_diffusers(state: Mapping[str, Tensor], config: DiTConfig) -> dict[str, Tensor]:
    """A LinearDiT state dict under diffusers' names and shapes: the inverse of `from_diffusers`."""
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "scale_shift_table":
            result[name.replace("blocks.", "transformer_blocks.", 1)] = tensor
            continue
        source = diffusers_source(module, config)
        for part_name, part in zip(source.modules, tensor.chunk(len(source.modules)), strict=True):
            shaped = source.to_diffusers(part) if leaf == "weight" and not module.endswith("conv_depth") else part
            result[f"{part_name}.{leaf}"] = shaped.contiguous()
    return result


def read_config(checkpoint: Path) -> DiTConfig:
    """The transformer geometry of a checkpoint folder."""
    return DiTConfig.from_diffusers(read_json(checkpoint / "transformer" / "config.json"))


def assign(model: torch.nn.Module, name: str, value: Tensor) -> None:
    """Puts a tensor in the place of a (meta) parameter."""
    stem, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(stem), leaf, torch.nn.Parameter(value, requires_grad=False))
