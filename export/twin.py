"""The twin: the engine graph made runnable anywhere, to prove the engine's numbers without its GPU.

It is derived from the file that the engine is built from, so that what the twin computes is what stands in that file:
same nodes, same Q/DQ, same stored bytes (both files refer to one file of weights). Only the carrier is fp32 instead
of bf16, and the ops that other runtimes lack get a body in standard ONNX. It runs in onnxruntime without this package.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from .passes.contract import PassResult, run_passes
from .passes.define_trt_ops import DefineTrtOps
from .passes.expand_attention_masks import ExpandAttentionMasks
from .passes.unpack_e2m1 import UnpackE2M1
from .passes.widen_carrier import WidenCarrier


def twin_from_onnx(engine_graph: Path, twin: Path) -> list[PassResult]:
    """Writes the twin of an engine graph beside it and returns what each pass changed.

    `twin` must lie in the folder of `engine_graph`, whose external data it shares. Raises BackendError when a pass
    breaks its contract.
    """
    assert twin.parent == engine_graph.parent, "the twin shares the external data of the engine graph"
    model = ir.load(engine_graph)
    results = run_passes(model, [WidenCarrier(), UnpackE2M1(), DefineTrtOps(), ExpandAttentionMasks()])
    ir.save(model, twin)
    return results
