"""The GPUs that engines are built for, and which number formats each of them multiplies natively."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from .errors import FormatError, InputError
from .formats import FORMATS, Format

TABLE = Path(__file__).with_name("targets.toml")


@dataclass(frozen=True)
class Target:
    """A GPU. `capability` is its CUDA compute capability as TensorRT-RTX names it ("SM120"), `memory_gb` its memory."""

    name: str
    marketing_name: str
    capability: str
    memory_gb: int

    @property
    def compute_capability(self) -> tuple[int, int]:
        """(major, minor): (12, 0) for "SM120"."""
        major, minor = divmod(int(self.capability.removeprefix("SM")), 10)
        return major, minor

    @property
    def formats(self) -> tuple[str, ...]:
        """Names of the number formats whose products its tensor cores compute."""
        return tuple(f.name for f in FORMATS.values() if f.capability <= self.compute_capability)


@cache
def load_targets() -> dict[str, Target]:
    """All rows of `targets.toml` by name."""
    return {name: Target(name, **row) for name, row in tomllib.loads(TABLE.read_text()).items()}


def find_target(name: str) -> Target:
    """The target of that name. Raises InputError with close matches."""
    targets = load_targets()
    if name not in targets:
        close = get_close_matches(name.lower(), targets, 1)
        fix = f"did you mean {close[0]}?" if close else None
        raise InputError("Unknown target GPU", expected=", ".join(targets), got=name, fix=fix)
    return targets[name]


def require_format(target: Target, format: Format) -> None:
    """Raises FormatError, naming the formats that work there, unless the target multiplies `format` natively."""
    if format.name not in target.formats:
        raise FormatError(
            f"{target.marketing_name} does not multiply {format.name}",
            where=f"target {target.name} ({target.capability})",
            expected=", ".join(target.formats),
            got=f"{format.name}, which needs SM{format.capability[0]}{format.capability[1]}",
            fix="quantize with a recipe of another format, or build for a newer GPU",
        )
