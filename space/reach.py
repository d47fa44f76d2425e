"""How far an operator reaches, and how its costs grow with the number of tokens T.

What an operator declares counts; where it declares nothing, the answer follows from `causal`, `cross` and its formulas.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from typing import Any

from .operator import Length, Operator

__all__ = ["PATTERNS", "complexity_of", "growth", "growth_in", "patterns_of", "reference_configs", "state_growth_of"]

PATTERNS = ("causal self", "noncausal self", "causal cross", "noncausal cross")
SIDES = (128, 256, 512)                 # of square grids; sequences have as many tokens, so that windows are behind us
WIDTHS = (64, 96, 128, 256)
NEEDED = {"vocab": 256, "classes": 10, "rank": 8, "ratio": 2, "heads": 4, "kernel": 3, "size": 3, "experts": 4}


def patterns_of(operator: Operator | type[Operator]) -> tuple[str, ...]:
    """The attention patterns an operator supports over all its options, in the order of `PATTERNS`; () for those that
    mix no tokens. Declared `patterns` count, else what `causal` and `cross` say; around another operator, that one's."""
    inside = getattr(operator, "op", None)
    if isinstance(inside, Operator):
        return patterns_of(inside)
    kind = operator if isinstance(operator, type) else type(operator)
    if kind.patterns is not None:
        return tuple(sorted(kind.patterns, key=PATTERNS.index))
    if kind.kind != "mixer":
        return ()
    ways = ("causal", "noncausal") if _is_open(kind, "causal") else ("causal",) if kind.causal else ("noncausal",)
    if _is_open(kind, "cross"):
        return PATTERNS if len(ways) == 2 else (f"{ways[0]} self", f"{ways[0]} cross")
    return tuple(f"{way} {'cross' if kind.cross else 'self'}" for way in ways)


def complexity_of(config: Operator, width: int) -> str:
    """How the multiply-adds of a sequence grow with its tokens T: "T", "T w" (a window of w), "T log T", "T^2", ..."""
    if config.complexity is not None:
        return config.complexity
    found = growth(lambda length: config.macs(width, length), _lengths(config))       # type: ignore[arg-type]
    return "T w" if found == "T" and getattr(config, "window", None) is not None else found


def state_growth_of(config: Operator, width: int) -> str:
    """What one sequence's decode state is as T grows: "none", "constant", "window" (grows until the window is full), "T" or
    what else it grows like; "no decode" for an operator that sees the whole sequence."""
    if config.state_growth is not None:
        return config.state_growth
    if not (config.causal and config.streaming):
        return "no decode"
    first, _, *later = sizes = [config.state_numel(width, length) for length in (1, 2, *map(_square, SIDES))]
    if not any(sizes):
        return "none"
    if len(set(later)) == 1:
        return "constant" if first == later[0] else "window"
    return growth(lambda length: float(config.state_numel(width, length) * length)).replace("T^2", "T")


def growth(cost: Callable[[Any], float], lengths: tuple[Length, ...] = ()) -> str:
    """The class of a cost over a number of tokens: "T", "T log T", "T sqrt T", "T^2", or "T^x" with the exponent found.

    Reads it off cost / T at three lengths, each four times the one before: differences that repeat are a logarithm,
    differences that double a square root, and so on, whatever linear terms stand beside them.
    """
    per_token = [cost(length) / _tokens(length) for length in lengths or tuple(map(_square, SIDES))]
    first, second = per_token[1] - per_token[0], per_token[2] - per_token[1]
    if not any(per_token) or second <= 2e-3 * abs(per_token[1]):
        return "T"
    power = math.log(max(second / first, 1.0), 4) if first > 0 else 1.0
    if power < 0.15:
        return "T log T"
    exponent = 1 + round(power, 1)
    return {1.5: "T sqrt T", 2.0: "T^2", 3.0: "T^3"}.get(exponent, f"T^{exponent:g}")


def growth_in(declared: str) -> str:
    """The growth with T alone that a declared complexity names: "T (w + g)" grows like "T".

    Raises ValueError for text that does not begin with "T".
    """
    found = re.match(r"T(\^[\d.]+| log T| sqrt T)?(?![A-Za-z])", declared)
    if found is None:
        raise ValueError(f'a complexity begins with T, "T log T", "T sqrt T" or "T^2", then other symbols: got {declared!r}')
    return found.group(0)


def reference_configs(kind: type[Operator]) -> Iterator[tuple[Operator, int]]:
    """(config, width) pairs at which an operator can be built with defaults: the first that `check` accepts at each width.

    Fields without a default get small usual values; an operator that needs others has none.
    """
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]  # type: ignore[arg-type]
    if not set(needed) <= set(NEEDED):
        return
    for width in WIDTHS:
        try:
            config = kind(**{name: NEEDED[name] for name in needed})
            config.check(width, "reference")
        except (TypeError, ValueError):
            continue
        yield config, width


def _is_open(kind: type[Operator], name: str) -> bool:
    """Whether a class leaves an attribute to its instances."""
    return not isinstance(getattr(kind, name), bool) or any(f.name == name for f in fields(kind))   # type: ignore[arg-type]


def _lengths(config: Operator) -> tuple[Length, ...]:
    is_grid = config.spatial and config.kind in ("mixer", "channel")
    return tuple((side, side) if is_grid else _square(side) for side in SIDES)


def _square(side: int) -> int:
    return side * side


def _tokens(length: Length) -> int:
    return length if isinstance(length, int) else length[0] * length[1]
