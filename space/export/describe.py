"""An architecture in words and tables, for the exported file's head and its model card."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from .facts import is_plain
from .text import LINE_LENGTH

if TYPE_CHECKING:
    from ..architecture import Architecture

__all__ = ["fields_of", "layer_rows", "layer_table", "short", "shape_of"]


def fields_of(op: Any) -> dict[str, Any]:
    """A config's fields as JSON values; what is not plain is named by its type or qualified name."""
    found = {}
    for f in dataclasses.fields(op):
        value = getattr(op, f.name)
        found[f.name] = value if is_plain(value) else getattr(value, "__qualname__", type(value).__name__)
    return found


def short(op: Any) -> str:
    """The config as it would be written, fields at their default left out."""
    shown = []
    for f in dataclasses.fields(op):
        value = fields_of(op)[f.name]
        if value != f.default:
            shown.append(f"{f.name}={value!r}".replace("'", '"'))
    return f"{type(op).__name__}({', '.join(shown)})"


def layer_rows(architecture: Architecture) -> list[tuple[str, str, str]]:
    """(numbers, mixer, channel) of every run of equal layers; a dash where a sublayer is missing."""
    rows: list[tuple[int, int, str, str]] = []
    for i, block in enumerate(architecture.plan.layers):
        named = {name: short(op) for name, op in block.sublayers()}
        row = (i, i, named.get("mixer", "-"), named.get("channel", "-"))
        if rows and rows[-1][2:] == row[2:]:
            rows[-1] = (rows[-1][0], i, *row[2:])
        else:
            rows.append(row)
    return [(str(a) if a == b else f"{a}-{b}", mixer, channel) for a, b, mixer, channel in rows]


def layer_table(architecture: Architecture) -> list[str]:
    """The layers as aligned plain text, channels under their mixers where both do not fit on a line."""
    rows = [("layer", "mixer", "channel"), *layer_rows(architecture)]
    widths = [max(len(row[c]) for row in rows) for c in range(3)]
    if 8 + sum(widths) <= LINE_LENGTH:
        return [f"    {number:<{widths[0]}}  {mixer:<{widths[1]}}  {channel}" for number, mixer, channel in rows]
    return [line for number, mixer, channel in rows
            for line in (f"    {number:<{widths[0]}}  {mixer}", f"    {'':<{widths[0]}}  {channel}")]


def shape_of(architecture: Architecture) -> str:
    """One sentence: what enters, how deep and wide, how often the body runs, what leaves."""
    plan = architecture.plan
    embed: Any = plan.embed
    head: Any = plan.head
    count = len(plan.layers)
    vocab = getattr(embed, "vocab", None)
    kind = f"A language model over {vocab} tokens" if vocab else f"A model from {short(embed)} to {short(head)}"
    body = f"{count} layer{'s' if count != 1 else ''} of width {plan.width}"
    if plan.recursion.times > 1:
        body += f" run {plan.recursion.times} times"
        if plan.recursion.lora_rank:
            body += f" with low-rank corrections of rank {plan.recursion.lora_rank}"
    tied = ", output tied to the embedding" if getattr(head, "tied", False) else ""
    return f"{kind}: {body}{tied}."
