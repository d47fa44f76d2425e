"""Networks to look at: a text for terminals, an SVG for pages, and the difference of two.

All three show plain numbers. Fields at None are left out, and floats, booleans and what an operator calls its
options at their default.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from difflib import SequenceMatcher
from html import escape
from typing import TYPE_CHECKING, Any

from .graph import architecture_hash, operator_label
from .macros.base import Macro, as_items

if TYPE_CHECKING:
    from .plan import Block, Plan

__all__ = ["diff_text", "draw_svg", "draw_text"]

Counts = Mapping[str, int] | None
Row = tuple[str, str, str, int | None]              # gutter, first column, second column, parameters
CELL = 60                                           # characters of an operator in a line of text


def draw_text(plan: Plan, parameters: Counts = None) -> str:
    """One line per layer, a bracket around what a recursion repeats.

    Args: plan: the network. parameters: entries per parameter by state_dict name
        (`layers.0.mixer.op.query.weight`); adds a column.
    """
    rows: list[Row] = []
    loops = _recursion_words(plan)
    rows.append(("", f"{_words(plan.embed)} -> width {plan.width}", "", _count(parameters, "embed.")))
    if loops:
        rows.append(("┌", loops, "", _count(parameters, "lora.")))
    for index, item in enumerate(plan.layers):
        rows += _item_rows(item, f"{index:>2} ", f"layers.{index}", plan, parameters, "│" if loops else "")
    if loops:
        rows.append(("└", "", "", None))
    rows.append(("", _words(plan.norm), "", _count(parameters, "norm.")))
    rows.append(("", f"{_words(plan.head)}{_tie_words(plan)}", "", _count(parameters, "head.")))
    if parameters is not None:
        rows.append(("", "parameters", "", sum(parameters.values())))
    return "\n".join(_aligned(rows))


def _item_rows(item: Any, left: str, name: str, plan: Plan, parameters: Counts, gutter: str) -> Iterator[Row]:
    """A block is one line, an operator too; a macro is a line with its parts indented below it."""
    count = _count(parameters, f"{name}.")
    if is_block(item):
        present = dict(item.sublayers())
        mixer, channel = (_cut(_words(present[role]), CELL) if role in present else "-" for role in ("mixer", "channel"))
        yield gutter, left + mixer, channel + _norm_words(item, plan), count
        inside = [part for part in item.parts(plan.width, 1) if isinstance(part.item, Macro)]
        parts = [inner._replace(name=f"{part.name}.{inner.name}") for part in inside
                 for inner in part.item.parts(part.width, part.length)]
    elif isinstance(item, Macro):
        yield gutter, left + _cut(_words(item), CELL), "", count
        parts = item.parts(plan.width, 1)
    else:
        yield gutter, left + _cut(_words(item), CELL), "", count
        return
    for part in parts:
        inner = " " * (len(left) + 1) + f"{part.name.replace('.op.', '.')}: "
        yield from _item_rows(part.item, inner, f"{name}.{part.name}", plan, parameters, gutter)


def _aligned(rows: list[Row]) -> Iterator[str]:
    first = max((len(row[1]) for row in rows if row[2]), default=0) + 3
    second = max(max(len(row[1]) if not row[2] else first + len(row[2]) for row in rows), 24) + 3
    digits = max(len(_number(row[3])) for row in rows)
    for gutter, left, right, count in rows:
        text = f"{left:<{first}}{right}" if right else left
        yield f"{gutter:<2}{text:<{second}}{_number(count):>{digits}}".rstrip()


def diff_text(before: Plan, after: Plan) -> str:
    """What was decided otherwise, a line each; layers are aligned by content, an inserted one is one line."""
    lines: list[str] = []
    if before.width != after.width:
        lines.append(f"width: {before.width} -> {after.width}")
    lines += _changes("embed", before.embed, after.embed)
    lines += _changes("recursion", before.recursion, after.recursion)
    lines += _layer_changes(before.layers, after.layers)
    lines += _changes("norm", before.norm, after.norm)
    lines += _changes("head", before.head, after.head)
    if not lines:
        return "no difference"
    if architecture_hash(before) == architecture_hash(after):
        lines.append("One network: these decisions make no difference to the graph.")
    return "\n".join(lines)


def _layer_changes(before: tuple[Any, ...], after: tuple[Any, ...]) -> Iterator[str]:
    matcher = SequenceMatcher(None, [operator_label(b) for b in before], [operator_label(b) for b in after],
                              autojunk=False)
    for tag, start, stop, new_start, new_stop in matcher.get_opcodes():
        if tag == "equal":
            continue
        paired = min(stop - start, new_stop - new_start)
        for i, j in zip(range(start, start + paired), range(new_start, new_start + paired), strict=True):
            yield from _item_changes(f"layer {i}" if i == j else f"layer {i} (now {j})", before[i], after[j])
        yield from (f"layer {i} removed: {_block_words(before[i])}" for i in range(start + paired, stop))
        yield from (f"layer {j} added: {_block_words(after[j])}" for j in range(new_start + paired, new_stop))


def _item_changes(where: str, before: Any, after: Any) -> Iterator[str]:
    """What differs between two items in one place, down to the parts of macros of one kind."""
    if type(before) is not type(after) or not isinstance(before, Macro):
        yield from _changes(where, before, after)
        return
    for field in fields(before):                                                     # type: ignore[arg-type]
        old, new = getattr(before, field.name), getattr(after, field.name)
        inner = f"{where} {field.name}"
        if field.name not in before.holds:
            if old != new:
                yield f"{where} {type(before).__name__}: {field.name} {_plain(old)} -> {_plain(new)}"
        elif field.name in before.streams:
            yield from (f"{inner} {line}" for line in _layer_changes(as_items(old), as_items(new)))
        elif isinstance(old, (tuple, list)) and isinstance(new, (tuple, list)) and len(old) == len(new):
            for index, (a, b) in enumerate(zip(old, new, strict=True)):
                yield from _item_changes(f"{inner} {index}", a, b)
        else:
            yield from _item_changes(inner, old, new)


def _changes(where: str, before: Any, after: Any) -> Iterator[str]:
    if before is after is None or None not in (before, after) and operator_label(before) == operator_label(after):
        return
    if type(before) is not type(after):
        yield f"{where}: {_words(before)} -> {_words(after)}"
        return
    pairs = ((f.name, getattr(before, f.name), getattr(after, f.name)) for f in fields(before) if f.compare)
    changed = ", ".join(f"{name} {_plain(old)} -> {_plain(new)}" for name, old, new in pairs if old != new)
    yield f"{where} {type(before).__name__}: {changed}"


def is_block(item: Any) -> bool:
    """Whether an item is made of sublayers. By its looks: the class would bring torch along."""
    return hasattr(item, "sublayers")


def _block_words(block: Any) -> str:
    if not is_block(block):
        return _words(block)
    return " + ".join(_words(operator) for _, operator in block.sublayers()) or "empty"


def _norm_words(block: Block, plan: Plan) -> str:
    """The norm of a layer, where it is another than the network's last, and how it meets the stream, where not by a sum."""
    words = "" if operator_label(block.norm) == operator_label(plan.norm) else f", norm {_words(block.norm)}"
    given = block.options()
    words += f", {given['placement']}-norm" if "placement" in given else ""
    words += f", {_words(given['join'])}" if "join" in given else ""
    return words + (f", input x {given['input_scale']:.3g}" if "input_scale" in given else "")


