"""dev.py before anything is installed: refuses old Pythons, and installs again only when something changed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sana_edge.tools import dev

SCRIPT = Path(dev.__file__)


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 10, 9), (3, 14, 0), (4, 0, 0)])
def test_other_pythons_are_refused_in_one_line(version: tuple[int, ...]) -> None:
    """With nothing but the standard library in sight, as on a fresh machine."""
    code = f"import runpy, sys; sys.version_info = {version}; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert f"this is {version[0]}.{version[1]}" in line and "3.11" in line


def test_script_needs_only_the_standard_library() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(SCRIPT), "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "demo" in done.stdout and "test" in done.stdout


@pytest.mark.parametrize("changed", ["pyproject.toml", "tools/constraints.txt"])
def test_what_is_installed_depends_on_both_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str) -> None:
    (tmp_path / "tools").mkdir()
    for name in ("pyproject.toml", "tools/constraints.txt"):
        (tmp_path / name).write_text("a")
    monkeypatch.setattr(dev, "ROOT", tmp_path)
    monkeypatch.setattr(dev, "CONSTRAINTS", tmp_path / "tools" / "constraints.txt")
    before = dev.fingerprint("onnxruntime")
    assert dev.fingerprint("onnxruntime") == before != dev.fingerprint("onnxruntime-gpu")
    (tmp_path / changed).write_text("b")
    assert dev.fingerprint("onnxruntime") != before


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("echo 'GPU 0: NVIDIA GeForce RTX 5090 (UUID: x)'", True),
        ("echo 'no devices were found'; exit 6", False),
        ("exit 0", False),
    ],
)
def test_gpu_is_found_by_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, expected: bool) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert dev.has_nvidia_gpu() is expected
