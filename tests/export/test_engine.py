"""TensorRT-RTX engines for GPUs that are not here: real builds of the tiny model, and every refusal."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sana_edge.export import engine as engine_module
from sana_edge.export.engine import EngineInfo, engine_from_onnx
from sana_edge.export.engine_plan import compiled_precisions
from sana_edge.runtime.errors import BackendError, FormatError, MissingExtraError
from sana_edge.runtime.targets import find_target

from .conftest import CASES, Exported

pytest.importorskip("tensorrt_rtx")

Export = Callable[[str], Exported]
RTX5090 = find_target("rtx5090")


def build(made: Exported, engine: Path, target: str = "rtx5090") -> EngineInfo:
    return engine_from_onnx(made.graph, find_target(target), engine, made.formats)


@pytest.mark.parametrize("case", CASES)
def test_engine_for_an_rtx_5090(case: str, exported: Export, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Every layer reaches the compiler in its format, and comes out of it multiplied in that format, but for mxfp8."""
    made = exported(case)
    with caplog.at_level(logging.WARNING):
        info = build(made, tmp_path / "tiny.engine")
    assert info.network == made.formats
    assert info.compiled == {n: "bf16" if f == "mxfp8" else f for n, f in made.formats.items()}
    warned = "rtx5090: the compiler multiplies" in caplog.text
    assert warned == ("mxfp8" in made.formats.values())
    assert info.bytes == (tmp_path / "tiny.engine").stat().st_size > 10**6
    assert (info.target, info.compute_capability, info.builder) == ("rtx5090", "SM120", "TensorRT-RTX")
    assert info.version[0].isdigit() and info.seconds > 0 and info.network_layers > 500
    assert info.peak_memory_bytes is None or info.peak_memory_bytes > 10**8


@pytest.mark.parametrize(("case", "target"), [("fp8", "rtx4090"), ("int8", "rtx3090"), ("nvfp4", "dgx-spark")])
def test_engines_for_other_gpus(case: str, target: str, exported: Export, tmp_path: Path):
    made = exported(case)
    info = build(made, tmp_path / "tiny.engine", target)
    assert info.compiled == info.network == made.formats
    assert info.compute_capability == find_target(target).capability


def test_fp4_is_refused_for_ada_before_anything_runs(exported: Export, tmp_path: Path):
    with pytest.raises(FormatError, match=r"RTX 4090 does not multiply nvfp4[\s\S]*SM120"):
        build(exported("nvfp4"), tmp_path / "tiny.engine", "rtx4090")
    assert not any(tmp_path.iterdir())


def test_a_layer_that_did_not_arrive_fails_the_build(exported: Export, tmp_path: Path):
    """The network is asked, not the file that promised: a bf16 graph does not pass for fp8."""
    made = exported("bf16")
    formats = made.formats | {"blocks.0.attn1.to_qkv": "fp8"}
    with pytest.raises(FormatError, match=r"did not arrive[\s\S]*blocks\.0\.attn1\.to_qkv: fp8, not bf16"):
        engine_from_onnx(made.graph, RTX5090, tmp_path / "tiny.engine", formats)
    assert not any(tmp_path.iterdir())


def test_without_tensorrt_the_extra_is_named(exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sana-edge\[rtx\]'"):
        build(exported("bf16"), tmp_path / "tiny.engine")


def test_a_graph_that_cannot_be_parsed(exported: Export, tmp_path: Path):
    """The parser's own words reach the user."""
    broken = tmp_path / "denoiser.onnx"
    broken.write_bytes(exported("bf16").graph.read_bytes())  # without its weights
    with pytest.raises(BackendError, match=r"cannot parse the graph[\s\S]*denoiser\.onnx"):
        engine_from_onnx(broken, RTX5090, tmp_path / "tiny.engine", exported("bf16").formats)


def test_a_crash_of_the_compiler_is_one_clear_error(exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Native code that dies takes its process with it, not this one."""
    crash = """if True:
        import os, signal, sys
        sys.stdin.read()
        sys.stderr.write("assertion\\n")
        os.kill(os.getpid(), signal.SIGSEGV)"""
    monkeypatch.setattr(engine_module, "COMMAND", (sys.executable, "-c", crash))
    with pytest.raises(BackendError, match=r"TensorRT-RTX crashed[\s\S]*SIGSEGV: assertion"):
        build(exported("bf16"), tmp_path / "tiny.engine")


def test_an_interrupt_ends_the_compiler(exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C while native code compiles: the process is gone at once and no file is left."""
    started: list[subprocess.Popen[str]] = []
    popen = subprocess.Popen

    def record(*args: object, **kwargs: object) -> subprocess.Popen[str]:
        started.append(popen(*args, **kwargs))  # type: ignore[call-overload]
        return started[-1]

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", record)
    monkeypatch.setattr(json, "loads", interrupt)  # the first answer arrives, then the user presses Ctrl-C
    with pytest.raises(KeyboardInterrupt):
        build(exported("bf16"), tmp_path / "tiny.engine")
    assert [process.returncode for process in started] == [-signal.SIGKILL]
    assert not any(tmp_path.iterdir())


def test_a_full_disk_keeps_its_name(exported: Export):
    """The compiler's file errors arrive as what they are, for the stage to explain."""
    with pytest.raises(OSError, match="No space left on device"):
        build(exported("bf16"), Path("/dev/full"))


def test_plan_is_read_from_text_alone(tmp_path: Path):
    """Products side by side, mixed operands, and tensors that the plan does not describe."""
    plan = [
        'tensor={ alignment=128 dims={ 2 2 } name="x" offset=0 type=fp8_e4m3 }',
        'sub_tensor={ base="x" name="y" type=fp8_e4m3 }',
        'tensor={ name="s" strides={ 1 } type=fp8_e8m0 }',
        'tensor={ name="b" strides={ 1 } type=bf16 }',
        'fully_connected={ name="l1+l2" output={"o" } input={"x" "y" "a" } stream=0 }',
        'fully_connected={ name="l3" output={"o" } input={"x" "y" "a" "b" "s" "s" } stream=0 }',
        'fully_connected={ name="l4" output={"o" } input={"x" "b" } stream=0 }',
        'fully_connected={ name="l5" output={"o" } input={"p" "q" } stream=0 }',
    ]
    (tmp_path / "plan").write_bytes(b"\x00\xff".join(line.encode() + b"\n" for line in plan))
    assert compiled_precisions(tmp_path / "plan") == {
        "l1": "fp8",
        "l2": "fp8",
        "l3": "mxfp8",
        "l4": "fp8_e4m3 x bf16",
        "l5": "unknown",
    }
