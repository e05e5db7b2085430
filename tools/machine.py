"""This machine in words: what a doctor shows and a report records."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = {
    "sana-edge": "sana-edge",
    "torch": "torch",
    "diffusers": "diffusers",
    "transformers": "transformers",
    "ModelOpt": "nvidia-modelopt",
    "ONNX": "onnx",
    "ONNX Runtime": "onnxruntime",
    "ONNX Runtime GPU": "onnxruntime-gpu",
    "TensorRT-RTX": "tensorrt-rtx-cu13",
}


def describe_machine() -> dict[str, str]:
    """System, processor, memory, GPUs and driver, as readable text by name."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "System": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "Processor": f"{_processor()}, {cores} cores",
        "Memory": _memory(),
        "GPU": "; ".join(gpu_names()) or "no NVIDIA GPU that CUDA can use",
        "NVIDIA driver": _driver() or "none found",
    }


def describe_packages() -> dict[str, str]:
    """Installed versions of the packages that decide what can be built and run; only those that are there."""
    found = {}
    for name, package in PACKAGES.items():
        try:
            found[name] = version(package)
        except PackageNotFoundError:
            continue
    return found


def gpu_names() -> list[str]:
    """CUDA GPUs with compute capability and memory."""
    import torch

    if not torch.cuda.is_available():
        return []
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [f"{d.name}, compute capability {d.major}.{d.minor}, {d.total_memory / 1e9:.0f} GB" for d in devices]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB"
    except (AttributeError, ValueError, OSError):
        return "unknown"


def _driver() -> str | None:
    """The driver's version from nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.splitlines()[0].strip() if answer.stdout.strip() else None