def _tie_words(plan: Plan) -> str:
    return ", tied to the embedding" if getattr(plan.head, "tied", False) else ""


def _recursion_words(plan: Plan) -> str:
    """How often the layers run: empty when once, without per-loop weights."""
    if not plan.layers or (plan.recursion.times == 1 and not plan.recursion.lora_rank):
        return ""
    rank = plan.recursion.lora_rank
    return f"x{plan.recursion.times}" + (f", LoRA rank {rank}" if rank else "")


def _words(operator: Any) -> str:
    if not is_dataclass(operator):
        return _plain(operator)
    numbers = _numbers(operator)
    return f"{type(operator).__name__}({numbers})" if numbers else type(operator).__name__


def _numbers(operator: Any) -> str:
    """The fields worth reading, in the order of the class: `heads=4, window=64`."""
    shown = []
    for field in fields(operator):
        if field.name in getattr(operator, "holds", ()):
            continue
        value = getattr(operator, field.name)
        is_option = isinstance(value, (bool, float)) or field.name in getattr(operator, "options", ())
        is_expected = is_option and value == field.default
        if field.compare and value is not None and not is_expected:
            shown.append(f"{field.name}={_plain(value)}")
    return ", ".join(shown)


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if is_dataclass(value) and not isinstance(value, type):
        return _words(value)
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_plain(entry) for entry in value)}]"
    return str(getattr(value, "__name__", value))


