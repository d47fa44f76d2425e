"""A motif found small, carried to a larger model: more layers of the same kind, a wider stream, heads of the same size.

The layers of a found architecture are its motif. Depth repeats it, as a whole or layer by layer; width multiplies the
number of heads, so that everything a head does (its size, its state, its window) stays as it was found. Composer (Acun
et al., 2025) searches hybrid orders at millions of parameters and carries them to billions by stacking and stretching;
progressive stacking (Gong et al., 2019) and depth up-scaling (Kim et al., 2023) repeat layers of trained models.
How weights start and learn at the new size is in `mup`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from fractions import Fraction
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ..macros.base import Macro

if TYPE_CHECKING:
    from ..architecture import Architecture

__all__ = ["PATTERNS", "SCALED_FIELDS", "layer_order", "scale", "widened"]

PATTERNS = ("stack", "stretch")
SCALED_FIELDS = ("heads", "kv_heads", "width")      # numbers that grow with the stream; all others stay as found


def scale(architecture: Architecture, width: int | None = None, depth: int | None = None,
          pattern: str = "stack") -> Architecture:
    """`architecture` at another width and number of layers, as the one member of a space of its own.

    Width: `heads`, `kv_heads` and the `width` of stages grow with the stream, so every head keeps its size; what is a
    ratio of the width grows by itself; sizes of states, windows, kernels, groups and ranks stay. Depth counts layers (a
    recursion's iterations do not count): see `layer_order`. Where layers sit inside stages or loops, every such run of
    layers grows in proportion, and must come out whole.

    Args:
        width: of the stream; None keeps it.
        depth: number of layers; None keeps it.
        pattern: "stack" repeats the sequence of layers, "stretch" repeats every layer in place.

    Raises:
        ValueError: a number that is not a positive int, an unknown pattern, heads that do not come out whole, a depth
            that divides a nested run of layers, or sizes that an operator refuses.
    """
    from ..genome import Genome
    from ..space import Space

    if pattern not in PATTERNS:
        raise ValueError(f"pattern is 'stack' or 'stretch': got {pattern!r}")
    plan = architecture.plan
    width, factor = _factor("width", width, plan.width)
    layers: tuple[Any, ...] = tuple(plan.layers)
    if not layers:
        raise ValueError("only layers can be scaled: this architecture has none; choose one with at least one layer")
    if depth is not None:
        layers = _deepened(layers, depth, pattern)
    if factor != 1:
        layers = tuple(widened(layer, factor, f"layers[{i}]") for i, layer in enumerate(layers))
    space = Space(embed=plan.embed, width=width, body=layers, head=plan.head, recursion=plan.recursion, norm=plan.norm)
    return space.architecture(Genome({}))


def layer_order(layers: int, depth: int, pattern: str) -> list[int]:
    """Which of `layers` layers stands at each of `depth` positions.

    stack: position i takes layer i mod layers; the last repetition is cut off where depth ends. stretch: position i
    takes layer floor(i * layers / depth), so the repetitions of two layers differ by one at most. A smaller depth
    keeps the first layers (stack) or evenly spaced ones (stretch).

    >>> layer_order(3, 7, "stack"), layer_order(3, 7, "stretch")
    ([0, 1, 2, 0, 1, 2, 0], [0, 0, 0, 1, 1, 2, 2])
    """
    if pattern == "stack":
        return [i % layers for i in range(depth)]
    return [i * layers // depth for i in range(depth)]


def widened(item: Any, factor: Fraction, where: str) -> Any:
    """An operator, block or macro with the fields that grow with the width times `factor`, parts included.

    Raises ValueError where a number of heads does not come out whole.
    """
    if isinstance(item, (tuple, list)):
        return tuple(widened(part, factor, f"{where}[{i}]") for i, part in enumerate(item))
    if not is_dataclass(item) or isinstance(item, type):
        return item
    changed = {}
    for field in fields(item):
        value = getattr(item, field.name)
        if field.name in SCALED_FIELDS and isinstance(value, int):
            changed[field.name] = _whole(value, factor, f"{where}.{field.name}")
        elif field.init:
            changed[field.name] = widened(value, factor, f"{where}.{field.name}")
    return replace(item, **{name: value for name, value in changed.items() if value != getattr(item, name)})


def _factor(name: str, wanted: int | None, now: int) -> tuple[int, Fraction]:
    if wanted is None:
        return now, Fraction(1)
    if not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 1:
        raise ValueError(f"{name} must be a positive int: got {wanted!r}")
    return wanted, Fraction(wanted, now)


def _whole(value: int, factor: Fraction, where: str) -> int:
    grown = value * factor
    if grown.denominator != 1:
        raise ValueError(f"heads keep their size when the width grows, so their number must come out whole at {where}: "
                         f"got {value} times {factor}; use a width that is a multiple of 1/{value} of the present one")
    return int(grown)


def _deepened(layers: tuple[Any, ...], depth: int, pattern: str) -> tuple[Any, ...]:
    """The layers at their new number: in one run at the top, or every nested run in proportion."""
    _, factor = _factor("depth", depth, sum(_num_layers(layer) for layer in layers))
    if any(_runs(layer) for layer in layers):
        return _grown(layers, factor, pattern, "layers")
    return tuple(layers[i] for i in layer_order(len(layers), depth, pattern))


def _runs(item: Any) -> list[str]:
    """The fields of a macro that hold layers one after another."""
    return [name for name in item.streams if _items(getattr(item, name))] if isinstance(item, Macro) else []


def _items(held: Any) -> Sequence[Any]:
    return held if isinstance(held, (tuple, list)) else (held,)


def _num_layers(item: Any) -> int:
    runs = _runs(item)
    return sum(_num_layers(part) for name in runs for part in _items(getattr(item, name))) if runs else 1


def _grown(items: Sequence[Any], factor: Fraction, pattern: str, where: str) -> tuple[Any, ...]:
    made: list[Any] = []
    for nested, group in groupby(items, key=lambda item: bool(_runs(item))):
        run = list(group)
        made += [_inside(item, factor, pattern, where) for item in run] if nested else _run(run, factor, pattern, where)
    return tuple(made)


def _inside(item: Any, factor: Fraction, pattern: str, where: str) -> Any:
    grown = {name: _grown(_items(getattr(item, name)), factor, pattern, f"{where}.{type(item).__name__}.{name}")
             for name in _runs(item)}
    return replace(item, **grown)


def _run(items: list[Any], factor: Fraction, pattern: str, where: str) -> list[Any]:
    depth = len(items) * factor
    if depth.denominator != 1:
        raise ValueError(f"every run of layers grows by the same factor and must come out whole at {where}: got "
                         f"{len(items)} layers times {factor}; use a multiple of the present depth")
    return [items[i] for i in layer_order(len(items), int(depth), pattern)]
