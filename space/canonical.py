"""Canonical labelling of small typed directed multigraphs: one text for each isomorphism class.

Colour refinement with individualisation (McKay, "Practical graph isomorphism", 1981), with the two prunings
that matter: refinement traces and automorphisms found on the way. An acyclic graph is coloured first by
levels, in one pass that looks at predecessors only; a network without twin branches is labelled by that pass
alone, in linear time. Everything a node's place depends on is a label, a count or an earlier colour, never
the order of the input.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import groupby
from json.encoder import encode_basestring_ascii

__all__ = ["canonical_form", "canonical_hash", "canonical_order"]

Edge = tuple[int, int, str]
Neighbours = list[list[tuple[str, int]]]      # per node: (edge label, other end)
Signature = tuple[object, ...]
Cells = dict[int, list[int]]                  # colour -> its nodes, for colours that several nodes share

_VERSION = "graph-1"                          # part of every hash: a change of the labelling is a new number


def canonical_hash(nodes: Sequence[str], edges: Sequence[Edge]) -> str:
    """SHA-256 of the canonical form, in hex.

    Equal for two graphs exactly when a bijection of their nodes keeps node labels, edge directions, edge
    labels and the multiplicity of edges.

    >>> canonical_hash(["a", "b"], [(0, 1, "x")]) == canonical_hash(["b", "a"], [(1, 0, "x")])
    True
    >>> canonical_hash(["a", "b"], [(0, 1, "x")]) == canonical_hash(["a", "b"], [(1, 0, "x")])
    False
    """
    labels, joined = canonical_form(nodes, edges)
    # As json.dumps writes [_VERSION, labels, joined], without looking at every number and text anew.
    written = ",".join([f"[{u},{v},{_quoted(label)}]" for u, v, label in joined])
    text = f'["{_VERSION}",[{",".join(map(_quoted, labels))}],[{written}]]'
    return hashlib.sha256(text.encode("ascii")).hexdigest()


_quoted = lru_cache(maxsize=8192)(encode_basestring_ascii)


def canonical_form(nodes: Sequence[str], edges: Sequence[Edge]) -> tuple[list[str], list[Edge]]:
    """The graph with its nodes in canonical order and its edges renumbered and sorted."""
    order = canonical_order(nodes, edges)
    place = [0] * len(order)
    for position, node in enumerate(order):
        place[node] = position
    return [nodes[node] for node in order], sorted((place[u], place[v], label) for u, v, label in edges)


def canonical_order(nodes: Sequence[str], edges: Sequence[Edge]) -> list[int]:
    """The nodes by canonical position: entry `i` is the input index of the node at position `i`.

    Nodes that an automorphism exchanges may come in either order; the renumbered graph is the same. Linear
    for acyclic graphs without twins, cubic for many equal branches, exponential only for graphs that no
    network looks like (strongly regular ones). Raises ValueError when an edge names a node that is not there.
    """
    graph = _Graph(nodes, edges)
    colour, cells = graph.levels()
    if cells:
        graph.refine(colour, cells, [node for cell in cells.values() for node in cell])
    if cells:
        colour = _Search(graph).run(colour, cells)
    order = [0] * len(nodes)
    for node, position in enumerate(colour):
        order[position] = node
    return order


class _Graph:
    """Adjacency in both directions, and the colourings built from it.

    A colouring gives each node the position at which its cell starts, so a colouring without cells of two or
    more nodes is an order.
    """

    def __init__(self, nodes: Sequence[str], edges: Sequence[Edge]):
        size = len(nodes)
        self.nodes, self.edges = nodes, edges
        self.ins: Neighbours = [[] for _ in range(size)]
        self.outs: Neighbours = [[] for _ in range(size)]
        for u, v, label in edges:
            if not (0 <= u < size and 0 <= v < size):
                raise ValueError(f"edges join nodes of the graph: got {(u, v, label)} with {size} nodes")
            self.outs[u].append((label, v))
            self.ins[v].append((label, u))

    def levels(self) -> tuple[list[int], Cells]:
        """Colour by longest distance from a source, then label, then predecessors; cycles come last."""
        ins, outs = self.ins, self.outs
        colour, cells = [0] * len(ins), Cells()
        waiting = [len(entries) for entries in ins]
        level, start = [node for node, count in enumerate(waiting) if not count], 0
        while level:
            if len(level) == 1:
                colour[level[0]] = start
            else:
                signatures = [(self.nodes[v], _coloured(ins[v], colour)) for v in level]
                _split(level, signatures, start, colour, cells)
            start += len(level)
            following = []
            for node in level:
                for _, successor in outs[node]:
                    waiting[successor] -= 1
                    if not waiting[successor]:
                        following.append(successor)
            level = following
        cyclic = [node for node, count in enumerate(waiting) if count]
        _split(cyclic, [(self.nodes[node],) for node in cyclic], start, colour, cells)
        return colour, cells

    def refine(self, colour: list[int], cells: Cells, touched: Iterable[int]) -> list[Signature]:
        """Split cells, in place, until nodes of one colour have equal neighbourhoods.

        Only cells with a touched node are looked at, then those beside nodes whose colour changed. Returns
        the trace: every fragment's start and signature, equal for searches that isomorphic individualisations
        lead to.
        """
        trace: list[Signature] = []
        while touched and cells:
            starts = sorted({colour[node] for node in touched} & cells.keys())
            split = [(start, [self._signature(v, colour) for v in cells[start]]) for start in starts]
            moved: list[int] = []
            for start, signatures in split:
                moved += _split(cells.pop(start), signatures, start, colour, cells, trace)
            touched = {other for node in moved for _, other in (*self.ins[node], *self.outs[node])}
        return trace

    def _signature(self, node: int, colour: list[int]) -> Signature:
        return _coloured(self.ins[node], colour), _coloured(self.outs[node], colour)


def _coloured(entries: list[tuple[str, int]], colour: list[int]) -> Signature:
    if len(entries) == 1:
        label, other = entries[0]
        return ((label, colour[other]),)
    return tuple(sorted([(label, colour[other]) for label, other in entries]))


def _split(members: list[int], signatures: Sequence[Signature], start: int, colour: list[int], cells: Cells,
           trace: list[Signature] | None = None) -> list[int]:
    """Colour `members` from `start` on by sorted signature; returns those beyond the first fragment."""
    moved: list[int] = []
    ranked = sorted(zip(signatures, members, strict=True))
    first = start
    for signature, group in groupby(ranked, key=lambda entry: entry[0]):
        fragment = [node for _, node in group]
        for node in fragment:
            colour[node] = start
        if len(fragment) > 1:
            cells[start] = fragment
        if start != first:
            moved += fragment
        if trace is not None:
            trace.append((start, signature))
        start += len(fragment)
    return moved


class _Search:
    """Depth-first search over individualisations for the least (traces, certificate).

    A leaf whose certificate was seen before yields an automorphism; the search then returns to where the two
    paths part, since everything below is a mirror image of what has been searched.
    """

    def __init__(self, graph: _Graph):
        self.graph = graph
        self.traces: list[list[Signature]] = []                # of the best path so far, one per depth
        self.best: tuple[tuple[Edge, ...], list[int]] | None = None
        self.leaves: dict[tuple[Edge, ...], tuple[tuple[int, ...], list[int]]] = {}
        self.automorphisms: list[list[int]] = []

    def run(self, colour: list[int], cells: Cells) -> list[int]:
        """The best discrete colouring below this one."""
        self._descend(colour, cells, ())
        assert self.best is not None
        return self.best[1]

    def _descend(self, colour: list[int], cells: Cells, path: tuple[int, ...]) -> int:
        """Search below `path`; returns the depth at which the search goes on."""
        if not cells:
            return self._leaf(colour, path)
        start = min(cells, key=lambda begin: (len(cells[begin]), begin))
        tried: list[int] = []
        for node in cells[start]:
            if tried and self._mirrors(node, tried, path):
                continue
            tried.append(node)
            below, below_cells, trace = self._individualise(node, start, colour, cells)
            if self._is_worse(trace, len(path)):
                continue
            depth = self._descend(below, below_cells, (*path, node))
            if depth < len(path):
                return depth
        return len(path)

    def _individualise(self, node: int, start: int, colour: list[int],
                       cells: Cells) -> tuple[list[int], Cells, list[Signature]]:
        colour, cells = list(colour), dict(cells)
        members = cells.pop(start)
        moved = _split(members, [(member != node,) for member in members], start, colour, cells)
        beside = {other for v in moved for _, other in (*self.graph.ins[v], *self.graph.outs[v])}
        return colour, cells, self.graph.refine(colour, cells, beside)

    def _is_worse(self, trace: list[Signature], depth: int) -> bool:
        if depth < len(self.traces):
            if trace > self.traces[depth]:
                return True
            if trace == self.traces[depth]:
                return False
            del self.traces[depth:]
            self.best = None
        self.traces.append(trace)
        return False

    def _leaf(self, colour: list[int], path: tuple[int, ...]) -> int:
        certificate = tuple(sorted((colour[u], colour[v], label) for u, v, label in self.graph.edges))
        seen = self.leaves.get(certificate)
        if seen is not None:
            self._note_automorphism(seen[1], colour)
            return next(i for i, (a, b) in enumerate(zip(seen[0], path, strict=True)) if a != b)
        self.leaves[certificate] = path, colour
        if self.best is None or certificate < self.best[0]:
            self.best = certificate, colour
        return len(path)

    def _note_automorphism(self, before: list[int], now: list[int]) -> None:
        at = [0] * len(now)
        for node, position in enumerate(now):
            at[position] = node
        self.automorphisms.append([at[position] for position in before])

    def _mirrors(self, node: int, tried: list[int], path: tuple[int, ...]) -> bool:
        """Whether known automorphisms that keep `path` in place take `node` to a node tried before."""
        keeping = [image for image in self.automorphisms if all(image[v] == v for v in path)]
        orbit, frontier = {node}, [node]
        while frontier:
            reached = {image[v] for v in frontier for image in keeping} - orbit
            orbit |= reached
            frontier = list(reached)
        return not orbit.isdisjoint(tried)
