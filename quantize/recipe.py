"""Recipes: TOML files that say which layers get which number format, and how activations are calibrated.

    description = "what it is for"

    [calibration]
    algorithm = "max"                       # or "smoothquant", for int8 layers

    [[layers]]
    pattern = "blocks.*.attn1.to_qkv"       # shell wildcards on LinearDiT module names
    format = "nvfp4"

Layers that no rule matches stay bf16; of several matching rules the last one counts. A pattern that matches no Linear
is an error, so that a typing mistake never leaves a model silently unquantized.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from types import UnionType
from typing import Any

from torch import nn

from ..runtime.errors import InputError
from ..runtime.formats import FORMATS, Format

RECIPES = Path(__file__).with_name("recipes")
ALGORITHMS = ("max", "smoothquant")


@dataclass(frozen=True)
class Rule:
    """Layers whose name matches `pattern` get the number format named `format`."""

    pattern: str
    format: str


@dataclass(frozen=True)
class Recipe:
    """A named assignment of formats. `alpha` is SmoothQuant's migration strength (arXiv 2211.10438)."""

    name: str
    description: str
    algorithm: str
    alpha: float
    layers: tuple[Rule, ...]

    def assign(self, model: nn.Module) -> dict[str, Format]:
        """The format of every Linear of a LinearDiT (its weights may be on the meta device).

        Raises InputError for a pattern that matches none, FormatError for a layer whose K is not whole blocks.
        """
        linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
        formats = dict.fromkeys(linears, FORMATS["bf16"])
        for number, rule in enumerate(self.layers, 1):
            matched = [name for name in linears if fnmatchcase(name, rule.pattern)]
            if not matched:
                raise InputError(
                    "Pattern matches no layer",
                    where=f"recipe {self.name}, layers rule {number}",
                    expected=_close(rule.pattern, (re.sub(r"\.\d+\.", ".*.", name) for name in linears)),
                    got=rule.pattern,
                )
            formats |= dict.fromkeys(matched, FORMATS[rule.format])
        for name, format in formats.items():
            format.check_columns(linears[name].in_features, name)
        return formats


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A recipe of the package by name, or from a TOML file.

    Raises InputError naming the file, the rule and close matches for anything that is not understood.
    """
    packaged = sorted(p.stem for p in RECIPES.glob("*.toml"))
    path = RECIPES / f"{name_or_path}.toml" if name_or_path in packaged else Path(name_or_path)
    if not path.is_file():
        expected = f"{_close(str(name_or_path), packaged)}, or a TOML file"
        raise InputError("No such recipe", expected=expected, got=name_or_path)
    try:
        data = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError("Recipe is not valid TOML", where=path, got=error) from error
    return _parse(data, path)


def _parse(data: dict[str, Any], path: Path) -> Recipe:
    top = _fields(data, {"description": str, "calibration": dict, "layers": list}, {"layers"}, path)
    kinds = {"algorithm": str, "alpha": float | int}
    calibration = _fields(top.get("calibration", {}), kinds, set(), f"{path}: [calibration]")
    rules = []
    for number, entry in enumerate(top["layers"], 1):
        where = f"{path}: layers rule {number}"
        rule = Rule(**_fields(entry, {"pattern": str, "format": str}, {"pattern", "format"}, where))
        _one_of("number format", rule.format, FORMATS, where)
        rules.append(rule)
    where = f"{path}: [calibration]"
    algorithm, alpha = calibration.get("algorithm", "max"), calibration.get("alpha", 0.5)
    _one_of("calibration algorithm", algorithm, ALGORITHMS, where)
    if not 0 <= alpha <= 1:
        raise InputError("Value out of range", where=f"{where} alpha", expected="0 to 1", got=alpha)
    if algorithm == "smoothquant" and all(rule.format != "int8" for rule in rules):
        raise InputError("SmoothQuant has no layer to smooth", where=where, expected="a rule with format int8")
    return Recipe(path.stem, top.get("description", ""), algorithm, alpha, tuple(rules))


def _fields(value: Any, kinds: Mapping[str, type | UnionType], required: set[str], where: object) -> dict[str, Any]:
    """`value` as a table with keys out of `kinds` and values of their types."""
    if not isinstance(value, dict):
        raise InputError("Value has the wrong type", where=where, expected="a table", got=value)
    for key, item in value.items():
        _one_of("key", key, kinds, where)
        if not isinstance(item, kinds[key]):
            expected = f"{key} as {getattr(kinds[key], '__name__', kinds[key])}"
            raise InputError("Value has the wrong type", where=where, expected=expected, got=repr(item))
    if missing := sorted(required - value.keys()):
        raise InputError("Key is missing", where=where, expected=", ".join(missing))
    return value


def _one_of(what: str, value: str, known: Any, where: object) -> None:
    if value not in known:
        raise InputError(f"Unknown {what}", where=where, expected=_close(value, known), got=value)


def _close(value: str, known: Any) -> str:
    known = list(dict.fromkeys(known))
    return " or ".join(get_close_matches(value, known, 3)) or ", ".join(known)
