"""What `bodyplan ops` prints: the table of operators, and the page of one.

Legend: T tokens, D width.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from .space.macros.base import macros
from .space.operator import Operator, Source, operators, tokens_of
from .space.reach import complexity_of, patterns_of, reference_configs, state_growth_of
from .systems import load_operators

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Row", "meanings", "operator_page", "operator_table", "picture", "rows", "rows_to_json"]

SHADES = "·░▒▓█"            # from no influence to the strongest
TOKENS = 24                 # of a picture
LENGTH = (16, 16)           # of a reference: a grid, or as many tokens


@dataclass(frozen=True)
class Row:
    """One operator or macro; complexity and state are those of its defaults, empty for a macro, which has its parts'."""

    name: str
    kind: str
    patterns: tuple[str, ...]
    complexity: str
    state: str
    paper: str
    year: int
    systems: tuple[str, ...]


def rows() -> list[Row]:
    """Every registered operator by class and name, then every macro."""
    load_operators()
    order = ("mixer", "channel", "norm", "residual", "embedding", "head", "identity", "wrapper", "macro")
    found = [_row(name, registry.get(name)) for registry in (operators, macros) for name in registry.names()]
    return sorted(found, key=lambda row: (order.index(row.kind) if row.kind in order else len(order), row.kind, row.name))


def _row(name: str, kind: type[Operator]) -> Row:
    source: Source = kind.source
    made = next(reference_configs(kind), None)
    grows = made is not None and kind.kind in ("mixer", "channel")
    of = kind.kind if isinstance(kind.kind, str) else "wrapper"          # whose kind is that of what it holds
    return Row(name, of, patterns_of(kind), complexity_of(*made) if grows and made else "",
               state_growth_of(*made) if grows and made else "", source.paper, source.year,
               (*source.systems, *source.options))


def rows_to_json() -> str:
    """A JSON list of all rows."""
    return json.dumps([asdict(row) for row in rows()], indent=1)


def operator_table() -> Table:
    """Operator, class, attention patterns, complexity in T, state of decoding, source."""
    from rich.table import Table

    table = Table(title="operators", title_justify="left")
    for heading in ("operator", "class", "patterns", "cost in T", "state", "source"):
        table.add_column(heading, no_wrap=heading == "operator")
    for row in rows():
        table.add_row(row.name, row.kind, ", ".join(row.patterns), row.complexity, row.state, f"{row.paper} ({row.year})")
    return table


# -- one operator ------------------------------------------------------------------------------------------------------

def operator_page(name: str) -> str:
    """Fields, what the operator computes, its costs at a reference size, a picture of its receptive field.

    Raises ValueError with the nearest known name.
    """
    load_operators()
    kind: type[Operator] = macros.get(name) if name in macros.names() else operators.get(name)
    head = f"{name}: {kind.kind}" + "".join(f", {pattern}" for pattern in patterns_of(kind))
    source = f"{kind.source.paper} ({kind.source.year})"
    parts = [head, source, inspect.getdoc(kind) or "", *_module_text(kind), _fields_text(kind)]
    made = next(reference_configs(kind), None) if kind.kind != "macro" else None
    if made is not None:
        parts += [_cost_text(*made), *_picture_text(*made)]
    return "\n\n".join(part for part in parts if part)


def _module_text(kind: type[Operator]) -> Iterator[str]:
    """What the module's own docstring says, where the formula often stands."""
    made = next(reference_configs(kind), None) if kind.kind != "macro" else None
    if made is not None:
        module = type(made[0].build(made[1]))
        yield f"{module.__name__}: {inspect.cleandoc(module.__doc__)}" if module.__doc__ else ""


def _fields_text(kind: type[Operator]) -> str:
    said = meanings(kind)
    lines = [f"  {f.name} = {_default(f)}" + (f"    {said[f.name]}" if f.name in said else "")
             for f in fields(kind)]                                                   # type: ignore[arg-type]
    return "\n".join(["fields, each of which may be a choice:", *lines]) if lines else "no fields"


def meanings(kind: type[Operator]) -> dict[str, str]:
    """What the docstring says of each field: the text behind "field: ", else the sentence that names it in backticks."""
    names = [f.name for f in fields(kind)]                                            # type: ignore[arg-type]
    either = "|".join(map(re.escape, names))
    found: dict[str, str] = {}
    paragraphs = [" ".join(part.split()) for part in (inspect.getdoc(kind) or "").split("\n\n")]
    for text in paragraphs if names else ():
        heads = list(re.finditer(rf"(?<![\w.`])((?:{either})(?:, (?:{either}))*): ", text))
        ends = [*(head.start() for head in heads[1:]), len(text)]
        for head, end in zip(heads, ends, strict=False):
            said = text[head.end():end].strip()
            found |= {name: said for name in head.group(1).split(", ")}
    for name in set(names) - set(found):
        sentence = re.search(rf"[^.]*(?:`{name}\b[^.]*|(?<=\. ){name} [^.]*)\.", " ".join(paragraphs))
        if sentence:
            found[name] = sentence.group(0).strip()
    return found


def _default(field: Field[Any]) -> str:
    if field.default is not MISSING:
        return repr(field.default)
    return repr(field.default_factory()) if field.default_factory is not MISSING else "(needed)"


def _cost_text(config: Operator, width: int) -> str:
    length: Any = LENGTH if config.spatial and config.kind in ("mixer", "channel") else math.prod(LENGTH)
    tokens = tokens_of(length)
    numel = sum(declared.numel for declared in config.axes(width).values())
    lines = [f"with defaults at width {width}, {tokens} tokens:", f"  {numel:,} parameters",
             f"  {config.macs(width, length):,.0f} multiply-adds, growing like {complexity_of(config, width)}"]
    if config.causal and config.streaming:
        lines += [f"  {config.decode_macs(width, tokens):,.0f} multiply-adds for one more token",
                  f"  {config.state_numel(width, tokens):,} numbers of state ({state_growth_of(config, width)})"]
    return "\n".join(lines)


def _picture_text(config: Operator, width: int) -> Iterator[str]:
    if config.kind == "mixer":
        yield (f"which of {TOKENS} inputs (across) move each output (down), by gradient; "
               f"{SHADES[0]} none, {SHADES[-1]} most:\n{picture(config, width)}")


def picture(config: Operator, width: int, tokens: int = TOKENS) -> str:
    """Rows are outputs, columns inputs, or tokens of the memory; shades are steps of a factor of ten."""
    from .testing.reach import reach_by_gradient

    moved = reach_by_gradient(config, width, tokens, "memory" if config.cross else 0).tolist()
    most = max(map(max, moved)) or 1.0
    return "\n".join("  " + "".join(_shade(value / most) for value in row) for row in moved)


def _shade(share: float) -> str:
    if share < 1e-9:
        return SHADES[0]
    return SHADES[max(1, len(SHADES) - 1 + math.ceil(math.log10(share) - 0.5))]
