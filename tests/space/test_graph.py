"""What makes two networks one: the rewrites merge them, everything else keeps them apart."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import networkx as nx
import pytest
from bodyplan.space.canonical import canonical_hash
from bodyplan.space.graph import architecture_hash, build_graph, operator_label, to_networkx
from bodyplan.space.operator import Operator
from bodyplan.space.operators.attention import Attention
from bodyplan.space.operators.identity import Identity
from bodyplan.space.operators.rmsnorm import RMSNorm
from bodyplan.space.plan import Block, Loop, Once, Plan
from hypothesis import given, settings
from hypothesis import strategies as st
from networkx.algorithms.isomorphism import categorical_multiedge_match, categorical_node_match


@dataclass(frozen=True)
class _Embedding(Operator):
    vocab: int = 256


@dataclass(frozen=True)
class _Head(Operator):
    tied: bool = True


@dataclass(frozen=True)
class _Scan(Operator):
    state: Any = 16
    taps: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class _Feed(Operator):
    ratio: Any = 2


ATTENTION, SCAN, FEED, NONE = Attention(heads=2), _Scan(), _Feed(), Identity()


def plan(*layers: Block, **changes: Any) -> Plan:
    return replace(Plan(_Embedding(), 64, layers, Once(), _Head(), RMSNorm()), **changes)


TWO = plan(Block(ATTENTION, FEED), Block(SCAN, FEED))

ONE_NETWORK = {
    "an empty layer anywhere": [
        TWO,
        plan(Block(NONE, NONE), Block(ATTENTION, FEED), Block(SCAN, FEED)),
        plan(Block(ATTENTION, FEED), Block(), Block(SCAN, FEED), Block()),
    ],
    "the norm of a layer that is not there": [
        TWO, plan(Block(ATTENTION, FEED), Block(NONE, NONE, RMSNorm(eps=1e-3)), Block(SCAN, FEED))],
    "a recursion that runs once": [TWO, replace(TWO, recursion=Loop(times=1)),
                                   replace(TWO, recursion=Loop(times=1, lora_rank=0))],
    "a recursion around nothing": [plan(), plan(recursion=Loop(3, 4)), plan(Block(), recursion=Loop(2))],
    "sublayers cut into layers otherwise": [
        TWO, plan(Block(ATTENTION, NONE), Block(FEED, SCAN), Block(NONE, FEED)),
        plan(Block(NONE, ATTENTION), Block(FEED, NONE), Block(SCAN, FEED))],
    "a default written out": [TWO, plan(Block(Attention(heads=2, window=None, rope_base=10000), FEED),
                                        Block(_Scan(state=16.0, taps=(1, 2)), _Feed(ratio=2)))],
}

VARIANTS = {
    "two": TWO,
    "layers in another order": plan(Block(SCAN, FEED), Block(ATTENTION, FEED)),
    "sublayers in another order": plan(Block(FEED, ATTENTION), Block(SCAN, FEED)),
    "one layer": plan(Block(ATTENTION, FEED)),
    "three layers": plan(Block(ATTENTION, FEED), Block(SCAN, FEED), Block(SCAN, FEED)),
    "no layer": plan(),
    "a channel mixer less": plan(Block(ATTENTION, FEED), Block(SCAN, NONE)),
    "width": replace(TWO, width=96),
    "window": plan(Block(Attention(heads=2, window=64), FEED), Block(SCAN, FEED)),
    "heads": plan(Block(Attention(heads=4), FEED), Block(SCAN, FEED)),
    "a tuple": plan(Block(ATTENTION, FEED), Block(_Scan(taps=(2, 1)), FEED)),
    "ratio": plan(Block(ATTENTION, _Feed(3)), Block(SCAN, FEED)),
    "loop": replace(TWO, recursion=Loop(2)),
    "a longer loop": replace(TWO, recursion=Loop(3)),
    "a loop with its own weights": replace(TWO, recursion=Loop(2, 4)),
    "one pass with low-rank weights": replace(TWO, recursion=Loop(1, 4)),
    "the loop unrolled": plan(*TWO.layers, *TWO.layers),
    "untied head": replace(TWO, head=_Head(tied=False)),
    "vocabulary": replace(TWO, embed=_Embedding(vocab=512)),
    "last norm": replace(TWO, norm=RMSNorm(eps=1e-3)),
    "a layer's norm": plan(Block(ATTENTION, FEED, RMSNorm(eps=1e-3)), Block(SCAN, FEED)),
}


@pytest.mark.parametrize("plans", ONE_NETWORK.values(), ids=ONE_NETWORK.keys())
def test_rewrites_leave_one_network(plans):
    assert len({architecture_hash(p) for p in plans}) == 1


def test_different_networks_have_different_hashes():
    hashes = {name: architecture_hash(p) for name, p in VARIANTS.items()}
    assert len(set(hashes.values())) == len(VARIANTS)


sublayers = st.sampled_from([ATTENTION, SCAN, FEED, NONE, _Feed(3)])
plans = st.builds(
    lambda layers, recursion, tied: plan(*layers, recursion=recursion, head=_Head(tied)),
    st.lists(st.builds(Block, sublayers, sublayers), max_size=3),
    st.sampled_from([Once(), Loop(1), Loop(2), Loop(2, 4)]), st.booleans())


@given(plans, plans)
@settings(max_examples=150, deadline=None)
def test_hashes_agree_with_networkx_isomorphism(a, b):
    same = nx.is_isomorphic(to_networkx(build_graph(a)), to_networkx(build_graph(b)),
                            categorical_node_match("label", None), categorical_multiedge_match("kind", None))
    assert (architecture_hash(a) == architecture_hash(b)) == same


@given(plans, st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_the_order_in_which_nodes_are_inserted_does_not_matter(p, seed):
    graph = build_graph(p)
    place = list(range(len(graph.nodes)))
    random.Random(seed).shuffle(place)
    labels = [graph.nodes[place.index(i)].label for i in range(len(place))]
    assert canonical_hash(labels, [(place[u], place[v], kind) for u, v, kind in graph.edges]) == graph.hash


def test_the_networkx_graph_shows_operators_tensors_and_ports():
    graph = to_networkx(build_graph(replace(TWO, recursion=Loop(3, 4))))
    assert isinstance(graph, nx.MultiDiGraph) and nx.is_directed_acyclic_graph(graph)
    by_place = {place: node for node, place in graph.nodes(data="place") if place}
    assert graph.nodes[by_place["layers.0.mixer.op"]]["operator"] == ATTENTION
    assert graph.nodes[by_place["layers.1.channel.norm"]]["role"] == "norm"
    assert {"embed", "norm", "head"} <= by_place.keys()
    assert "weights" in {e["kind"] for e in graph.get_edge_data(by_place["embed"], by_place["head"]).values()}
    sums = [node for node, attributes in graph.nodes(data=True) if attributes["role"] == "sum"]
    assert len(sums) == 4
    for node in sums:
        arriving = [attributes for _, _, attributes in graph.in_edges(node, data=True)]
        assert sorted(e["port"] for e in arriving) == [0, 1]
        assert {e["kind"] for e in arriving} == {"stream", "residual"}
        assert {e["width"] for e in arriving} == {64}


def test_a_new_field_with_a_default_keeps_the_old_hash():
    def version(**fields: Any) -> Operator:
        body = {"__annotations__": dict.fromkeys(fields, int), **fields}
        return dataclass(frozen=True)(type("_Versioned", (Operator,), body))()

    old, new, reordered = version(a=1, b=2), version(a=1, b=2, c=3), version(b=2, a=1)
    changed = [replace(operator, a=5, b=6) for operator in (old, new, reordered)]
    assert len({architecture_hash(plan(Block(operator))) for operator in (old, new, reordered)}) == 1
    assert len({architecture_hash(plan(Block(operator))) for operator in changed}) == 1


class _Kind(Enum):
    SUM = 1


@dataclass(frozen=True)
class _Inner:
    size: int = 3


def _gate(x: float) -> float:
    return x


@dataclass(frozen=True)
class _Own:
    """A user's config with everything a field may hold."""

    needed: Any
    values: list[Any] = field(default_factory=list)
    name: str = field(default="", compare=False)
    inner: _Inner = field(default_factory=_Inner)
    text: str | None = None


