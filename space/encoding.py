"""Genomes and architectures as numbers, for surrogates.

`Encoder` is the complete encoding of a genome: a vector of fixed length that can be turned back. `path_encoding` and
`graph_encoding` describe the network, whatever genome it comes from, and cannot be turned back.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from .compiled.spec import Gene
from .genome import Decision
from .tree import axes_of

if TYPE_CHECKING:
    import networkx as nx

    from .architecture import Architecture
    from .graph import ArchitectureGraph
    from .space import Space

__all__ = ["Encoder", "graph_encoding", "parameters_by_node", "path_encoding"]

MAX_ONE_HOT = 64


class Encoder:
    """Genes of one space as blocks of a float64 vector, in the order of the genes.

    Choices, and subsets with at most 64 options: one-hot over the options. Larger subsets: activity, then one number per
    candidate. Ordered subsets: activity, then for each place in the order one number per candidate. Numbers: activity,
    then the share of the range. A block of a gene that is not active is zero.
    """

    def __init__(self, genes: tuple[Gene, ...]):
        self.genes = genes
        self.starts: dict[str, int] = {}
        self.numbers: dict[str, tuple[int, float, float]] = {}       # path: start, low, span
        self.one_hots: dict[str, tuple[int, dict[Decision, int]]] = {}
        self.members: dict[str, tuple[int, int, bool]] = {}          # path: start, items, order counts
        self.length = 0
        for gene in genes:
            self.starts[gene.path] = self.length
            self.length += self._add(gene)

    def _add(self, gene: Gene) -> int:
        assert gene.options is not None or gene.kind == "real"
        if gene.kind == "choice" or gene.kind == "subset" and not gene.ordered and len(gene.index) <= MAX_ONE_HOT:
            self.one_hots[gene.path] = self.length, gene.index
            return len(gene.index)
        if gene.kind == "subset":
            self.members[gene.path] = self.length, gene.items, gene.ordered
            return 1 + gene.items * (max(map(len, gene.index)) if gene.ordered else 1)   # type: ignore[arg-type]
        self.numbers[gene.path] = self.length, gene.low, (gene.high - gene.low) or 1.0
        return 2

    def encode(self, genome: Mapping[str, Decision]) -> np.ndarray:
        """The vector of a genome, float64[length]."""
        row = np.zeros(self.length)
        for path, decision in genome.items():
            if path in self.one_hots:
                start, index = self.one_hots[path]
                row[start + index[decision]] = 1.0
            elif path in self.numbers:
                start, low, span = self.numbers[path]
                row[start] = 1.0
                row[start + 1] = (decision - low) / span                             # type: ignore[operator]
            else:
                start, items, is_order = self.members[path]
                row[start] = 1.0
                for place, item in enumerate(decision):                              # type: ignore[arg-type]
                    row[start + 1 + item + (place * items if is_order else 0)] = 1.0
        return row

    def decode(self, row: np.ndarray) -> dict[str, Decision]:
        """A decision for every gene: of each block the option it is nearest to, of a zero block the first one."""
        if row.shape != (self.length,):
            raise ValueError(f"a vector of this space has shape ({self.length},): got {row.shape}; encode with this space")
        return {gene.path: self._option(gene, row) for gene in self.genes}

    def _option(self, gene: Gene, row: np.ndarray) -> Decision:
        start = self.starts[gene.path]
        if gene.path in self.one_hots:
            assert gene.options is not None
            return gene.options[int(np.argmax(row[start:start + len(gene.options)]))]
        if gene.path in self.members:
            _, items, is_order = self.members[gene.path]
            return _nearest_order(gene, row, start + 1, items) if is_order else _nearest_subset(
                gene, row[start + 1:start + 1 + items])
        return _nearest_number(gene, float(row[start + 1])) if row[start] else _first(gene)


def _first(gene: Gene) -> Decision:
    return gene.low if gene.options is None else gene.options[0]


def _nearest_number(gene: Gene, share: float) -> Decision:
    number = gene.low + share * (gene.high - gene.low)
    if gene.options is None:
        return gene.low if share <= 0.0 else gene.high if share >= 1.0 else gene.rounded(number)
    return min(gene.options, key=lambda option: abs(option - number))                # type: ignore[operator]


def _nearest_subset(gene: Gene, scores: np.ndarray) -> Decision:
    sizes = {len(option) for option in gene.index}                                   # type: ignore[arg-type]
    size = min(sizes, key=lambda k: (abs(k - int((scores > 0.5).sum())), k))
    return tuple(sorted(int(i) for i in np.argsort(-scores, kind="stable")[:size]))


def _nearest_order(gene: Gene, row: np.ndarray, start: int, items: int) -> Decision:
    sizes = sorted({len(option) for option in gene.index})                           # type: ignore[arg-type]
    scores = row[start:start + items * sizes[-1]].reshape(sizes[-1], items).copy()
    size = min(sizes, key=lambda k: (abs(k - int((scores.max(axis=1) > 0.5).sum())), k))
    order = []
    for place in range(size):
        order.append(int(np.argmax(scores[place])))
        scores[:, order[-1]] = -math.inf
    return tuple(order)


# -- networks ------------------------------------------------------------------------------------------------------

FLOWS = ("stream", "residual", "skip")                          # the kinds of edge a tensor flows along
PASSED = ("input", "embedding", "norm", "sum", "loop", "head")  # roles that do not tell one path from another
PLACES = ("input", "sum", "loop end", "other")                  # nodes without an operator


def path_encoding(architecture: Architecture, length: int = 512, limit: int = 1024) -> np.ndarray:
    """Which paths lead from input to output, float64[length] of zeros and ones.

    A path is the row of operators met, with their sizes, without norms, sums, embedding and head. Each is hashed to one of
    `length` places, so two may fall together. A network of residual layers has exponentially many paths: of those into a
    node the `limit` shortest are kept, in alphabetical order where equally long. For cells a limit is rarely met.
    BANANAS: Bayesian Optimization with Neural Architectures for Neural Architecture Search (White, Neiswanger and Savani,
    2021). Raises ValueError for a length or a limit below 1.
    """
    if length < 1 or limit < 1:
        raise ValueError(f"path_encoding needs length and limit of at least 1: got {length} and {limit}")
    row = np.zeros(length)
    for path in operator_paths(architecture, limit):
        digest = hashlib.sha256(" > ".join(path).encode()).digest()
        row[int.from_bytes(digest[:8], "big") % length] = 1.0
    return row


def operator_paths(architecture: Architecture, limit: int = 1024) -> list[tuple[str, ...]]:
    """The labels of the operators on every path from input to output, the shortest `limit` paths, each once."""
    graph = architecture.graph
    arriving: dict[int, set[tuple[str, ...]]] = {node: set() for node in graph}
    leaving: dict[int, list[tuple[str, ...]]] = {}
    order = in_order(graph)
    for node in order:
        found = graph.nodes[node]
        own = () if found["operator"] is None or found["role"] in PASSED else (found["label"],)
        paths = arriving.pop(node) or {()}
        leaving[node] = heapq.nsmallest(limit, (path + own for path in paths), key=lambda path: (len(path), path))
        for _, target, kind in graph.out_edges(node, data="kind"):
            if kind in FLOWS:
                arriving[target].update(leaving[node])
    return leaving[order[-1]]


def in_order(graph: nx.MultiDiGraph) -> list[int]:
    """The nodes in the order of computation, the head last."""
    import networkx as nx

    return list(nx.lexicographical_topological_sort(graph))


def graph_encoding(architecture: Architecture, nodes: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Adjacency float64[N, N] and features float64[N, F] of the rewritten graph, for graph networks.

    `adjacency[i, j]` counts the tensors from node i to node j; nodes stand in the order of computation, the input first.
    Features: one-hot over the operator classes of the space and the nodes without operator, then the natural logarithms of
    1 + parameters and of 1 + the width of the node's output. F depends on the space alone; N is the number of nodes, or
    `nodes` with zero rows behind them. Neural Predictor for Neural Architecture Search (Wen et al., 2020).
    Raises ValueError when the graph has more than `nodes` nodes.
    """
    graph = architecture.graph
    count = len(graph) if nodes is None else nodes
    if len(graph) > count:
        raise ValueError(f"graph_encoding needs room for every node: got nodes={nodes} and a graph of {len(graph)}")
    names = [*operator_names(architecture.space), *PLACES]
    adjacency, features = np.zeros((count, count)), np.zeros((count, len(names) + 2))
    numels = parameters_by_node(architecture)
    rows = {node: row for row, node in enumerate(in_order(graph))}
    for node, row in rows.items():
        found = graph.nodes[node]
        name = found["label"] if found["operator"] is None else type(found["operator"]).__name__
        features[row, names.index(name if name in names else "other")] = 1.0
        widths = [width for _, _, width in graph.out_edges(node, data="width") if width is not None]
        features[row, -2:] = math.log1p(numels[node]), math.log1p(max(widths, default=0))
    for source, target, kind in graph.edges(data="kind"):
        adjacency[rows[source], rows[target]] += kind in FLOWS
    return adjacency, features


