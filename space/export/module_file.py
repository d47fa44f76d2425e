"""Compose `model.py`: the specialised classes, then one model class with every layer written out."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..model import lora_matrices
from .built import Built
from .calls import Calls
from .collect import import_block
from .definitions import definitions
from .describe import layer_table, shape_of
from .render import Call, render
from .text import LINE_LENGTH, Edit, Text, apply

if TYPE_CHECKING:
    from ..architecture import Architecture

__all__ = ["generates", "has_source", "module_source", "streams"]

SPREAD = ("Layer", "AdaptedLayer")


def generates(architecture: Architecture) -> bool:
    """Whether the model predicts the next token of a sequence of tokens."""
    return all(place.operator.causal for place in architecture.placed if place.decodes)


def streams(architecture: Architecture) -> bool:
    """Whether it decodes token by token with a state."""
    return generates(architecture) and all(place.operator.streaming for place in architecture.placed if place.decodes)


def has_source(architecture: Architecture) -> bool:
    """Whether it takes a second input, which an encoder or prompted layers read."""
    return any(getattr(op, "reads_source", False) for _, op in architecture.modules)


def module_source(architecture: Architecture) -> str:
    """The text of `model.py`: runs on torch alone, has this architecture's parts and no others.

    Raises:
        ValueError: an operator's module cannot be written out; the text says which, why and what to do.
    """
    return _Writer(architecture).write()


class _Writer:
    def __init__(self, architecture: Architecture):
        self.architecture, self.plan = architecture, architecture.plan
        self.built = Built(architecture, streams=streams(architecture))
        self.definitions = definitions(self.built, generates=generates(architecture), streams=streams(architecture))
        self.chunks, self.collector = self.definitions.chunks, self.definitions.collector
        self.calls = Calls(self.chunks, self.built.records, self.collector.name_of, self.definitions.given, SPREAD)

    def write(self) -> str:
        model = self.chunks.pop("Model")
        model.text = self._with_constructor(model.text)
        definitions = [*self._sections(), model.text.rstrip()]
        used = {n.id for text in definitions for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name)}
        head = [self._docstring(), "from __future__ import annotations", import_block(self.collector.imports, used)]
        return "\n\n".join(head) + "\n\n\n" + "\n\n\n".join(definitions) + "\n"

    def _sections(self) -> Iterator[str]:
        """Every definition, the first of each source file under its legend; constants stand together."""
        explained: set[str] = set()
        for chunk in self.chunks.values():
            legend = "" if chunk.legend in explained else chunk.legend
            explained.add(chunk.legend)
            lines = [f"# {line}" for line in textwrap.wrap(legend, LINE_LENGTH - 2)]
            yield "\n".join([*lines, *([""] if lines and chunk.kind != "constant" else []), chunk.text.strip("\n")])

    def _docstring(self) -> str:
        cost = self.architecture.cost()
        numbers = (f"{cost.parameters:,} parameters, {cost.macs / cost.length:,.0f} multiply-adds per token at "
                   f"{cost.length} tokens. Plain PyTorch; weights in model.safetensors.")
        paragraphs = [_filled(f'"""{shape_of(self.architecture)}'), _filled(numbers),
                      "\n".join(layer_table(self.architecture)) + '\n"""']
        return "\n\n".join(paragraphs)

    def _with_constructor(self, text: str) -> str:
        """The model class with its `__init__` written out layer by layer."""
        source = Text(text)
        top = source.tree.body[0]
        assert isinstance(top, ast.ClassDef)
        init = next(n for n in top.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
        kept = [a.arg for a in init.args.args[1:]]
        lines = ["    def __init__(self):", "        super().__init__()"]
        lines += [f"        self.{name} = {getattr(self.plan.recursion, name)}" for name in kept]
        lines += self._members()
        sentence = _filled(f'"""{shape_of(self.architecture)}"""', "    ").lstrip()
        return apply(text, [Edit(*source.span(top.body[0]), sentence),
                            Edit(source.starts[init.lineno - 1], source.starts[init.end_lineno or 0],
                                 "\n".join(lines) + "\n")])

    def _members(self) -> list[str]:
        lines = [f"        self.embed = {render(self._call('embed'), 8, 21)}", "        self.layers = nn.ModuleList(["]
        for i in range(len(self.plan.layers)):
            lines.append(f"            {render(self._call(f'layers.{i}'), 12, 0)},")
        lines.append("        ])")
        lines += [f"        self.{name} = {render(self._call(name), 8, 16)}" for name in ("norm", "head")]
        if self.plan.recursion.lora_rank:
            times, rank = self.plan.recursion.times, self.plan.recursion.lora_rank
            lines.append("        self.lora = nn.ModuleDict({")
            for name, matrix in lora_matrices(self.plan):
                rows, columns = matrix.shape
                lines += [f'            "{name.replace(".", "_")}": '
                          f"LowRank(times={times}, rank={rank}, rows={rows}, columns={columns}),"]
            lines.append("        })")
        return lines

    def _call(self, part: str) -> Call:
        return self.calls.of(self.built.parts[part], part)


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(text, LINE_LENGTH, initial_indent=indent, subsequent_indent=indent)