@pytest.mark.parametrize(("operator", "label"), [
    (_Own(1), "_Own(needed=1)"),
    (_Own(True), "_Own(needed=1)"),
    (_Own(1.0), "_Own(needed=1)"),
    (_Own(0.5, name="mine"), "_Own(needed=0.5)"),
    (_Own(float("inf")), "_Own(needed=inf)"),
    (_Own(None, [1, "a"]), '_Own(needed=None,values=(1,"a"))'),
    (_Own(_Inner(), inner=_Inner(4)), "_Own(inner=_Inner(size=4),needed=_Inner())"),
    (_Own(_Kind.SUM), "_Own(needed=_Kind.SUM)"),
    (_Own(_gate), "_Own(needed=_gate)"),
    (_Own(nx.Graph), "_Own(needed=Graph)"),
    (_Own({"b": 1, "a": (2,)}), '_Own(needed={"a":(2),"b":1})'),
    (_Own(frozenset({2, 1})), "_Own(needed={1,2})"),
    (_Own("1", text="é"), '_Own(needed="1",text="\\u00e9")'),
])
def test_labels_hold_class_and_fields_that_are_not_default(operator, label):
    assert operator_label(operator) == label


@pytest.mark.parametrize(("operator", "message"), [
    (_Own(object()), "fields of operators are .*: got object for _Own.needed; pass plain values"),
    (_Own(lambda x: x), "functions inside operators need a name.* _Own.needed; write it with def"),
    (object(), "operators are frozen dataclasses: got object"),
])
def test_what_has_no_label_is_refused(operator, message):
    with pytest.raises(TypeError, match=message):
        operator_label(operator)


def test_hashes_do_not_change_between_versions():
    assert architecture_hash(replace(TWO, recursion=Loop(3, 4))) == (
        "1f386e83540c62c53a0dc3c5835a24778c1cabc0dfbc33de6a1fff23d78216d1")


def test_hashing_imports_neither_networkx_nor_torch():
    code = ("import sys; from bodyplan.space import graph, drawing; "
            "assert not {'networkx', 'torch'} & sys.modules.keys(), sorted(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True)
