"""How parts are run, written out: calls of `space/macros/running.py` become calls of the parts themselves.

`as_sequence(part, x, spatial, shared)` is `part(x)` where the stream is no grid and nothing is handed on, and
`step_part(part, x, state, spatial, shared)` is `part.step(x, state)` where all parts have a state. Where that does not
hold for every part at a place, a function of `running` decides at run time.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

from .program import bind
from .text import Edit, Text, apply, nodes, parsed

__all__ = ["RUNNING", "Parts", "inlined", "of_rank"]

SIGNATURES = {"as_sequence": "part, x, spatial, shared=None", "change": "part, x, shared=None",
              "step_part": "part, x, state, spatial, shared=None", "step_change": "part, x, state, shared=None",
              "initial_state": "part, batch, dtype, device", "units_of": "layer", "as_grid": "x", "handed": "layer, shared"}
RUNNING = tuple(SIGNATURES)
RANKED = ("macros.stage", "macros.ushape", "operators.spatial", "operators.ada_norm", "macros.conditioned",
          "macros.separable")


@dataclass(frozen=True)
class Parts:
    """What is known of the modules that classes of the file run.

    grid: whether the stream is one. shares: whether a module takes what layers hand on. block: the class whose children
    are units. blocks: the classes that keys and values are for. held: for each class its instances, as built here; given:
    for other definitions the parts they run. asked: classes whose `step` is asked for only where their part has one.
    marked: filled with the classes of parts that are asked at run time whether they take what is handed on.
    """

    grid: bool
    shares: Callable[[nn.Module], bool]
    block: type
    blocks: tuple[type, ...]
    held: Mapping[str, list[nn.Module]] = field(default_factory=dict)
    given: Mapping[str, list[nn.Module]] = field(default_factory=dict)
    asked: Collection[str] = ()
    marked: set[type] = field(default_factory=set)

    def at(self, owner: str, function: ast.FunctionDef, part: ast.expr) -> list[nn.Module]:
        """Every module that `part`, an expression in a function of `owner`, may stand for; none where that is not known."""
        if owner in self.given:
            return self.given[owner]
        read = _attributes(part) | {a for source in _sources(function, part) for a in _attributes(source)}
        found = []
        for module in self.held.get(owner, ()):
            named = {name: child for name, child in module.named_children() if name in read} or dict(module.named_children())
            for child in named.values():
                found += list(child.children()) if isinstance(child, nn.ModuleList | nn.ModuleDict) else [child]
        if owner in self.asked and function.name == "step":
            return [part for part in found if hasattr(part, "step")]
        return found


def _attributes(node: ast.AST) -> set[str]:
    """Attributes of self in an expression."""
    return {n.attr for n in ast.walk(node)
            if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == "self"}


def _sources(function: ast.FunctionDef, part: ast.expr) -> Iterator[ast.expr]:
    """What a name loops over."""
    name = part.id if isinstance(part, ast.Name) else None
    for loop in nodes(function):
        is_loop = isinstance(loop, ast.For | ast.comprehension)
        if is_loop and any(isinstance(n, ast.Name) and n.id == name for n in ast.walk(loop.target)):  # type: ignore[attr-defined]
            yield loop.iter                                                          # type: ignore[attr-defined]


def inlined(text: str, owner: str, parts: Parts, names: Mapping[str, str]) -> str:
    """A definition with these calls written out. names: what the functions of `RUNNING` are called in the file."""
    known = {final: plain for plain, final in names.items() if f"{final}(" in text}
    while known:
        source = parsed(text)
        edits = []
        for function in (n for n in ast.walk(source.tree) if isinstance(n, ast.FunctionDef)):
            for call in (n for n in nodes(function) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)):
                plain = known.get(call.func.id)                                      # type: ignore[attr-defined]
                written = None if plain is None else _written(source, owner, parts, function, call, plain)
                edits += [] if written is None else [Edit(*source.span(call), written)]
        changed = apply(text, edits)
        if changed == text:
            break
        text = changed
    return text


def _written(source: Text, owner: str, parts: Parts, function: ast.FunctionDef, call: ast.Call, plain: str) -> str | None:
    signature = ast.parse(f"def f({SIGNATURES[plain]}): pass").body[0]
    assert isinstance(signature, ast.FunctionDef)
    bound = bind(call, signature, bound=False)
    assert bound is not None, f"a call of {plain} unpacks its arguments"
    assert isinstance(call.func, ast.Name)
    found = parts.at(owner, function, next(iter(bound.values())))
    arguments = {name: source.get(value) for name, value in bound.items()}
    site = _Site(call.func.id, parts, found, arguments, _always_spatial(parts, owner, bound.get("spatial")))
    return str(getattr(site, plain)())


def _always_spatial(parts: Parts, owner: str, spatial: ast.expr | None) -> bool:
    """Whether parts at this place take the stream as it is."""
    if spatial is None or not parts.grid or (isinstance(spatial, ast.Constant) and spatial.value is True):
        return True
    held = parts.held.get(owner, [])
    names = _attributes(spatial)
    return bool(held) and len(names) == 1 and all(getattr(module, name, None) is True for module in held for name in names)


@dataclass(frozen=True)
class _Site:
    """One call: the modules its part may be, and its arguments as text."""

    name: str
    parts: Parts
    found: list[nn.Module]
    argument: dict[str, str]
    spatial: bool

    @property
    def part(self) -> str:
        return self.argument["part"]

    @property
    def shared(self) -> str | None:
        """What is handed on: nothing where no part here takes it."""
        given = self.argument.get("shared", "None")
        return None if given == "None" or (self.found and not any(map(self.parts.shares, self.found))) else given

    def every(self, holds: Callable[[nn.Module], bool]) -> bool:
        return bool(self.found) and all(map(holds, self.found))

    def as_sequence(self) -> str:
        given, flag, shared = self.argument["x"], self.argument.get("spatial", "True"), self.shared
        if not self.spatial:
            self.mark(shared)
            end = f", {shared})" if shared else ")"
            return f"on_grid{'_sharing' if shared else ''}({self.part}, {given}, {flag}{end}"
        if shared and not self.every(self.parts.shares):
            self.mark(shared)
            return f"sharing({self.part}, {given}, {shared})"
        return f"{self.part}({given}, {shared})" if shared else f"{self.part}({given})"

    def step_part(self) -> str:
        given, state, shared = self.argument["x"], self.argument["state"], self.shared
        more = f", {shared}" if shared else ""
        if self.every(lambda part: hasattr(part, "step")) and (not shared or self.every(self.parts.shares)):
            return f"{self.part}.step({given}, {state}{more})"
        if self.every(lambda part: not hasattr(part, "step")):
            return f"({self.as_sequence()}, {state})"
        self.mark(shared)
        return f"stepped{'_sharing' if shared else ''}({self.part}, {given}, {state}{more})"

    def initial_state(self) -> str:
        batch, dtype, device = (self.argument[name] for name in ("batch", "dtype", "device"))
        if not self.every(lambda part: hasattr(part, "init_state")):
            return f"state_of({self.part}, {batch}, {dtype}, {device})"
        if self.every(lambda part: type(part).__module__.split(".")[0] == __name__.split(".")[0]):
            return f"{self.part}.init_state({batch}, {dtype}, {device})"
        return f"{self.part}.init_state({batch}, dtype={dtype}, device={device})"

    def mark(self, shared: str | None) -> None:
        if shared:
            self.parts.marked.update(type(part) for part in self.found if self.parts.shares(part))

    def change(self) -> str:
        """Sublayers give what they add; of anything else the function takes the stream away."""
        return self.as_sequence() if self.are_blocks() else self.call("part", "x")

    def step_change(self) -> str:
        return self.step_part() if self.are_blocks() else self.call("part", "x", "state")

    def units_of(self) -> str:
        return f"{self.argument['layer']}.children()" if self.are_blocks() else self.call("layer")

    def handed(self) -> str:
        """All that the stream shares, where only blocks take any of it."""
        takers = [part for part in self.found if self.parts.shares(part)]
        is_for_blocks = bool(takers) and all(isinstance(part, self.parts.blocks) for part in takers)
        return self.argument["shared"] if is_for_blocks else self.call("layer", "shared")

    def as_grid(self) -> str:
        return self.argument["x"] if self.parts.grid else self.call("x")

    def are_blocks(self) -> bool:
        """Whether every part here is a block, whose children are the units."""
        return self.every(lambda part: isinstance(part, self.parts.block))

    def call(self, *names: str) -> str:
        """The call as it is, without what is not handed on."""
        given = [self.argument[name] for name in names]
        return f"{self.name}({', '.join([*given, *filter(None, [self.shared if 'part' in names else None])])})"


def of_rank(text: str, home: str, rank: int) -> str:
    """A definition of the house with the number of dimensions of the stream put in."""
    if not home.endswith(RANKED):
        return text
    source = Text(text)
    tests = [n for n in ast.walk(source.tree) if isinstance(n, ast.Compare) and isinstance(n.left, ast.Attribute)
             and n.left.attr == "ndim" and isinstance(n.comparators[0], ast.Constant)]
    return apply(text, [Edit(*source.span(n), str(rank == n.comparators[0].value)) for n in tests])  # type: ignore[attr-defined]
