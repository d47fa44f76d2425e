"""Two genomes have one hash exactly when their rewritten graphs are isomorphic, by brute force over random small spaces."""

import itertools
from collections import Counter

import bodyplan as bp
import networkx as nx
import pytest
from random_spaces import genomes_of, random_space

OPERATORS = (bp.Attention(heads=2), bp.ShortConv(kernel=3), bp.MLP(ratio=1), bp.Identity(), bp.Zero())
NODE = nx.algorithms.isomorphism.categorical_node_match("label", None)


def same_kinds(x, y):
    return Counter(e["kind"] for e in x.values()) == Counter(e["kind"] for e in y.values())


def isomorphic(a, b):
    return nx.is_isomorphic(a, b, node_match=NODE, edge_match=same_kinds)


def rough(graph):
    """What isomorphic graphs share for certain; only graphs alike in it need be compared."""
    around = ((label, graph.in_degree(n), graph.out_degree(n)) for n, label in graph.nodes(data="label"))
    return tuple(sorted(Counter(around).items())), graph.number_of_edges()


def check(space, most=400):
    groups = {}
    for genome in genomes_of(space, most):
        architecture = space.architecture(genome)
        groups.setdefault(architecture.hash, []).append(architecture.graph)
    for members in groups.values():
        assert all(isomorphic(members[0], other) for other in members[1:8])
    alike = {}
    for members in groups.values():
        alike.setdefault(rough(members[0]), []).append(members[0])
    for graphs in alike.values():
        for a, b in itertools.combinations(graphs[:12], 2):
            assert not isomorphic(a, b)
    return len(groups)


@pytest.mark.parametrize("start", range(0, 200, 40))
def test_in_random_spaces(start):
    assert sum(check(random_space(seed, limit=60)) for seed in range(start, start + 40)) > 40


def small(body, **more):
    given = {"embed": bp.TokenEmbedding(vocab=8), "width": 8, "head": bp.LanguageHead(tied=True)}
    return bp.Space(**(given | more), body=body)


BRANCHES = bp.repeat(bp.choice(*OPERATORS), bp.integer(1, 3))
TWO = bp.repeat(bp.Block(mixer=bp.choice(*OPERATORS[:2]), channel=bp.choice(*OPERATORS[2:4])), bp.integer(1, 3))
SPACES = {
    "summed branches": small(bp.Block(mixer=bp.Parallel(branches=BRANCHES))),
    "gated branches": small(bp.Block(mixer=bp.Parallel(branches=BRANCHES, merge=bp.choice("gated", "concat")))),
    "branches of branches": small(bp.Block(mixer=bp.Parallel(branches=(
        bp.Parallel(branches=bp.repeat(bp.choice(*OPERATORS[:3]), 2)),
        bp.choice(*OPERATORS[:3]), bp.choice(*OPERATORS[:2]))))),
    "cells": small(bp.repeat(bp.tied(bp.Cell(edges=bp.repeat(bp.choice(*OPERATORS[1:]), 6))), bp.integer(1, 2))),
    "residual topologies": small(bp.Stack(TWO, bp.choice(bp.Residual(), bp.DenseAverage(), bp.ValueResidual(),
                                                         bp.CrossLayerKV(), bp.HyperConnections(), bp.Ladder()))),
    "stages": small((bp.Stage(bp.repeat(bp.optional(TWO), 2), width=bp.choice(8, 16)),), head=bp.LanguageHead(tied=False)),
    "loops in a loop": small((bp.Looped(TWO, bp.choice(bp.Once(), bp.Loop(1), bp.Loop(2))),),
                             recursion=bp.choice(bp.Loop(1), bp.Loop(2))),
    "orders": small(
        bp.subset(*(bp.Block(mixer=op) for op in OPERATORS[:3]), size=(1, 3), ordered=True)),
}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())
def test_in_spaces_of_macros(space):
    assert check(space) > 1
