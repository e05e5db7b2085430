"""The doctor's table: who can build and run what, and every reason against."""

from __future__ import annotations

import pytest
from sana_edge.runtime.targets import load_targets
from sana_edge.tools.doctor import Ability, Tool, find_abilities

NAMES = ("onnx", "onnxscript", "tensorrt_rtx")


def abilities(gpu: tuple[int, int] | None, problem: str | None = None) -> dict[tuple[str, str], Ability]:
    tools = [Tool(name, "1", "", problem if name == "tensorrt_rtx" else None) for name in NAMES]
    return {(a.target, a.format): a for a in find_abilities(list(load_targets().values()), tools, gpu)}


def test_engines_are_built_without_a_gpu_but_not_run() -> None:
    found = abilities(gpu=None)[("rtx5090", "nvfp4")]
    assert (found.build, found.run) == (True, False)
    assert found.reasons == ("no NVIDIA GPU here to run it",)


def test_gpu_runs_engines_of_its_own_capability() -> None:
    found = abilities(gpu=(12, 0))
    assert found[("rtx5090", "nvfp4")] == Ability("rtx5090", "nvfp4", build=True, run=True, reasons=())
    assert not found[("rtx4090", "fp8")].run
    assert "8.9" in found[("rtx4090", "fp8")].reasons[0] and "12.0" in found[("rtx4090", "fp8")].reasons[0]


@pytest.mark.parametrize(("target", "number_format"), [("rtx4090", "nvfp4"), ("rtx3090", "fp8")])
def test_format_that_a_gpu_does_not_multiply_is_neither_built_nor_run(target: str, number_format: str) -> None:
    capability = load_targets()[target].compute_capability
    found = abilities(gpu=capability)[(target, number_format)]
    assert not found.build and not found.run
    assert number_format in found.reasons[0]


def test_missing_builder_is_the_reason_everywhere() -> None:
    found = abilities(gpu=(12, 0), problem="not installed")
    assert not any(a.build or a.run for a in found.values())
    assert all("tensorrt_rtx not installed" in a.reasons for a in found.values())
