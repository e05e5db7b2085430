"""Which precision the compiler gave each layer, read from the engine file itself.

A TensorRT-RTX engine holds its execution plan as text: every matrix product with the tensors it reads, and every
tensor with its type. NVIDIA's inspector shows the same, but needs the GPU; this needs the file alone. The text is not
a documented interface: a layer that is not found there is simply not in the result.
"""

from __future__ import annotations

import mmap
import re
from pathlib import Path

_PRODUCT = re.compile(rb'fully_connected=\{ name="([^"\n]+)" output=\{[^}\n]*\} input=\{([^}\n]*)\}')
_TENSOR = re.compile(rb'tensor=\{ [^\n]*?name="([^"\n]+)"[^\n]*? type=(\w+)')
_NAME = re.compile(rb'"([^"]+)"')

_MULTIPLIED = {
    "fp4_e2m1": "nvfp4",
    "fp8_e4m3": "fp8",
    "int8": "int8",
    "bf16": "bf16",
    "half": "fp16",
    "float": "fp32",
}


def compiled_precisions(engine: Path) -> dict[str, str]:
    """Layer name -> precision of its product ("nvfp4", "mxfp8", "fp8", "int8", "bf16", "fp16", "fp32")."""
    with engine.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as blob:
        types = {name: dtype.decode() for name, dtype in _TENSOR.findall(blob)}
        precisions = {}
        for names, inputs in _PRODUCT.findall(blob):
            operands = [types.get(name, "unknown") for name in _NAME.findall(inputs)]
            for name in names.decode().split("+"):  # products of one input, fused side by side
                precisions[name] = _precision(operands)
    return precisions


def _precision(operands: list[str]) -> str:
    """From the types of a product's inputs: its two operands, then alpha, beta and block scales."""
    if len(set(operands[:2])) > 1:
        return " x ".join(operands[:2])
    if operands[0] == "fp8_e4m3" and "fp8_e8m0" in operands[2:]:
        return "mxfp8"
    return _MULTIPLIED.get(operands[0], operands[0])