def _cut(words: str, room: int) -> str:
    return words if len(words) <= room else words[:max(room - 1, 0)].rstrip(", ") + "…"


def _count(parameters: Counts, prefix: str) -> int | None:
    if parameters is None:
        return None
    return sum(entries for name, entries in parameters.items() if name.startswith(prefix))


def _number(count: int | None) -> str:
    return "" if count is None else f"{count:,}"


# SVG, left to right: layer number, the residual stream as a vertical line, operators as boxes, the loop.

MARGIN, BRACKET = 24, 88
STREAM_X, BOX_X, BOX_END = 92, 132, 596
BOX, ROW, GAP, INDENT = 32, 42, 12, 16
INK, FAINT, LINE, PAPER, PANEL = "#1c2430", "#5b6675", "#8a94a3", "#ffffff", "#f5f6f8"
CHARACTER = 7.2                                     # advance of 12 px text in a wide font, to cut in time

COLOURS = {                                         # stroke, fill: hues of Okabe and Ito
    "Attention": ("#0072b2", "#e3f0f9"),
    "GatedDeltaNet": ("#00855f", "#def3ec"),
    "Mamba2": ("#c65200", "#fcebdf"),
    "ShortConv": ("#a67c00", "#fbf3d5"),
    "Hyena": ("#a8467f", "#f8e6f0"),
}
MORE_COLOURS = (("#332288", "#e8e5f6"), ("#882255", "#f5e3ec"), ("#5f6b00", "#f0f2d8"),
                ("#8a3a2a", "#f7e5e1"))
CHANNEL_COLOUR = ("#66707f", "#eef0f3")
END_COLOUR = ("#39424f", "#ffffff")


def draw_svg(plan: Plan, parameters: Counts = None, title: str = "") -> str:
    """A self-contained SVG of at most 720 px: boxes beside the residual stream, a bracket around a recursion.

    Args:
        plan: the network.
        parameters: entries per parameter by state_dict name, as for `draw_text`.
        title: the heading; by default depth, width and the number of parameters.
    """
    return "\n".join(_Sheet(plan, parameters, title).lines())


