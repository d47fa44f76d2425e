"""The graph of a network: operators with every number fixed, and the tensors between them.

Two networks are the same when their *rewritten* graphs are isomorphic. The rewriting is done while the graph
is built: an `Identity()` sublayer leaves no node, a recursion that changes nothing leaves no node, a sublayer
is labelled alike as mixer and as channel, fields at their dataclass default are left out of labels, and no
label holds a name or a position. So dead genes, empty layers and renamed parts cannot change a hash, and a
new option with a default keeps old hashes. Equality of functions is not claimed: `kv_heads=None` and
`kv_heads=heads` are two labels.

Nodes are built as plain tuples, since every candidate of a search is hashed; `to_networkx` makes the graph to
look at.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from .canonical import canonical_hash

if TYPE_CHECKING:
    import networkx as nx  # type: ignore[import-untyped]

    from .plan import Plan

__all__ = ["ArchitectureGraph", "GraphNode", "architecture_hash", "build_graph", "operator_label",
           "to_networkx"]

STREAM = "stream"           # a tensor on its way through the operators
RESIDUAL = "residual"       # the stream passing a sublayer by
WEIGHTS = "weights"         # the head reads the embedding's matrix
LOOP = "loop"               # from where a recursion starts to where it ends


class GraphNode(NamedTuple):
    """A node. Only `label` takes part in the hash; `place` is the module's prefix, empty without a module."""

    label: str
    role: str               # input | embedding | norm | mixer | channel | sum | loop | head
    place: str
    operator: Any           # the config, or None


@dataclass(frozen=True)
class ArchitectureGraph:
    """Nodes in the order of computation, edges `(source, target, kind)`: a directed acyclic multigraph."""

    nodes: tuple[GraphNode, ...]
    edges: tuple[tuple[int, int, str], ...]
    width: int

    @property
    def hash(self) -> str:
        """64 hex digits, equal exactly for isomorphic graphs."""
        return canonical_hash([node.label for node in self.nodes], self.edges)


def architecture_hash(plan: Plan) -> str:
    """The identity of the network `plan` describes: SHA-256 of its canonically labelled graph, in hex."""
    return build_graph(plan).hash


def build_graph(plan: Plan) -> ArchitectureGraph:
    """The rewritten graph of `plan`: input, embedding, residual sublayers, norm, head.

    A recursion stands as a node before the first and one after the last sublayer, so its weights are shared
    by being one set of nodes. Raises TypeError when a field of an operator is neither plain nor a dataclass.
    """
    draft = _Draft()
    source = draft.node("input", "input")
    label = f"{operator_label(plan.embed)}->{plan.width}"
    embedding = draft.node(label, "embedding", "embed", plan.embed, source)
    sublayers = [(f"layers.{index}.{role}", role, block.norm, operator)
                 for index, block in enumerate(plan.layers) for role, operator in block.sublayers()]
    stream = embedding
    loops = bool(sublayers) and (plan.recursion.times > 1 or plan.recursion.lora_rank > 0)
    if loops:
        stream = begin = draft.node(operator_label(plan.recursion), "loop", "", plan.recursion, stream)
    for place, role, norm, operator in sublayers:
        stream = draft.sublayer(place, role, norm, operator, stream)
    if loops:
        stream = draft.node("loop end", "loop", "", None, stream)
        draft.edges.append((begin, stream, LOOP))
    stream = draft.node(operator_label(plan.norm), "norm", "norm", plan.norm, stream)
    head = draft.node(operator_label(plan.head), "head", "head", plan.head, stream)
    if getattr(plan.head, "tied", False):
        draft.edges.append((embedding, head, WEIGHTS))
    return ArchitectureGraph(tuple(draft.nodes), tuple(draft.edges), plan.width)


class _Draft:
    def __init__(self) -> None:
        self.nodes: list[GraphNode] = []
        self.edges: list[tuple[int, int, str]] = []

    def node(self, label: str, role: str, place: str = "", operator: Any = None,
             after: int | None = None) -> int:
        self.nodes.append(GraphNode(label, role, place, operator))
        index = len(self.nodes) - 1
        if after is not None:
            self.edges.append((after, index, STREAM))
        return index

    def sublayer(self, place: str, role: str, norm: Any, operator: Any, stream: int) -> int:
        normed = self.node(operator_label(norm), "norm", f"{place}.norm", norm, stream)
        output = self.node(operator_label(operator), role, f"{place}.op", operator, normed)
        total = self.node("sum", "sum", "", None, output)
        self.edges.append((stream, total, RESIDUAL))
        return total


