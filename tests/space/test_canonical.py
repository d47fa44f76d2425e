"""Canonical labelling against networkx isomorphism, on graphs that fool refinement and Merkle hashes."""

from __future__ import annotations

import random

import networkx as nx
import pytest
from bodyplan.space.canonical import canonical_form, canonical_hash, canonical_order
from hypothesis import given, settings
from hypothesis import strategies as st
from networkx.algorithms.isomorphism import (
    MultiDiGraphMatcher,
    categorical_multiedge_match,
    categorical_node_match,
)

Graph = tuple[list[str], list[tuple[int, int, str]]]


def isomorphic(a: Graph, b: Graph) -> bool:
    """The oracle. networkx compares parallel edges as sets, so each bundle carries its sorted labels."""
    def bundled(graph: Graph) -> nx.MultiDiGraph:
        nodes, edges = graph
        result = nx.MultiDiGraph()
        result.add_nodes_from((i, {"label": label}) for i, label in enumerate(nodes))
        for u, v in {(u, v) for u, v, _ in edges}:
            result.add_edge(u, v, label="|".join(sorted(text for a, b, text in edges if (a, b) == (u, v))))
        return result

    matcher = MultiDiGraphMatcher(bundled(a), bundled(b), categorical_node_match("label", None),
                                  categorical_multiedge_match("label", None))
    return bool(matcher.is_isomorphic())


def shuffled(graph: Graph, seed: int) -> Graph:
    nodes, edges = graph
    rng = random.Random(seed)
    place = list(range(len(nodes)))
    rng.shuffle(place)
    renamed = [""] * len(nodes)
    for old, new in enumerate(place):
        renamed[new] = nodes[old]
    moved = [(place[u], place[v], label) for u, v, label in edges]
    rng.shuffle(moved)
    return renamed, moved


def plain(graph: nx.Graph) -> Graph:
    """An unlabelled graph with both directions of each edge."""
    numbered = nx.convert_node_labels_to_integers(graph)
    return ["v"] * len(numbered), [pair for u, v in numbered.edges for pair in ((u, v, ""), (v, u, ""))]


def cycle(size: int, offset: int = 0) -> list[tuple[int, int, str]]:
    return [(offset + i, offset + (i + 1) % size, "") for i in range(size)]


@st.composite
def graphs(draw: st.DrawFn, nodes: int = 6) -> Graph:
    size = draw(st.integers(1, nodes))
    labels = draw(st.lists(st.sampled_from("ab"), min_size=size, max_size=size))
    index = st.integers(0, size - 1)
    return labels, draw(st.lists(st.tuples(index, index, st.sampled_from("xy")), max_size=9))


@st.composite
def acyclic_graphs(draw: st.DrawFn) -> Graph:
    nodes, edges = draw(graphs(8))
    return nodes, [(min(u, v), max(u, v), label) for u, v, label in edges if u != v]


@given(st.one_of(graphs(), acyclic_graphs()), st.integers(0, 1000))
@settings(max_examples=300, deadline=None)
def test_hash_does_not_depend_on_node_or_edge_order(graph, seed):
    assert canonical_hash(*graph) == canonical_hash(*shuffled(graph, seed))
    assert canonical_form(*graph) == canonical_form(*shuffled(graph, seed))


@given(graphs(4), graphs(4))
@settings(max_examples=300, deadline=None)
def test_hash_is_equal_exactly_for_isomorphic_graphs(a, b):
    assert (canonical_hash(*a) == canonical_hash(*b)) == isomorphic(a, b)


@given(st.one_of(graphs(), acyclic_graphs()), st.data())
@settings(max_examples=300, deadline=None)
def test_one_changed_edge_or_label_changes_the_hash_unless_isomorphic(graph, data):
    nodes, edges = list(graph[0]), list(graph[1])
    index = st.integers(0, len(nodes) - 1)
    if edges and data.draw(st.booleans()):
        which = data.draw(st.integers(0, len(edges) - 1))
        edges[which] = data.draw(st.tuples(index, index, st.sampled_from("xy")))
    else:
        nodes[data.draw(index)] = data.draw(st.sampled_from("ab"))
    assert (canonical_hash(*graph) == canonical_hash(nodes, edges)) == isomorphic(graph, (nodes, edges))


