"""LinearDiT to an ONNX graph with explicit Q/DQ, strongly typed, with a bf16 carrier.

The graph is traced from an empty skeleton: every parameter is a one-element tensor expanded to its shape, so that a
2B model traces in seconds and megabytes. Passes then give each Linear one shape, attach the real tensors (lazily: they
are read when the file is written) and insert the Q/DQ of the quantized ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import onnx_ir as ir
import torch
from torch import Tensor

from ..runtime.backends.static_shapes import INPUTS, OUTPUT
from ..runtime.checkpoint import assign
from ..runtime.linear_dit import DiTConfig, LinearDiT
from ..runtime.quantized_linear import QuantizedLinear
from ..runtime.text import TEXT_TOKENS
from .passes.attach_weights import AttachWeights
from .passes.contract import PassResult, run_passes
from .passes.fold_shapes import FoldShapes
from .passes.linears_to_gemm import LinearsToGemm
from .passes.quantize_gemms import QuantizeGemms
from .quiet import quiet

OPSET = 23
IR_VERSION = 11  # the first with FLOAT4E2M1


@dataclass(frozen=True)
class DenoiserShape:
    """Static sizes of a denoiser: latents [channels, frames, height, width] in latent cells; batch 2 with CFG."""

    latents: tuple[int, int, int, int]
    batch: int = 2
    text_tokens: int = TEXT_TOKENS

    def inputs(self, config: DiTConfig) -> dict[str, tuple[int, ...]]:
        """Shapes of the graph's inputs by name."""
        text = (self.batch, self.text_tokens)
        return dict(
            zip(
                INPUTS,
                ((self.batch, *self.latents), (self.batch, self.latents[1]), (*text, config.caption_channels), text),
                strict=True,
            )
        )

    def grid(self, config: DiTConfig) -> tuple[int, int, int]:
        """Tokens along (frames, height, width)."""
        _, frames, height, width = self.latents
        return frames, height // config.patch_size[1], width // config.patch_size[2]

    def tokens(self, config: DiTConfig) -> int:
        """Video tokens of one sample."""
        return math.prod(self.grid(config))

    def smallest(self, config: DiTConfig) -> DenoiserShape:
        """At most 3 frames of 4x4 tokens: the smallest size in which every neighbour that a block mixes exists."""
        channels, frames, height, width = self.latents
        _, patch_height, patch_width = config.patch_size
        latents = (channels, min(frames, 3), min(height, 4 * patch_height), min(width, 4 * patch_width))
        return replace(self, latents=latents)


def graph_from_model(model: LinearDiT, shape: DenoiserShape) -> tuple[ir.Model, list[PassResult]]:
    """The engine graph of a plain or quantized LinearDiT, and what each pass changed.

    Inputs `latents`, `timesteps` [batch, frames], `text`, `text_mask` and output `velocity` are fp32; inside, the
    carrier is bf16. Initializers keep the names of LinearDiT's parameters and buffers; each Linear is a Gemm named
    after its module. Raises BackendError when a pass breaks its contract, among them a quantized layer that did not
    get its Q/DQ.
    """
    graph = trace(model.config, shape)
    quantized = {name: m for name, m in model.named_modules() if isinstance(m, QuantizedLinear)}
    parameters = set(graph.graph.initializers) - {"rope.cos", "rope.sin"}
    plain = {n: t for n, t in model.state_dict().items() if not _is_packed_weight(n, quantized)}
    passes = [FoldShapes(), LinearsToGemm(), AttachWeights(parameters, plain), QuantizeGemms(quantized)]
    return graph, run_passes(graph, passes)


def _is_packed_weight(name: str, quantized: dict[str, QuantizedLinear]) -> bool:
    module, _, leaf = name.rpartition(".")
    return module in quantized and leaf != "bias"


class _Denoiser(LinearDiT):
    """LinearDiT with fp32 at its output as at its inputs."""

    def forward(self, latents: Tensor, timesteps: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        return super().forward(latents, timesteps, text, text_mask).float()


def trace(config: DiTConfig, shape: DenoiserShape) -> ir.Model:
    """The graph of a bf16 LinearDiT as torch exports it. Parameters are placeholders; the RoPE table has its values."""
    with torch.device("meta"):
        skeleton = _Denoiser(config).eval()
    for name, parameter in skeleton.state_dict().items():
        assign(skeleton, name, torch.zeros((), dtype=torch.bfloat16).expand(parameter.shape))
    cos, _ = skeleton.rope(shape.grid(config), torch.device("cpu"))
    arguments = tuple(torch.zeros(()).expand(size) for size in shape.inputs(config).values())
    with quiet("torch.onnx"):
        program = torch.onnx.export(
            skeleton,
            arguments,
            dynamo=True,
            opset_version=OPSET,
            optimize=False,
            verify=False,
            verbose=False,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
        )
    assert program is not None
    model = program.model
    model.ir_version = IR_VERSION
    _name_rope_tables(model.graph, set(skeleton.state_dict()), cos)
    return model


def _name_rope_tables(graph: ir.Graph, parameters: set[str], cos: Tensor) -> None:
    tables = [value for name, value in graph.initializers.items() if name not in parameters]
    assert len(tables) == 2, f"expected the two RoPE tables beside the parameters, found {[t.name for t in tables]}"
    for table in tables:
        assert table.const_value is not None
        is_cos = bool((table.const_value.numpy() == cos.numpy()).all())
        table.name = "rope.cos" if is_cos else "rope.sin"
