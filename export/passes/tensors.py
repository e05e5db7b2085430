"""Torch tensors as ONNX tensors."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import tensor_adapters
from torch import Tensor


def lazy_tensor(name: str, tensor: Tensor, dtype: ir.DataType) -> ir.LazyTensor:
    """A torch tensor as an ONNX tensor of `dtype`, cast and copied to the CPU when it is written, not before."""
    torch_dtype = tensor_adapters.to_torch_dtype(dtype)

    def read() -> ir.TensorProtocol:
        return tensor_adapters.TorchTensor(tensor.detach().to("cpu", torch_dtype).contiguous(), name=name)

    return ir.LazyTensor(read, dtype=dtype, shape=ir.Shape(tensor.shape), name=name)


def torch_tensor(tensor: Tensor) -> tensor_adapters.TorchTensor:
    """A torch tensor as an ONNX tensor of the same dtype, without a copy."""
    return tensor_adapters.TorchTensor(tensor.detach().cpu().contiguous())


def packed_e2m1(packed: Tensor) -> ir.PackedTensor:
    """E2M1 codes, two to a byte with even k in the low nibble, as a FLOAT4E2M1 tensor [N, K]: ONNX packs them alike."""
    rows, half = packed.shape
    array = packed.detach().cpu().contiguous().numpy().reshape(-1)
    return ir.PackedTensor(array, ir.DataType.FLOAT4E2M1, shape=ir.Shape((rows, 2 * half)))