@pytest.mark.parametrize(("size", "colours"), [(2, "a"), (3, "a"), (2, "ab")])
def test_number_of_classes_of_all_small_digraphs_matches_the_oracle(size, colours):
    pairs = [(u, v) for u in range(size) for v in range(size)]
    classes: dict[str, Graph] = {}
    for labels in range(len(colours) ** size):
        nodes = [colours[labels // len(colours) ** i % len(colours)] for i in range(size)]
        for mask in range(2 ** len(pairs)):
            graph = nodes, [(*pair, "") for i, pair in enumerate(pairs) if mask >> i & 1]
            known = classes.setdefault(canonical_hash(*graph), graph)
            assert isomorphic(known, graph)
    expected = {(2, "a"): 10, (3, "a"): 104, (2, "ab"): 36}   # OEIS A000595; two colours by Burnside's lemma
    assert len(classes) == expected[size, colours]


REGULAR = {
    "two triangles and a hexagon": ((["v"] * 6, cycle(3) + cycle(3, 3)), (["v"] * 6, cycle(6))),
    "a square twice and an octagon": ((["v"] * 8, cycle(4) + cycle(4, 4)), (["v"] * 8, cycle(8))),
    "prism and K33": (plain(nx.circular_ladder_graph(3)), plain(nx.complete_bipartite_graph(3, 3))),
    "rook's graph and Shrikhande's": (
        plain(nx.line_graph(nx.complete_bipartite_graph(4, 4))),
        plain(nx.Graph([((i, j), ((i + a) % 4, (j + b) % 4)) for i in range(4) for j in range(4)
                        for a, b in ((0, 1), (1, 0), (1, 1))]))),
}


@pytest.mark.parametrize("pair", REGULAR.values(), ids=REGULAR.keys())
def test_regular_graphs_that_refinement_alone_cannot_tell_apart_differ(pair):
    a, b = pair
    assert not isomorphic(a, b)
    assert canonical_hash(*a) != canonical_hash(*b)


@pytest.mark.parametrize("graph", [
    nx.petersen_graph(), nx.hypercube_graph(4), nx.paley_graph(13).to_undirected(), nx.dodecahedral_graph(),
    nx.random_regular_graph(3, 24, seed=1), nx.disjoint_union_all([nx.cycle_graph(3)] * 5),
    nx.empty_graph(30),
], ids=["petersen", "hypercube", "paley", "dodecahedron", "cubic", "triangles", "edgeless"])
def test_symmetric_graphs_are_invariant_under_renumbering(graph):
    assert len({canonical_hash(*shuffled(plain(graph), seed)) for seed in range(5)}) == 1


def test_a_shared_node_is_not_two_copies():
    shared = ["in", "op", "left", "right", "sum"], [
        (0, 1, ""), (1, 2, ""), (1, 3, ""), (2, 4, ""), (3, 4, "")]
    copies = ["in", "op", "op", "left", "right", "sum"], [
        (0, 1, ""), (0, 2, ""), (1, 3, ""), (2, 4, ""), (3, 5, ""), (4, 5, "")]
    assert canonical_hash(*shared) != canonical_hash(*copies)


def branches(kinds: list[list[str]]) -> Graph:
    """Parallel chains between one input and one sum."""
    nodes, edges = ["in", "sum"], []
    for kind in kinds:
        at = 0
        for label in kind:
            nodes.append(label)
            edges.append((at, len(nodes) - 1, "stream"))
            at = len(nodes) - 1
        edges.append((at, 1, "stream"))
    return nodes, edges


def test_branches_of_a_sum_commute():
    three = canonical_hash(*branches([["a", "b"], ["c"], ["a"]]))
    assert three == canonical_hash(*branches([["c"], ["a"], ["a", "b"]]))
    assert canonical_hash(*branches([["a", "b"], ["c"]])) != canonical_hash(*branches([["a"], ["c", "b"]]))


def test_many_equal_branches_need_no_factorial_search():
    graph = branches([["a", "b", "c"]] * 16)
    assert canonical_hash(*graph) == canonical_hash(*shuffled(graph, 3))


def test_ports_and_parallel_edges_count():
    ports = ["a", "b", "f"], [(0, 2, "0"), (1, 2, "1")]
    swapped = ["a", "b", "f"], [(0, 2, "1"), (1, 2, "0")]
    assert canonical_hash(*ports) != canonical_hash(*swapped)
    assert canonical_hash(["a", "b"], [(0, 1, "x")]) != canonical_hash(["a", "b"], [(0, 1, "x"), (0, 1, "x")])


def test_texts_cannot_run_into_each_other():
    assert canonical_hash(["a", "b"], []) != canonical_hash(['a","b'], [])
    assert canonical_hash(["ab", ""], []) != canonical_hash(["a", "b"], [])


@given(acyclic_graphs())
@settings(max_examples=100, deadline=None)
def test_order_is_a_permutation_and_follows_the_edges(graph):
    order = canonical_order(*graph)
    assert sorted(order) == list(range(len(graph[0])))
    position = {node: i for i, node in enumerate(order)}
    assert all(position[u] < position[v] for u, v, _ in graph[1])


def test_edges_to_missing_nodes_are_refused():
    with pytest.raises(ValueError, match="edges join nodes of the graph: got .* with 1 nodes"):
        canonical_hash(["a"], [(0, 1, "")])


def test_hashes_do_not_change_between_versions():
    nodes, edges = branches([["a", "b"], ["c"]])
    assert canonical_hash(nodes, edges) == (
        "a0d529284500451309cfca7beb73d56ac3bd6110f0c8a386157b93b2da0cd7f8")
