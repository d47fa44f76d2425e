"""A network as nodes with a type and a size, joined by edges: what a predictor for unseen topologies reads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from ...space.architecture import Architecture

__all__ = ["TypedGraph", "joined", "of_architecture", "refined"]


@dataclass(frozen=True)
class TypedGraph:
    """Nodes in any order.

    Attributes:
        types: one name per node.
        edges: (from, to) by node number.
        sizes: one non-negative number per node, e.g. its multiply-adds or parameters; none means all zero.
    """

    types: tuple[str, ...]
    edges: tuple[tuple[int, int], ...] = ()
    sizes: tuple[float, ...] = ()

    number_names: ClassVar[tuple[str, ...]] = ("nodes", "edges", "size", "longest path")

    def __post_init__(self) -> None:
        if not self.types:
            raise ValueError("a graph needs nodes: got none")
        if self.sizes and len(self.sizes) != len(self.types):
            raise ValueError(f"a graph has one size per node or none: got {len(self.sizes)} for {len(self.types)} nodes")
        for edge in self.edges:
            if not all(0 <= node < len(self.types) for node in edge):
                raise ValueError(f"an edge joins two of the {len(self.types)} nodes: got {edge}")
        for size in self.sizes:
            if not (math.isfinite(size) and size >= 0):
                raise ValueError(f"sizes are finite and not negative: got {size}")

    def numbers(self) -> list[float]:
        """Natural logarithms of 1 + nodes, edges, summed sizes, and nodes on the longest path."""
        return [math.log1p(n) for n in (len(self.types), len(self.edges), sum(self.sizes), self.longest_path())]

    def longest_path(self) -> int:
        """Nodes on the longest path; a cycle is left where it closes."""
        following: dict[int, list[int]] = {node: [] for node in range(len(self.types))}
        waiting = dict.fromkeys(following, 0)
        for source, target in self.edges:
            following[source].append(target)
            waiting[target] += 1
        ready, depth = [node for node, count in waiting.items() if not count], dict.fromkeys(following, 1)
        while ready:
            node = ready.pop()
            for target in following[node]:
                depth[target] = max(depth[target], depth[node] + 1)
                waiting[target] -= 1
                if not waiting[target]:
                    ready.append(target)
        return max(depth.values())


def refined(graph: TypedGraph, rounds: int) -> list[list[str]]:
    """The types of the nodes, then those refined by the types before and behind them, `rounds` times.

    Weisfeiler-Lehman Graph Kernels (Shervashidze et al., 2011), with the two directions told apart.
    """
    before: list[list[int]] = [[] for _ in graph.types]
    behind: list[list[int]] = [[] for _ in graph.types]
    for source, target in graph.edges:
        before[target].append(source)
        behind[source].append(target)
    names = [list(graph.types)]
    for _ in range(rounds):
        now = names[-1]
        names.append([f"({','.join(sorted(now[i] for i in before[node]))}>{now[node]}>"
                      f"{','.join(sorted(now[i] for i in behind[node]))})" for node in range(len(now))])
    return names


def joined(graph: TypedGraph) -> list[str]:
    """For every node, each type that comes right before it, once: "conv>pool" says that a pool reads a convolution."""
    return sorted(f"{before}>{graph.types[node]}" for before, node in {(graph.types[a], b) for a, b in graph.edges})


def of_architecture(architecture: Architecture) -> TypedGraph:
    """The rewritten graph: a node's type is its operator's class, or what it is without one; its size its parameters."""
    from ...space.encoding import parameters_by_node
    from ...space.graph import build_graph

    graph = build_graph(architecture.plan)
    types = tuple(node.label if node.operator is None else type(node.operator).__name__ for node in graph.nodes)
    edges = tuple((source, target) for source, target, _ in graph.edges)
    return TypedGraph(types, edges, tuple(parameters_by_node(architecture, graph)))
