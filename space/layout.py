"""Where weights live: every operator a space can build, with the address its parameters are stored under.

An address names the slot (a position in the body), the candidate operator, and the parameter. Choices nested in an
operator (heads, ratio) do not enter the address, so their sizes share one tensor; sibling candidates do, so they do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from .operator import Operator
from .operators.identity import Identity
from .plan import Block
from .spec import ChoiceNode, Fixed, Node, RecordNode, RepeatNode, SequenceNode, variants

__all__ = ["body_operators", "field_operators", "layers_of", "module_addresses", "walk"]

MAX_VARIANTS = 4096
Found = tuple[str, list[Operator]]


def walk(node: Node) -> Iterator[Node]:
    """The node and everything below it; tied nodes appear wherever they are used."""
    yield node
    children: Iterable[Node] = ()
    if isinstance(node, ChoiceNode):
        children = node.candidates
    elif isinstance(node, (RecordNode, SequenceNode)):
        children = node.parts
    elif isinstance(node, RepeatNode):
        children = (node.times, *node.items)
    for child in children:
        yield from walk(child)


def field_operators(node: Node) -> Iterator[Found]:
    """(address, variants) of the operators at a field that holds one operator or a choice of them."""
    if isinstance(node, ChoiceNode):
        for candidate in node.candidates:
            yield from field_operators(candidate)
    elif isinstance(node, RecordNode):
        yield node.path, list(variants(node, MAX_VARIANTS))
    else:
        assert isinstance(node, Fixed)
        yield node.address[""], [node.value]


def body_operators(node: Node, slot: str = "") -> Iterator[Found]:
    """(address, variants) of every sublayer's operator and norm that some architecture of the body has."""
    if isinstance(node, RepeatNode):
        for i, item in enumerate(node.items):
            yield from body_operators(item, slot or f"{node.path}[{i}]")
    elif isinstance(node, SequenceNode):
        for i, part in enumerate(node.parts):
            yield from body_operators(part, slot if isinstance(part, RepeatNode) else slot or f"{node.path}.{i}")
    elif isinstance(node, ChoiceNode):
        for candidate in node.candidates:
            yield from body_operators(candidate, slot)
    else:
        yield from _block_operators(_parts(node), slot)


def _parts(node: Node) -> dict[str, Node]:
    """The fields of a block, whether or not it has decisions."""
    if isinstance(node, RecordNode):
        return dict(zip(node.names, node.parts, strict=True))
    assert isinstance(node, Fixed) and isinstance(node.value, Block)
    return {name: Fixed(getattr(node.value, name), where) for name, where in node.address.items() if name not in ("", "@")}


def _block_operators(parts: dict[str, Node], slot: str) -> Iterator[Found]:
    for name in ("mixer", "channel"):
        for path, found in field_operators(parts[name]):
            real = [op for op in found if not isinstance(op, Identity)]
            if not real:
                continue
            yield _address(slot, path), real
            for norm_path, norms in field_operators(parts["norm"]):
                yield f"{_address(slot, path)}|{norm_path}", norms


def _address(slot: str, path: str) -> str:
    return path if path.startswith(slot) else f"{slot}~{path}"


def layers_of(resolved: tuple[Any, Any]) -> tuple[list[Block], list[dict[str, Any]]]:
    """The blocks of a resolved body that have a sublayer, in order, with their addresses."""
    value, where = resolved
    blocks = value if isinstance(value, tuple) else (value,)
    places = where if isinstance(value, tuple) else (where,)
    kept = [(b, w) for b, w in zip(blocks, places, strict=True) if not b.is_empty]
    return [b for b, _ in kept], [w for _, w in kept]


def module_addresses(parts: dict[str, tuple[Any, Any]], layers: list[Block],
                     where: list[dict[str, Any]]) -> dict[str, str]:
    """The weight address of every module prefix of the built model, `lora` standing for the recursion's own."""
    found = {name: parts[name][1][""] for name in ("embed", "head", "norm")}
    for i, (block, place) in enumerate(zip(layers, where, strict=True)):
        for name, _ in block.sublayers():
            address = _address(place.get("@", ""), place[name][""])
            found[f"layers.{i}.{name}.op"] = address
            found[f"layers.{i}.{name}.norm"] = f"{address}|{place['norm']['']}"
    found["lora"] = (parts["recursion"][1] or {"": "recursion"})[""]
    return found
