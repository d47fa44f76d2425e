"""An architecture in words and tables, for the exported file's head, its model card and its configuration."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ..macros.base import Macro
from ..plan import Block
from .facts import is_plain
from .text import LINE_LENGTH

if TYPE_CHECKING:
    from ..architecture import Architecture

__all__ = ["fields_of", "item_config", "layer_rows", "layer_table", "shape_of", "short"]


def fields_of(op: Any, leave_out: Collection[str] = ()) -> dict[str, Any]:
    """A config's fields as JSON values; what is not plain is named by its type or qualified name."""
    return {f.name: _field_value(getattr(op, f.name)) for f in dataclasses.fields(op) if f.name not in leave_out}


def _field_value(value: Any) -> Any:
    if is_plain(value):
        return value
    if isinstance(value, tuple | list):
        return [_field_value(v) for v in value]
    if _is_config(value):
        return {"type": type(value).__name__, **fields_of(value)}
    return getattr(value, "__qualname__", type(value).__name__)


def _is_config(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def short(op: Any, leave_out: Collection[str] = ()) -> str:
    """The config as it would be written, fields at their default left out."""
    shown = []
    for f in dataclasses.fields(op):
        value = getattr(op, f.name)
        default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        if f.name not in leave_out and value != default:
            shown.append(f"{f.name}={_written(value)}")
    return f"{type(op).__name__}({', '.join(shown)})"


def _written(value: Any) -> str:
    if _is_config(value):
        return short(value)
    if isinstance(value, tuple | list) and not is_plain(value):
        return f"({', '.join(map(_written, value))}{',' if len(value) == 1 else ''})"
    return repr(_field_value(value)).replace("'", '"')


def item_config(item: Any, width: int) -> dict[str, Any]:
    """A layer or macro of the body with everything in it, as JSON values."""
    if isinstance(item, Block):
        options = {name: _field_value(value) for name, value in item.options().items()}
        return {**{name: _field_value(op) for name, op in item.sublayers()}, "norm": _field_value(item.norm), **options}
    streams = getattr(item, "streams", ())
    found = {"type": type(item).__name__, **fields_of(item, streams)}
    for name in streams:
        found[name] = [item_config(part.item, part.width) for part in item.parts(width, 1) if part.at[0] == name]
    return found


class Row(NamedTuple):
    """One line of the table of layers: which ones, mixer and channel; a macro has its own line before its parts."""

    numbers: str
    mixer: str
    channel: str


def layer_rows(architecture: Architecture) -> list[Row]:
    """(numbers, mixer, channel) of every run of equal layers; a dash where a sublayer is missing."""
    plan = architecture.plan
    return list(_rows([(str(i), item) for i, item in enumerate(plan.layers)], plan.width))


def _rows(items: Iterable[tuple[str, Any]], width: int) -> Iterator[Row]:
    """Items of one stream by their numbers; equal blocks that follow one another share a row."""
    run: list[Row] = []
    for number, item in items:
        row = _block_row(number, item) if isinstance(item, Block) else None
        if run and (row is None or row[1:] != run[0][1:]):
            yield _joined(run)
            run = []
        if row is not None:
            run.append(row)
        else:
            yield from _macro_rows(number, item, width)
        width = item.out(width, 1)[0]
    if run:
        yield _joined(run)


def _block_row(number: str, block: Block) -> Row:
    named = {name: short(op) for name, op in block.sublayers()}
    options = ", ".join(f"{name}={_written(value)}" for name, value in block.options().items())
    channel = named.get("channel", "-")
    return Row(number, named.get("mixer", "-"), f"{channel}; {options}" if options else channel)


def _joined(run: list[Row]) -> Row:
    first, last = run[0].numbers, run[-1].numbers
    return run[0] if len(run) == 1 else Row(f"{first}-{last.rpartition('.')[2]}", *run[0][1:])


def _macro_rows(number: str, item: Any, width: int) -> Iterator[Row]:
    streams = item.streams if isinstance(item, Macro) else ()
    yield Row(number, short(item, streams), "")
    for name in streams:
        parts = [part for part in item.parts(width, 1) if part.at[0] == name]
        within = f"{number}.{name}" if len(streams) > 1 else number
        yield from _rows([(f"{within}.{i}", part.item) for i, part in enumerate(parts)], parts[0].width if parts else width)


def layer_table(architecture: Architecture) -> list[str]:
    """The layers as aligned plain text, channels under their mixers where both do not fit on a line."""
    rows = [Row("layer", "mixer", "channel"), *layer_rows(architecture)]
    widths = [max(len(row[c]) for row in rows) for c in range(3)]
    if 8 + sum(widths) <= LINE_LENGTH:
        return [f"    {number:<{widths[0]}}  {mixer:<{widths[1]}}  {channel}".rstrip() for number, mixer, channel in rows]
    lines = []
    for number, mixer, channel in rows:
        for head, text in ((number, mixer), ("", channel)):
            lines += textwrap.wrap(text, LINE_LENGTH, initial_indent=f"    {head:<{widths[0]}}  ",
                                   subsequent_indent=" " * (8 + widths[0]))
    return lines


def shape_of(architecture: Architecture) -> str:
    """One sentence: what enters, how deep and wide, how often the body runs, what leaves."""
    plan = architecture.plan
    embed: Any = plan.embed
    head: Any = plan.head
    vocab = getattr(embed, "vocab", None)
    kind = f"A language model over {vocab} tokens" if vocab else f"A model from {short(embed)} to {short(head)}"
    body = _depth_and_width(plan.layers, plan.width)
    if plan.recursion.times > 1:
        body += f" run {plan.recursion.times} times"
        if plan.recursion.lora_rank:
            body += f" with low-rank corrections of rank {plan.recursion.lora_rank}"
    tied = ", output tied to the embedding" if getattr(head, "tied", False) else ""
    return f"{kind}: {body}{tied}."


def _depth_and_width(items: tuple[Any, ...], width: int) -> str:
    """Layers and width; where there are macros, their number and the layers in them."""
    blocks = list(_blocks(items, width))
    widths = {width, *(at for at, _ in blocks)}
    span = f"width {min(widths)}" + (f" to {max(widths)}" if len(widths) > 1 else "")
    if all(isinstance(item, Block) for item in items):
        return f"{_count(len(items), 'layer')} of {span}"
    inside = f" with {_count(len(blocks), 'layer')}" if blocks else ""
    return f"{_count(len(items), 'part')}{inside} of {span}"


def _blocks(items: Iterable[Any], width: int) -> Iterator[tuple[int, Block]]:
    """Every block in a stream with the width that reaches it, those inside macros too."""
    for item in items:
        if isinstance(item, Block):
            yield width, item
        elif isinstance(item, Macro):
            for part in item.parts(width, 1):
                yield from _blocks([part.item], part.width)
        width = item.out(width, 1)[0] if isinstance(item, Macro) else width


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"
