"""A small directed graph with an operator on every edge.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..operator import Length, Source
from .base import Macro, Part, as_items, at
from .running import as_sequence, initial_state, step_part

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["Cell", "CellGraph"]

Edge = tuple[int, int, int]               # (index of the operator, from node, to node)


class CellGraph(nn.Module):
    """Node j is the sum over its incoming edges of the operator there applied to node i; the last node is the output.

    edges: (name of the operator in `ops`, or "" for a plain copy; from; to). spatial: whether the operator of each takes
    grids.
    """

    shares = True

    def __init__(self, ops: dict[str, nn.Module], edges: list[tuple[str, int, int]], spatial: list[bool], output: int):
        super().__init__()
        self.edges = nn.ModuleDict(ops)
        self.wires, self.spatial, self.output = edges, spatial, output

    def forward(self, x_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        nodes: dict[int, Tensor] = {0: x_BTD}
        for (name, source, target), spatial in zip(self.wires, self.spatial, strict=True):
            y_BTD = nodes[source] if source in nodes else torch.zeros_like(x_BTD)
            if name:
                y_BTD = as_sequence(self.edges[name], y_BTD, spatial, shared)
            nodes[target] = nodes[target] + y_BTD if target in nodes else y_BTD
        return nodes[self.output] if self.output in nodes else torch.zeros_like(x_BTD)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Any]:
        return {name: initial_state(op, batch, dtype, device) for name, op in self.edges.items()}

    def step(self, x_BTD: Tensor, state: dict[str, Any] | None,
             shared: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """The next tokens, every operator with its own state."""
        nodes: dict[int, Tensor] = {0: x_BTD}
        after: dict[str, Any] = {}
        for (name, source, target), spatial in zip(self.wires, self.spatial, strict=True):
            y_BTD = nodes[source] if source in nodes else torch.zeros_like(x_BTD)
            if name:
                before = None if state is None else state[name]
                y_BTD, after[name] = step_part(self.edges[name], y_BTD, before, spatial, shared)
            nodes[target] = nodes[target] + y_BTD if target in nodes else y_BTD
        return nodes[self.output] if self.output in nodes else torch.zeros_like(x_BTD), after


@dataclass(frozen=True)
class Cell(Macro):
    """A cell in which every pair of nodes may be joined: NAS-Bench-201 (Dong and Yang, 2020).

    edges: one operator per pair i < j of nodes, in the order (0, 1), (0, 2), (1, 2), (0, 3), ...; 6 edges make 4 nodes.
    `Zero()` is no edge, `Identity()` a plain copy; `edges=repeat(choice(Zero(), Identity(), ...), times=6)` decides each.
    Node 0 is the input; every other node sums what reaches it; the last is the output. Edges that no input reaches or
    that reach no output are dead: they are neither built nor counted, and leave no node in the graph.
    """

    edges: Any
    holds: ClassVar[tuple[str, ...]] = ("edges",)
    source: ClassVar[Source] = Source("NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search", 2020)

    @property
    def num_nodes(self) -> int:
        """Nodes of the cell, input and output included."""
        return (1 + math.isqrt(1 + 8 * len(as_items(self.edges)))) // 2

    def check(self, width: int, where: str) -> None:
        count, nodes = len(as_items(self.edges)), self.num_nodes
        if count != nodes * (nodes - 1) // 2 or nodes < 2:
            raise ValueError(f"a cell has an edge for every pair of its nodes at {where}: got {count} edges; "
                             "use 1, 3, 6, 10 or 15")

    def inside(self) -> list[Any]:
        return [self._op(edge) for edge in self.live()]

    def _op(self, edge: Edge) -> Any:
        return as_items(self.edges)[edge[0]]

    def live(self) -> list[Edge]:
        """The edges between the input and the output, those into a node before those out of it.

        A node that only zeros reach is zero; an operator that maps zeros to something else starts a path of its own.
        """
        pairs = [(i, j) for j in range(1, self.num_nodes) for i in range(j)]
        wires = [(n, i, j) for n, (i, j) in enumerate(pairs) if not getattr(self._op((n, i, j)), "is_zero", False)]
        alive = {0}
        for n, i, j in wires:                                    # in order of their target, so that one pass suffices
            if i in alive or not self._op((n, i, j)).keeps_zero:
                alive.add(j)
        wires = [edge for edge in wires if edge[1] in alive or not self._op(edge).keeps_zero]
        useful = {self.num_nodes - 1}
        for _, i, j in reversed(wires):
            if j in useful:
                useful.add(i)
        return [edge for edge in wires if edge[2] in useful]

    def parts(self, width: int, length: Length) -> list[Part]:
        return [Part(f"edges.{n}", self._op(edge), at("edges", self.edges, n), width, length)
                for edge in self.live() for n in edge[:1] if self._op(edge).kind != "identity"]

    def build(self, width: int) -> nn.Module:
        live = [(edge, self._op(edge)) for edge in self.live()]
        ops = {str(edge[0]): op.build(width) for edge, op in live if op.kind != "identity"}
        wires = [(str(n) if str(n) in ops else "", i, j) for (n, i, j), _ in live]
        return CellGraph(ops, wires, [op.spatial for _, op in live], self.num_nodes - 1)

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        into: dict[int, list[int]] = {}
        reached: dict[int, int] = {0: stream}
        for n, i, j in self.live():
            is_fed = i == 0 or i in into
            start = self._node(draft, reached, into, i) if is_fed else draft.node("zero", "sum")
            into.setdefault(j, []).append(draft.op(self._op((n, i, j)), f"{place}.edges.{n}", "mixer", start, width))
        return self._node(draft, reached, into, self.num_nodes - 1)

    def _node(self, draft: Draft, reached: dict[int, int], into: dict[int, list[int]], node: int) -> int:
        """The graph's node for a node of the cell: a sum, unless a single tensor reaches it."""
        if node not in reached:
            sources = into.get(node, [])
            reached[node] = sources[0] if len(sources) == 1 else draft.node("sum", "sum")
            for source in sources if len(sources) > 1 else ():
                draft.join(source, reached[node])
        return reached[node]
