"""Two published search spaces written down here, with exact counts, and how many networks their encodings are.

NAS-Bench-201 (Dong and Yang, 2020) has 15,625 cells. Its authors call 6,466 of them unique by the text they derive from a
cell: it writes nodes out as nested expressions, drops copies and zeros, and sorts sums. An expression cannot tell one node
that is read twice from two equal nodes; a graph can. NAS-Bench-Macro (Su et al., 2021) has 6,561 networks of eight layers.
"""

import itertools
from collections import Counter

import bodyplan as bp
import networkx as nx
import pytest

ZERO, COPY, POOL = bp.Zero(), bp.Identity(), bp.AveragePool(size=3)


def nas_bench_201(norm=True, cells=5):
    convolutions = bp.Conv2d(kernel=1, norm=norm), bp.Conv2d(kernel=3, norm=norm)
    cell = bp.tied(bp.Cell(edges=bp.repeat(bp.choice(ZERO, COPY, *convolutions, POOL), times=6)))
    stages = [bp.Stage(bp.repeat(cell, cells), width=width, stride=stride, kernel=3)
              for width, stride in ((16, (1, 1)), (32, (2, 2)), (64, (2, 2)))]
    return bp.Space(embed=bp.PatchEmbedding(patch=1, channels=3, image=32, grid=True, position=False), width=3,
                    body=tuple(stages), head=bp.ClassifierHead(classes=10), norm=bp.BatchNorm())


def nas_bench_macro():
    def layer(kernel, expand):
        return bp.Block(mixer=bp.MobileConv(kernel=kernel, expand=expand), norm=bp.NoNorm())

    def stage(width, layers):
        # The layer that halves the grid is searched too; strided, it is a convolution of its kernel before the unit.
        def first(kernel, inner):
            return bp.Stage(inner, width=width, stride=(2, 2), kernel=kernel)

        unit = bp.choice(bp.Identity(), bp.MobileConv(kernel=3, expand=3), bp.MobileConv(kernel=5, expand=6))
        rest = bp.repeat(bp.Block(mixer=unit, norm=bp.NoNorm()), layers - 1)
        return bp.choice(first(2, ()), first(3, layer(3, 3)), first(5, layer(5, 6))), rest

    return bp.Space(embed=bp.PatchEmbedding(patch=1, channels=3, image=32, grid=True, position=False), width=32,
                    body=(*stage(64, 2), *stage(128, 3), *stage(256, 3)), head=bp.ClassifierHead(classes=10))


def every(space):
    """Every network of a space. All cells are one, so one per stage tells them apart as well as five do."""
    return (space.architecture(genome) for genome in space.enumerate())


def edges(architecture):
    """The six operators of a cell by name."""
    cell = architecture.plan.layers[0].layers[0]
    return ["zero" if op == ZERO else "copy" if op == COPY else repr(op) for op in cell.edges]


def expression(ops):
    """The authors' text of a cell: nested, without copies and zeros, sums sorted."""
    nodes = ["0"]
    for j in range(1, 4):
        terms = []
        for i in range(j):
            op = ops[j * (j - 1) // 2 + i]
            terms.append("#" if op == "zero" or nodes[i] == "#" else nodes[i] if op == "copy" else f"({nodes[i]})@{op}")
        nodes.append("+".join(sorted(terms)))
    return nodes[-1]


def graph(ops):
    """The cell's own graph, rewritten step by step in another way than the library does it."""
    cell = nx.MultiDiGraph()
    cell.add_nodes_from(range(5), label="sum")
    cell.nodes[0]["label"], cell.nodes[4]["label"] = "input", "output"
    cell.add_edge(3, 4)
    for (i, j), op in zip(((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)), ops, strict=True):
        if op == "copy":
            cell.add_edge(i, j)
        elif op != "zero":
            cell.add_node((i, j), label=op)
            cell.add_edges_from([(i, (i, j)), ((i, j), j)])
    while True:
        keeping = [n for n, label in cell.nodes(data="label") if label == "sum" or "Pool" in label]
        empty = [n for n in keeping if not cell.in_degree(n)]
        idle = [n for n in cell if n not in (0, 4) and not cell.out_degree(n)]
        if not empty and not idle:
            break
        cell.remove_nodes_from(empty + idle)
    for node in (1, 2, 3):
        if node in cell and cell.in_degree(node) == 1:
            (before, _), = cell.in_edges(node)
            cell.add_edges_from([(before, after) for _, after in cell.out_edges(node)])
            cell.remove_node(node)
    return cell


def test_nas_bench_201_has_its_size():
    space = nas_bench_201()
    assert space.size() == 15_625
    assert sum(1 for _ in space.enumerate()) == 15_625


@pytest.fixture(scope="module")
def cells():
    return [(edges(architecture), architecture.hash) for architecture in every(nas_bench_201(cells=1))]


@pytest.mark.long
def test_the_published_number_of_unique_cells_is_reproduced(cells):
    assert len({expression(ops) for ops, _ in cells}) == 6_466


@pytest.mark.long
def test_one_hash_exactly_for_isomorphic_cells(cells):
    groups = {}
    for ops, digest in cells[::7]:
        groups.setdefault(digest, []).append(graph(ops))
    for members in groups.values():
        assert all(isomorphic(members[0], other) for other in members[1:])
    rough = {}
    for digest, members in groups.items():
        key = tuple(sorted(Counter(a["label"] for _, a in members[0].nodes(data=True)).items())), members[0].number_of_edges()
        rough.setdefault(key, []).append((digest, members[0]))
    for candidates in rough.values():
        for (_, a), (_, b) in itertools.combinations(candidates, 2):
            assert not isomorphic(a, b)


def isomorphic(a, b):
    return nx.is_isomorphic(a, b, node_match=lambda x, y: x["label"] == y["label"],
                            edge_match=lambda x, y: len(x) == len(y))


@pytest.mark.long
def test_how_many_distinct_cells_there_are(cells):
    """More than the published 6,466: a node read twice is not two equal nodes, and a convolution with batch norm makes
    something of zeros."""
    assert len({digest for _, digest in cells}) == 7_031
    assert len({architecture.hash for architecture in every(nas_bench_201(norm=False, cells=1))}) == 6_334


def test_nas_bench_macro_has_its_size_and_its_distinct_networks():
    space = nas_bench_macro()
    assert space.size() == 6_561
    assert len({architecture.hash for architecture in every(space)}) == 3_969
