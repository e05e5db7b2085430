"""What a graph pass is: an edit with a stated contract, which is checked before and after it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ...runtime.errors import BackendError


@dataclass(frozen=True)
class PassResult:
    """What a pass did: its name and how many places of the graph it changed."""

    name: str
    changed: int


class GraphPass(ABC):
    """An in-place edit of a model. `requires` and `ensures` yield a sentence for each violation of the contract."""

    @property
    def name(self) -> str:
        return type(self).__name__

    def requires(self, model: ir.Model) -> Iterator[str]:
        """What must hold before: yields what does not."""
        yield from ()

    @abstractmethod
    def apply(self, model: ir.Model) -> int:
        """Edits the model and returns the number of places changed."""

    def ensures(self, model: ir.Model) -> Iterator[str]:
        """What holds afterwards: yields what does not."""
        yield from ()


def run_passes(model: ir.Model, passes: Sequence[GraphPass]) -> list[PassResult]:
    """Applies passes in order. Raises BackendError naming the pass and all violations of a broken contract."""
    results = []
    for graph_pass in passes:
        _check(graph_pass, "needs a graph in which", graph_pass.requires(model))
        changed = graph_pass.apply(model)
        _check(graph_pass, "must leave a graph in which", graph_pass.ensures(model))
        results.append(PassResult(graph_pass.name, changed))
    return results


def _check(graph_pass: GraphPass, phase: str, violations: Iterable[str]) -> None:
    found = list(violations)
    if found:
        shown = "; ".join(found[:5]) + (f"; and {len(found) - 5} more" if len(found) > 5 else "")
        raise BackendError(f"Graph pass {graph_pass.name} {phase} its contract holds", where=graph_pass.name, got=shown)
