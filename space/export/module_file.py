"""Compose `model.py`: the specialised classes, then one model class with every layer written out."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import nn

from ..model import lora_matrices
from ..operator import Operator
from . import skeleton
from .collect import Collector, import_block
from .describe import layer_table, shape_of
from .facts import PRESENT, is_plain
from .fold import specialise
from .program import Chunk, Instance
from .record import Record, construct, is_own_class, mro
from .render import Call, render
from .sharing import without_sharing
from .text import LINE_LENGTH, Edit, Text, apply

if TYPE_CHECKING:
    from ..architecture import Architecture

__all__ = ["generates", "module_source", "streams"]


def generates(architecture: Architecture) -> bool:
    """Whether the model predicts the next token of a sequence of tokens."""
    return all(op.causal for _, op in architecture.modules)


def streams(architecture: Architecture) -> bool:
    """Whether it decodes token by token with a state."""
    return generates(architecture) and all(op.streaming for _, op in architecture.modules)


def module_source(architecture: Architecture) -> str:
    """The text of `model.py`: runs on torch alone, has this architecture's parts and no others.

    Raises:
        ValueError: an operator's module cannot be written out; the text says which, why and what to do.
    """
    return _Writer(architecture).write()


class _Writer:
    def __init__(self, architecture: Architecture):
        self.architecture, self.plan = architecture, architecture.plan
        self.collector = Collector()
        self.records: dict[int, Record] = {}
        self.built = {prefix: self._construct(op) for prefix, op in architecture.modules}

    def _construct(self, op: Operator) -> nn.Module:
        module, records = construct(lambda: op.build(self.plan.width))
        self.records |= records
        return module

    def write(self) -> str:
        adapted = self.plan.recursion.lora_rank > 0
        self.layer = "AdaptedLayer" if adapted and streams(self.architecture) else "Layer"
        parts = [skeleton.Sublayer, getattr(skeleton, self.layer), *([skeleton.LowRank] if adapted else [])]
        skeletal = [self.collector.add(c) for c in (*parts, skeleton.Model)]
        roots = [self.collector.add(type(m)) for m in self.built.values() if is_own_class(type(m))]
        self._trim()
        self._set_instances()
        self.chunks = specialise(self.collector.chunks, [*dict.fromkeys(roots), *skeletal])
        model = self.chunks.pop("Model")
        model.text = self._with_constructor(model.text)
        definitions = [*self._sections(), model.text.rstrip()]
        used = {n.id for text in definitions for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name)}
        head = [self._docstring(), "from __future__ import annotations", import_block(self.collector.imports, used)]
        return "\n\n".join(head) + "\n\n\n" + "\n\n\n".join(definitions) + "\n"

    # -- what the specialiser is told --------------------------------------------------------------------------------

    def _trim(self) -> None:
        """Take out of the skeleton what this kind of model does not do at all."""
        chunks, unused = self.collector.chunks, {"init_state", "step"}
        if not any(getattr(module[1], "reads_shared", False) for module in self.architecture.modules):
            for chunk in chunks.values():
                chunk.text = chunk.original = without_sharing(chunk.text) if chunk.kind == "class" else chunk.text
        if not streams(self.architecture):
            for name in {"Sublayer", "Layer", "AdaptedLayer", "Model"} & chunks.keys():
                chunks[name].text = _without_methods(chunks[name].text, unused)
        elif not any(hasattr(m, "step") for m in self.built.values()):
            chunks["Sublayer"].text = _without_methods(chunks["Sublayer"].text, unused)
        if not generates(self.architecture):
            model = chunks["Model"]
            model.text = _without_methods(model.text, {"generate"}).replace(
                "Logits of the token after every position, shape (B, T, V).", "What the head makes of the input.")
            if not self.plan.embed.causal:
                model.text = model.text.replace("ids_BT", "pixels_BCHW")

    def _set_instances(self) -> None:
        for record in self.records.values():
            for cls in mro(record.module):
                name = self.collector.name_of(cls)
                if name is not None:
                    arguments = record.arguments.setdefault(cls, {})
                    self.collector.chunks[name].instances.append(Instance(arguments, record.attributes()))
        recursion = self.plan.recursion
        numbers = {"times": recursion.times, "rank": recursion.lora_rank, "tied": self._is_tied(),
                   "streams": streams(self.architecture)}
        self.collector.chunks["Model"].instances.append(Instance(dict(numbers), dict(numbers)))
        self.collector.chunks["Sublayer"].instances.append(Instance({}, {"norm": PRESENT, "op": PRESENT}))
        for layer in self._layer_arguments():
            self.collector.chunks["Layer"].instances.append(Instance(layer, dict(layer)))

    def _is_tied(self) -> bool:
        return bool(getattr(self.plan.head, "tied", False))

    def _layer_arguments(self) -> Iterator[dict[str, Any]]:
        """What each layer's constructor gets; a flag that only matters beside a sublayer follows the others'."""
        common = {}
        for role in ("mixer", "channel"):
            found = [hasattr(m, "step") for p, m in self.built.items() if p.endswith(f".{role}.op")]
            common[role] = bool(found) and max(found)
        for i in range(len(self.plan.layers)):
            arguments: dict[str, Any] = {}
            for role in ("mixer", "channel"):
                op = self.built.get(f"layers.{i}.{role}.op")
                arguments[role] = None if op is None else PRESENT
                arguments[f"{role}_streams"] = common[role] if op is None else hasattr(op, "step")
            yield arguments

    # -- the text ----------------------------------------------------------------------------------------------------

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
            lines.append(f"            {render(self._layer_call(i), 12, 0)},")
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

    def _layer_call(self, index: int) -> Call:
        layer = Call(self.layer)
        kept = _parameters(self.chunks["Layer"])
        given = list(self._layer_arguments())[index]
        for name, default in kept.items():
            prefix = f"layers.{index}.{name}"
            if f"{prefix}.op" in self.built:
                sub = Call("Sublayer", [(None, self._call(f"{prefix}.norm")), (None, self._call(f"{prefix}.op"))])
                layer.arguments.append((name, sub))
            elif not (default is not None and _same_literal(default, given[name])):
                layer.arguments.append((name, repr(given[name])))
        layer.spread = True
        return layer

    def _call(self, prefix: str) -> Call:
        return self._construction(self.records[id(self.built[prefix])], prefix)

    def _construction(self, record: Record, where: str) -> Call:
        cls = type(record.module)
        if not is_own_class(cls):
            return self._torch_construction(record, where)
        name = self.collector.name_of(cls)
        assert name is not None, f"{cls} was not collected"
        owner = next((c for c in mro(record.module) if "__init__" in c.__dict__), cls)
        home = self.collector.name_of(owner)
        if home is None or owner not in record.arguments:
            return Call(name)
        parameters, call = _parameters(self.chunks[home]), Call(name)
        for i, (parameter, value) in enumerate(record.arguments[owner].items()):
            default = parameters.get(parameter)
            if default is not None and _same_literal(default, value):
                continue
            call.arguments.append((None if i == 0 and parameter == "width" else parameter,
                                   self._value(value, f"{parameter} of {cls.__name__} at {where}")))
        return call

    def _torch_construction(self, record: Record, where: str) -> Call:
        cls = type(record.module)
        if getattr(nn, cls.__name__, None) is not cls:
            raise ValueError(f"an exported module is a class of its own or one of torch.nn at {where}: got {cls}; "
                             "wrap it in an nn.Module class of your own")
        defaults = inspect.signature(cls.__init__).parameters
        call = Call(f"nn.{cls.__name__}")
        for parameter, value in record.arguments.get(cls, {}).items():
            known = defaults.get(parameter)
            if known is None or known.kind is inspect.Parameter.VAR_POSITIONAL:
                call.arguments += [(None, self._value(v, where)) for v in value]
            elif known.default is inspect.Parameter.empty or value != known.default:
                call.arguments.append((parameter, self._value(value, f"{parameter} of nn.{cls.__name__} at {where}")))
        return call

    def _value(self, value: Any, what: str) -> Call | str:
        if isinstance(value, nn.Module) and id(value) in self.records:
            return self._construction(self.records[id(value)], what)
        if is_plain(value) or (isinstance(value, list) and is_plain(tuple(value))):
            return repr(value).replace("'", '"') if not isinstance(value, tuple | list) else repr(value)
        raise ValueError(f"a constructor's arguments must be numbers, strings, booleans, None or tuples of these to be "
                         f"written into the exported file: got {type(value).__name__} for {what}; pass plain values")


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(text, LINE_LENGTH, initial_indent=indent, subsequent_indent=indent)


def _parameters(chunk: Chunk) -> dict[str, ast.expr | None]:
    """The parameters that `__init__` has left, with their defaults."""
    from .program import defaults_of, parameters_of

    top = ast.parse(chunk.text).body[0]
    assert isinstance(top, ast.ClassDef)
    init = next((n for n in top.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is None:
        return {}
    defaults = defaults_of(init)
    return {p.arg: defaults.get(p.arg) for p in parameters_of(init, bound=True)}


def _same_literal(default: ast.expr, value: Any) -> bool:
    try:
        literal = ast.literal_eval(default)
    except ValueError:
        return False
    return type(literal) is type(value) and bool(literal == value)


def _without_methods(text: str, names: set[str]) -> str:
    source = Text(text)
    top = source.tree.body[0]
    assert isinstance(top, ast.ClassDef)
    return apply(text, [source.removal(n) for n in top.body if isinstance(n, ast.FunctionDef) and n.name in names])