def operator_names(space: Space) -> list[str]:
    """The classes of the operators that a network of `space` may hold, in alphabetical order."""
    found = {type(operator).__name__ for _, operators in space.operators() for operator in operators}
    return sorted(found | {type(loop).__name__ for _, loops, _ in space.loops() for loop in loops})


def parameters_by_node(architecture: Architecture, graph: ArchitectureGraph | None = None) -> list[float]:
    """Numbers of parameters of every node of the rewritten graph, in its order: each parameter's at its innermost node, the
    low-rank pairs of loops at the nodes where such loops begin, in equal parts."""
    from .graph import build_graph

    nodes = (graph or build_graph(architecture.plan)).nodes
    numels: dict[str, int] = dict.fromkeys((node.place for node in nodes if node.place), 0)
    counted = 0
    for placed in architecture.placed:
        owner, numel = placed.name, _numel(placed.operator, placed.width)
        while owner and owner not in numels:
            owner = owner.rpartition(".")[0]
        counted += numel
        if owner:
            numels[owner] += numel
    adapting = [bool(getattr(node.operator, "lora_rank", 0)) for node in nodes]
    pairs = (architecture.cost().parameters - counted) / sum(adapting) if any(adapting) else 0.0
    return [pairs if adapts else float(numels.get(node.place, 0)) for node, adapts in zip(nodes, adapting, strict=True)]


@lru_cache(maxsize=65_536)
def _numel(operator: Any, width: int) -> int:
    return sum(declared.numel for declared in axes_of(operator, width).values())
