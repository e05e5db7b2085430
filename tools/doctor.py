"""The verb `doctor`: what this machine can build and run, and why not."""

from __future__ import annotations

import importlib
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..runtime.formats import FORMATS
from ..runtime.targets import Target, load_targets
from .machine import describe_machine


@dataclass(frozen=True)
class Tool:
    """An optional program library: what it is good for, and why it cannot be used (None where it can)."""

    name: str
    version: str | None
    purpose: str
    problem: str | None


@dataclass(frozen=True)
class Ability:
    """What can be done with one number format for one target, and every reason against."""

    target: str
    format: str
    build: bool
    run: bool
    reasons: tuple[str, ...]


_TOOLS = (
    # module, distributions that provide it, purpose, extra
    ("torch", ("torch",), "runs checkpoints", None),
    ("modelopt", ("nvidia-modelopt",), "calibrates and quantizes", "quantize"),
    ("onnx", ("onnx",), "exports", "export"),
    ("onnxscript", ("onnxscript",), "exports", "export"),
    ("onnxruntime", ("onnxruntime", "onnxruntime-gpu"), "runs twins of graphs anywhere", None),
    ("tensorrt_rtx", ("tensorrt-rtx-cu13",), "builds engines, and runs them on RTX GPUs", "rtx"),
    ("skimage", ("scikit-image",), "measures reports", "report"),
    ("jinja2", ("jinja2",), "writes reports", "report"),
)


def doctor(options: Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Says what was found, and returns it."""
    machine, tools, gpu = describe_machine(), find_tools(), gpu_capability()
    abilities = find_abilities(list(load_targets().values()), tools, gpu)
    say(columns([[f"{name}:", text] for name, text in machine.items()]))
    say("")
    say(columns([[t.name, t.version or "-", t.problem or t.purpose] for t in tools]))
    say("")
    say(_target_table(abilities))
    providers = onnxruntime_providers()
    say(f"\nONNX Runtime providers: {', '.join(providers) or 'none'}")
    rows = [asdict(a) for a in abilities]
    return {"machine": machine, "tools": [asdict(t) for t in tools], "providers": providers, "abilities": rows}


def find_tools() -> list[Tool]:
    """Every optional package, imported to see whether it really works."""
    return [_find(*row) for row in _TOOLS]


def _find(module: str, distributions: Sequence[str], purpose: str, extra: str | None) -> Tool:
    found = None
    for distribution in distributions:
        try:
            found = version(distribution)
            break
        except PackageNotFoundError:
            continue
    if found is None:
        fix = f"pip install 'sana-edge[{extra}]'" if extra else f"pip install {distributions[0]}"
        return Tool(module, None, purpose, f"not installed: {fix}")
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever a broken installation raises is the answer
        return Tool(module, found, purpose, f"installed, but does not import: {type(error).__name__}: {error}")
    return Tool(module, found, purpose, None)


def gpu_capability() -> tuple[int, int] | None:
    """Compute capability of the GPU that CUDA uses here; None without one."""
    import torch

    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


def onnxruntime_providers() -> list[str]:
    """Execution providers of the installed ONNX Runtime."""
    try:
        import onnxruntime
    except ImportError:
        return []
    return list(onnxruntime.get_available_providers())


def find_abilities(targets: Sequence[Target], tools: Sequence[Tool], gpu: tuple[int, int] | None) -> list[Ability]:
    """Every number format for every target."""
    builder = next(tool for tool in tools if tool.name == "tensorrt_rtx")
    missing = [f"{t.name} {t.problem}" for t in tools if t.name in ("onnx", "onnxscript", "tensorrt_rtx") and t.problem]
    abilities = []
    for target in targets:
        for name, number_format in FORMATS.items():
            against_build = list(missing)
            if name not in target.formats:
                need = "{}.{}".format(*number_format.capability)
                against_build.append(f"its tensor cores do not multiply {name}, which needs compute capability {need}")
            against_run = list(against_build) if builder.problem or name not in target.formats else []
            if gpu is None:
                against_run.append("no NVIDIA GPU here to run it")
            elif gpu != target.compute_capability:
                here, there = ("{}.{}".format(*c) for c in (gpu, target.compute_capability))
                against_run.append(f"the GPU here has compute capability {here}, not {there}")
            reasons = tuple(dict.fromkeys([*against_build, *against_run]))
            abilities.append(Ability(target.name, name, not against_build, not against_run, reasons))
    return abilities


def _target_table(abilities: Sequence[Ability]) -> str:
    """A row a target, a column a format; each distinct reason once below."""
    formats = list(dict.fromkeys(a.format for a in abilities))
    words = {(True, True): "build, run", (True, False): "build", (False, False): "-", (False, True): "run"}
    rows = [["target", *formats]]
    for target in dict.fromkeys(a.target for a in abilities):
        cells = {a.format: words[a.build, a.run] for a in abilities if a.target == target}
        rows.append([target, *(cells[f] for f in formats)])
    reasons: dict[str, list[str]] = {}
    for ability in abilities:
        for reason in ability.reasons:
            reasons.setdefault(reason, []).append(ability.target)
    every = len(set(a.target for a in abilities))
    lines = []
    for reason, names in reasons.items():
        distinct = list(dict.fromkeys(names))
        lines.append(f"{'all' if len(distinct) == every else ', '.join(distinct)}: {reason}")
    return columns(rows) + ("\n\n" + "\n".join(lines) if lines else "")


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows as text in aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)
