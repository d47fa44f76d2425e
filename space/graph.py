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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from .canonical import canonical_hash
from .macros.base import is_absent

if TYPE_CHECKING:
    import networkx as nx  # type: ignore[import-untyped]

    from .macros.base import Macro, Part
    from .plan import Plan

__all__ = ["ArchitectureGraph", "Draft", "GraphNode", "architecture_hash", "build_graph", "operator_label",
           "shell_label", "to_networkx"]

STREAM = "stream"           # a tensor on its way through the operators
RESIDUAL = "residual"       # the stream passing a sublayer by
SKIP = "skip"               # a tensor kept for a later part
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
    widths: tuple[int, ...] = ()              # of the tensor each node gives

    @property
    def hash(self) -> str:
        """64 hex digits, equal exactly for isomorphic graphs."""
        return canonical_hash([node.label for node in self.nodes], self.edges)


def architecture_hash(plan: Plan) -> str:
    """The identity of the network `plan` describes: SHA-256 of its canonically labelled graph, in hex."""
    return build_graph(plan).hash


def build_graph(plan: Plan) -> ArchitectureGraph:
    """The rewritten graph of `plan`: input, embedding, body, norm, head.

    A recursion stands as a node before the first and one after the last node of what it repeats, so its weights are
    shared by being one set of nodes. Raises TypeError when a field of an operator is neither plain nor a dataclass.
    """
    draft = Draft(plan.width)
    source = draft.node("input", "input")
    label = f"{operator_label(plan.embed)}->{plan.width}"
    embedding = draft.node(label, "embedding", "embed", plan.embed, source)
    stream = draft.looped(plan.recursion, embedding, plan.layers, "layers", plan.width)
    stream = draft.node(operator_label(plan.norm), "norm", "norm", plan.norm, stream)
    head = draft.node(operator_label(plan.head), "head", "head", plan.head, stream)
    if getattr(plan.head, "tied", False):
        draft.edges.append((embedding, head, WEIGHTS))
    return ArchitectureGraph(tuple(draft.nodes), tuple(draft.edges), plan.width, tuple(draft.widths))


class Draft:
    """A graph while macros draw themselves into it. `width` is that of the stream just now."""

    def __init__(self, width: int) -> None:
        self.nodes: list[GraphNode] = []
        self.edges: list[tuple[int, int, str]] = []
        self.widths: list[int] = []
        self.width = width

    def node(self, label: str, role: str, place: str = "", operator: Any = None,
             after: int | None = None) -> int:
        """Add a node, fed by `after` where given; returns its index."""
        self.nodes.append(GraphNode(label, role, place, operator))
        self.widths.append(self.width)
        index = len(self.nodes) - 1
        if after is not None:
            self.edges.append((after, index, STREAM))
        return index

    def join(self, source: int, target: int, kind: str = STREAM) -> None:
        """Add an edge; edges of one kind into a node are in no order."""
        self.edges.append((source, target, kind))

    def op(self, item: Any, place: str, role: str, stream: int, width: int) -> int:
        """An operator or a macro behind `stream`; `Identity()` leaves no node."""
        if item.kind == "identity":
            return stream
        if hasattr(item, "sketch"):
            return item.sketch(self, stream, place, width)                              # type: ignore[no-any-return]
        return self.node(operator_label(item), role, place, item, stream)

    def part(self, part: Part, stream: int, place: str, role: str) -> int:
        """A part of the macro at `place`."""
        return self.op(part.item, f"{place}.{part.name}", role, stream, part.width)

    def items(self, items: Iterable[Any], stream: int, place: str, width: int) -> int:
        """Items of a stream one after the other."""
        for index, item in enumerate(items):
            stream = self.op(item, f"{place}.{index}", "mixer", stream, width)
            width = item.out(width, 1)[0]
        return stream

    def looped(self, recursion: Any, stream: int, items: tuple[Any, ...], place: str, width: int) -> int:
        """Items between the two ends of a loop; without the ends where the loop changes nothing."""
        if recursion.is_plain or all(map(is_absent, items)):
            return self.items(items, stream, place, width)
        begin = self.node(operator_label(recursion), "loop", "", recursion, stream)
        end = self.node("loop end", "loop", "", None, self.items(items, begin, place, width))
        self.edges.append((begin, end, LOOP))
        return end

    def sublayer(self, place: str, role: str, norm: Any, operator: Any, stream: int, width: int) -> int:
        """Norm, operator, and the sum with the stream that passes them by."""
        output = self.branch(place, role, norm, operator, stream, width)
        total = self.node("sum", "sum", "", None, output)
        self.edges.append((stream, total, RESIDUAL))
        return total

    def joined(self, place: str, role: str, block: Any, operator: Any, stream: int, width: int) -> int:
        """A sublayer of a block that places its norm, or joins the stream, in a way of its own."""
        def norm(after: int, name: str = "norm") -> int:
            return self.node(operator_label(block.norm), "norm", f"{place}.{name}", block.norm, after)

        y = norm(stream) if block.placement in ("pre", "peri") else stream
        if block.input_scale != 1:
            y = self.node(f"scale({block.input_scale:g})", "scale", "", None, y)
        y = self.op(operator, f"{place}.op", role, y, width)
        if block.placement in ("peri", "out"):
            y = norm(y, "out_norm" if block.placement == "peri" else "norm")
        label = operator_label(block.join)
        total = (self.node("sum", "sum", "", None, y) if label == "Add()" else
                 self.node(label, "sum", f"{place}.join", block.join, y))
        self.edges.append((stream, total, RESIDUAL))
        return norm(total) if block.placement == "post" else total

    def branch(self, place: str, role: str, norm: Any, operator: Any, stream: int, width: int) -> int:
        """Norm and operator without the sum."""
        normed = self.node(operator_label(norm), "norm", f"{place}.norm", norm, stream)
        return self.op(operator, f"{place}.op", role, normed, width)


def to_networkx(graph: ArchitectureGraph) -> nx.MultiDiGraph:
    """As a networkx multigraph.

    Nodes carry `label`, `role`, `place` and `operator`; edges `kind`, `port` and `width`. `port` counts the
    edges into a node. `width` is that of the tensor, None where no activation flows.
    networkx's `is_isomorphic` on `label` and `kind` agrees with equality of hashes.
    """
    import networkx as nx

    result = nx.MultiDiGraph(width=graph.width)
    for index, node in enumerate(graph.nodes):
        result.add_node(index, **node._asdict())
    for source, target, kind in graph.edges:
        flows = kind in (STREAM, RESIDUAL) and graph.nodes[source].role != "input"
        width = (graph.widths[source] if graph.widths else graph.width) if flows else None
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


def shell_label(macro: Macro) -> str:
    """The label of a macro's own node: its parts are nodes of their own."""
    return _label(macro, without=macro.holds)


def _label(operator: Any, without: tuple[str, ...] = ()) -> str:
    parts = []
    for name, is_default in _fields(operator.__class__):
        value = getattr(operator, name)
        if name not in without and not is_default(value):
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