class _Sheet:
    """Collects elements from top to bottom; `y` is where the next one goes."""

    def __init__(self, plan: Plan, parameters: Counts, title: str):
        self.plan, self.parameters = plan, parameters
        self.title = title or self._summary()
        self.loops = _recursion_words(plan)
        self.width = BOX_END + 12 + MARGIN + (BRACKET if self.loops else 0)
        self.under: list[str] = []                  # panels and the stream, below the boxes
        self.over: list[str] = []
        self.y: float = MARGIN

    def lines(self) -> list[str]:
        self._heading()
        start = self.y + BOX
        self._box(MARGIN, self.plan.embed, "embed.", END_COLOUR, f"width={self.plan.width}")
        self.y += BOX + 16
        self._layers()
        tie = _tie_words(self.plan).removeprefix(", ")
        for prefix, operator, more in (("norm.", self.plan.norm, ""), ("head.", self.plan.head, tie)):
            self._arrow(STREAM_X, self.y)
            self._box(MARGIN, operator, prefix, END_COLOUR, more)
            self.y += BOX + 16
        end = self.y - BOX - 20
        self.under.append(f'<path d="M{STREAM_X} {start}V{end}" stroke="{INK}" stroke-width="2"/>')
        self._legend()
        label = escape(self.title, quote=True)
        return [f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.y}" '
                f'viewBox="0 0 {self.width} {self.y}" role="img" aria-label="{label}" fill="none" '
                'font-size="12" font-family="system-ui, -apple-system, Helvetica, Arial, sans-serif">',
                f"<title>{label}</title>", f'<rect width="{self.width}" height="{self.y}" fill="{PAPER}"/>',
                *self.under, *self.over, "</svg>"]

    def _summary(self) -> str:
        depth = len(self.plan.layers)
        total = "" if self.parameters is None else f", {sum(self.parameters.values()):,} parameters"
        return f"{depth} layer{'' if depth == 1 else 's'}, width {self.plan.width}{total}"

    def _heading(self) -> None:
        self._text(MARGIN, self.y + 14, self.title, size=16, weight=600)
        self._text(BOX_END + 12, self.y + 14, architecture_hash(self.plan)[:8], fill=FAINT, anchor="end",
                   family="ui-monospace, Menlo, Consolas, monospace")
        self.y += 34

    def _layers(self) -> None:
        top = self.y
        for index, item in enumerate(self.plan.layers):
            self._item(item, str(index), f"layers.{index}", 0)
        if self.loops and self.y > top:
            self._bracket(top, self.y - 8)
        self.y += GAP

    def _item(self, item: Any, title: str, name: str, depth: int) -> None:
        """A panel for a block; for a macro a line with its parts below it, further in."""
        if is_block(item):
            self._block(item, title, name, depth)
            return
        self._label(title, _words(item), name, depth)
        for part in item.parts(self.plan.width, 1) if isinstance(item, Macro) else ():
            self._item(part.item, part.name.rpartition(".")[2], f"{name}.{part.name}", depth + 1)

    def _label(self, title: str, words: str, name: str, depth: int) -> None:
        x = BOX_X + INDENT * depth
        self._text(MARGIN + 12, self.y + 15, "·" * depth + title, fill=FAINT, weight=600)
        self._text(x, self.y + 15, _cut(words, int((BOX_END - x - 60) / CHARACTER)), weight=600)
        self._text(BOX_END - 10, self.y + 15, _number(_count(self.parameters, f"{name}.")), fill=FAINT, anchor="end")
        self.y += 26

    def _block(self, block: Block, title: str, name: str, depth: int) -> None:
        rows = block.sublayers()
        if not rows:
            return
        height = len(rows) * ROW + 2
        self.under.append(f'<rect x="{MARGIN}" y="{self.y}" width="{BOX_END + 12 - MARGIN}" '
                          f'height="{height}" rx="8" fill="{PANEL}"/>')
        self._text(MARGIN + 12, self.y + height / 2 + 4, "·" * depth + title, fill=FAINT, weight=600)
        for row, (role, operator) in enumerate(rows):
            self._sublayer(self.y + 6 + row * ROW, f"{name}.{role}.", role, operator, block)
        self.y += height + 8
        for role, operator in rows:
            if isinstance(operator, Macro):
                for part in operator.parts(self.plan.width, 1):
                    self._item(part.item, part.name.rpartition(".")[2], f"{name}.{role}.op.{part.name}", depth + 1)

    def _sublayer(self, y: float, prefix: str, role: str, operator: Any, block: Block) -> None:
        enter, leave = y + 9, y + BOX - 8
        self.over.append(f'<path d="M{STREAM_X} {enter}H{BOX_X - 6}M{BOX_X} {leave}H{STREAM_X + 13}" '
                         f'stroke="{LINE}" stroke-width="1.5"/>')
        self.over.append(f'<path d="M{BOX_X - 7} {enter - 4}l7 4l-7 4z" fill="{LINE}"/>'
                         f'<path d="M{STREAM_X + 14} {leave - 4}l-7 4l7 4z" fill="{LINE}"/>'
                         f'<circle cx="{STREAM_X + 16}" cy="{enter}" r="3.5" fill="{INK}"/>')
        self._sum(STREAM_X, leave)
        held, self.y = self.y, y
        is_channel = "channel" in (role, getattr(operator, "kind", role))
        colour = CHANNEL_COLOUR if is_channel else _mixer_colour(operator)
        self._box(BOX_X, operator, prefix, colour, _norm_words(block, self.plan).removeprefix(", "))
        self.y = held

    def _box(self, x: int, operator: Any, prefix: str, colour: tuple[str, str], more: str = "") -> None:
        stroke, fill = colour
        name, count = type(operator).__name__, _number(_count(self.parameters, prefix))
        details = ", ".join(part for part in (_numbers(operator), more) if part)
        room = int((BOX_END - x - 32 - len(name) * 8 - len(count) * 7.5) / CHARACTER)
        full = escape(f"{name}({details})" if details else name)
        self.over.append(
            f'<g><title>{full}</title><rect x="{x}" y="{self.y}" width="{BOX_END - x}" height="{BOX}" rx="5" '
            f'fill="{fill}" stroke="{stroke}"/><rect x="{x}" y="{self.y + 5}" width="4" height="{BOX - 10}" '
            f'fill="{stroke}"/><text x="{x + 14}" y="{self.y + 20.5}" fill="{INK}"><tspan font-size="13" '
            f'font-weight="600">{escape(name)}</tspan><tspan dx="10">{escape(_cut(details, room))}'
            '</tspan></text></g>')
        if count:
            self._text(BOX_END - 10, self.y + 20.5, count, fill=FAINT, anchor="end")

    def _bracket(self, top: float, bottom: float) -> None:
        x, middle = BOX_END + 24, (top + bottom) / 2
        self.over.append(f'<path d="M{x} {top + 2}h8q6 0 6 6V{bottom - 8}q0 6-6 6h-8" stroke="{INK}" '
                         'stroke-width="2"/>'
                         f'<path d="M{x} {top - 2}l-8 4l8 4z" fill="{INK}"/>')
        times, _, lora = self.loops.partition(", ")
        self._text(x + 24, middle + 4, times.replace("x", "×"), size=18, weight=600)
        self._text(x + 24, middle + 20, lora, size=11, fill=FAINT)
        if lora and self.parameters is not None:
            self._text(x + 24, middle + 35, _number(_count(self.parameters, "lora.")), size=11, fill=FAINT)

    def _sum(self, x: int, y: float) -> None:
        self.over.append(f'<circle cx="{x}" cy="{y}" r="7" fill="{PAPER}" stroke="{INK}" stroke-width="1.5"/>'
                         f'<path d="M{x - 4} {y}h8M{x} {y - 4}v8" stroke="{INK}" stroke-width="1.5"/>')

    def _arrow(self, x: int, y: float) -> None:
        self.over.append(f'<path d="M{x - 4.5} {y - 8}l4.5 8l4.5-8z" fill="{INK}"/>')

    def _legend(self) -> None:
        y = self.y + 4
        self.over.append(f'<circle cx="{MARGIN + 6}" cy="{y}" r="3.5" fill="{INK}"/>')
        norm = f"{type(self.plan.norm).__name__} before the operator"
        self._text(MARGIN + 18, y + 4, norm, size=11, fill=FAINT)
        self._sum(MARGIN + 216, y)
        self._text(MARGIN + 230, y + 4, "sum with the residual stream", size=11, fill=FAINT)
        if self.parameters is not None:
            self._text(BOX_END - 10, y + 4, "parameters", size=11, fill=FAINT, anchor="end")
        self.y += 4 + MARGIN

    def _text(self, x: float, y: float, words: str, *, size: int = 12, weight: int = 400, fill: str = INK,
              anchor: str = "start", family: str = "") -> None:
        font = f' font-family="{family}"' if family else ""
        self.over.append(f'<text x="{x:g}" y="{y:g}" font-size="{size}" font-weight="{weight}" fill="{fill}" '
                         f'text-anchor="{anchor}"{font}>{escape(words)}</text>')


def _mixer_colour(operator: Any) -> tuple[str, str]:
    """The shipped mixers have their hue; any other takes one by its name, the same in every drawing."""
    name = type(operator).__name__
    digest = hashlib.sha256(name.encode()).digest()[0]
    return COLOURS.get(name) or MORE_COLOURS[digest % len(MORE_COLOURS)]
