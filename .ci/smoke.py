"""The installed wheel, seen from outside the repository: packages import, data is there, the command answers."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
from importlib.metadata import files
from pathlib import Path

import sana_edge

DATA = (
    "runtime/targets.toml",
    "runtime/nano/sana_edge.json",
    "runtime/nano/model_index.json",
    "runtime/nano/transformer/diffusion_pytorch_model.safetensors",
    "runtime/nano/vae/diffusion_pytorch_model.safetensors",
    "runtime/nano/text_encoder/model.safetensors",
    "runtime/nano/tokenizer/tokenizer.json",
    "runtime/nano/scheduler/scheduler_config.json",
    "calibration_data/prompts.jsonl",
    "calibration_data/heldout.jsonl",
    "quantize/recipes/nvfp4.toml",
    "tools/report/page.html",
    "tools/report/page.css",
    "tools/report/page.js",
    "tools/report/gates.toml",
    "runtime/py.typed",
)


def main() -> None:
    """Exits with a message at the first thing that is wrong."""
    [root] = sana_edge.__path__
    assert Path(root).is_relative_to(sys.prefix), f"sana_edge is not the wheel's: {root}"
    names = [m.name for m in pkgutil.walk_packages(sana_edge.__path__, "sana_edge.") if m.name != "sana_edge.tools.dev"]
    for name in names:
        importlib.import_module(name)
    missing = [name for name in DATA if not (Path(root) / name).is_file()]
    assert not missing, f"not in the wheel: {missing}"
    stray = [str(f) for f in files("sana-edge") or [] if f.parts[0] == "sana_edge" and f.parts[1] == "tests"]
    assert not stray, f"should not be in the wheel: {stray}"
    answer = run("doctor", "--json").splitlines()
    assert len(answer) == 1 and json.loads(answer[0])["ok"], answer
    assert "--recipe" in run("quantize", "--help")
    sys.stdout.write(f"{len(names)} modules import, {len(DATA)} data files are there, sana-edge answers\n")


def run(*arguments: str) -> str:
    """What `sana-edge` of this environment prints."""
    return subprocess.run(["sana-edge", *arguments], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