def to_networkx(graph: ArchitectureGraph) -> nx.MultiDiGraph:
    """As a networkx multigraph.

    Nodes carry `label`, `role`, `place` and `operator`; edges `kind`, `port` and `width`. `port` counts the
    edges into a node. `width` is the residual width, None where no activation flows.
    networkx's `is_isomorphic` on `label` and `kind` agrees with equality of hashes.
    """
    import networkx as nx

    result = nx.MultiDiGraph(width=graph.width)
    for index, node in enumerate(graph.nodes):
        result.add_node(index, **node._asdict())
    for source, target, kind in graph.edges:
        flows = kind in (STREAM, RESIDUAL) and graph.nodes[source].role != "input"
        width = graph.width if flows else None
        result.add_edge(source, target, kind=kind, port=result.in_degree(target), width=width)
    return result


def operator_label(operator: Any) -> str:
    """Class name and the fields that are not at their default, by name: `Attention(heads=2,window=64)`.

    Equal configs have equal labels, so 2, 2.0 and (as a number) True read alike. Fields declared
    `compare=False` or `init=False` do not count. Class names are unique among registered operators.
    """
    try:
        return _remembered(operator)
    except TypeError:                           # unhashable, or a field that has no label
        return _label(operator)


def _label(operator: Any) -> str:
    parts = []
    for name, is_default in _fields(operator.__class__):
        value = getattr(operator, name)
        if not is_default(value):
            parts.append(f"{name}={_value(value, type(operator), name)}")
    return f"{type(operator).__name__}({','.join(parts)})"


_remembered: Callable[[Any], str] = lru_cache(maxsize=4096)(_label)


@lru_cache(maxsize=512)
def _fields(cls: type) -> tuple[tuple[str, Callable[[Any], bool]], ...]:
    """Fields that count, each with a test for its default; sorted, so that their order does not matter."""
    if not is_dataclass(cls):
        raise TypeError(f"operators are frozen dataclasses: got {cls.__qualname__}; decorate it with "
                        "@dataclass(frozen=True)")
    counted = sorted((field for field in fields(cls) if field.init and field.compare), key=lambda f: f.name)
    return tuple((field.name, _default_test(field)) for field in counted)


def _default_test(field: Field[Any]) -> Callable[[Any], bool]:
    if field.default is not MISSING:
        default = field.default
    elif field.default_factory is not MISSING:
        default = field.default_factory()
    else:
        return lambda value: False
    return lambda value: bool(value is default or value == default)


def _value(value: Any, owner: type, name: str) -> str:
    """A field's value as text: equal values, equal texts, and the other way round."""
    if value is None:
        return "None"
    if isinstance(value, Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, (bool, int, float)):
        return repr(int(value)) if math.isfinite(value) and value == int(value) else repr(value)
    if isinstance(value, (tuple, list)):
        return f"({','.join(_value(entry, owner, name) for entry in value)})"
    if isinstance(value, (frozenset, set)):
        return f"{{{','.join(sorted(_value(entry, owner, name) for entry in value))}}}"
    if isinstance(value, Mapping):
        pairs = sorted((_value(key, owner, name), _value(entry, owner, name)) for key, entry in value.items())
        return f"{{{','.join(f'{key}:{entry}' for key, entry in pairs)}}}"
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return _callable(value, owner, name)
    if is_dataclass(value):
        return operator_label(value)
    raise TypeError("fields of operators are numbers, texts, tuples or dataclasses, so that networks can be "
                    f"told apart: got {type(value).__qualname__} for {owner.__qualname__}.{name}; pass plain "
                    "values, or declare the field with field(compare=False)")


def _callable(value: Any, owner: type, name: str) -> str:
    if "<lambda>" in value.__qualname__:
        raise TypeError("functions inside operators need a name, so that networks can be told apart: got a "
                        f"lambda for {owner.__qualname__}.{name}; write it with def")
    return str(value.__qualname__)
