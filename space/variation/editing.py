"""The canonical form of a genome, and moving the layers of a repeat.

Two genomes may stand for one network: an item of a stream without any sublayer leaves no trace, a candidate may resolve to
what another candidate is. Where that can happen is found once per space: `settlers` makes one function per field, which
rewrites there and nowhere else. Spaces where no decision has two forms have no settlers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..compiled.outline import count_of, met_twice
from ..compiled.spec import ChoiceNode, Fixed, Leaf, Node, RecordNode, RepeatNode, SequenceNode, SubsetNode, walks
from ..genome import Decision
from ..macros.base import is_absent
from ..plan import Block, Loop, Once

__all__ = ["arranged", "settlers"]

Settle = Callable[[dict[str, Decision]], None]
NOTHING = "nothing"          # the form of what leaves no trace in a stream
MAX_FORMS = 256


class Alias(NamedTuple):
    """Another candidate of a choice, the decisions below it that give it a form, and that form."""

    candidate: int
    decisions: dict[str, Decision]
    form: Any


def settlers(nodes: Mapping[str, Node]) -> list[Settle]:
    """Functions that bring the decisions of a space into their canonical form, in place."""
    settling = _Settling(met_twice(nodes.values()))
    made = (settling.of(node, name == "body") for name, node in nodes.items())
    return [settle for settle in made if settle is not None]


class _Settling:
    """Makes the settlers of one space. A stream is a field whose items run one after another."""

    def __init__(self, tied: set[int]):
        self.tied = tied

    def of(self, node: Node, stream: bool) -> Settle | None:
        """The settler of `node` and all below it, None when nothing there has two forms."""
        if isinstance(node, RepeatNode):
            return self._repeat(node, stream)
        if isinstance(node, ChoiceNode):
            return self._choice(node, stream)
        if isinstance(node, SubsetNode):
            return self._subset(node, stream)
        if isinstance(node, SequenceNode):
            return _together([self.of(part, stream) for part in node.parts])
        if isinstance(node, RecordNode):
            streams = getattr(node.cls, "streams", ())
            return _together([self.of(part, name in streams) for name, part in zip(node.names, node.parts, strict=True)])
        return None

    def _repeat(self, node: RepeatNode, stream: bool) -> Settle | None:
        inner = [self.of(item, stream) for item in node.items]
        vanish = stream and bool(node.items) and may_vanish(node.items[0])
        may_shrink = id(node.times) not in self.tied
        if not vanish and not any(inner):
            return None

        def settle(decisions: dict[str, Decision]) -> None:
            for part in inner[:count_of(node, decisions)]:
                if part:
                    part(decisions)
            if vanish:
                _compact(node, decisions, may_shrink)

        return settle

    def _choice(self, node: ChoiceNode, stream: bool) -> Settle | None:
        inner = [self.of(candidate, stream) for candidate in node.candidates]
        aliases = _aliases(node, stream, self.tied)
        if not any(inner) and not any(aliases):
            return None

        def settle(decisions: dict[str, Decision]) -> None:
            chosen: int = decisions[node.gene.path]                                  # type: ignore[assignment]
            part = inner[chosen]
            if part:
                part(decisions)
            form = _form(node.candidates[chosen], decisions, stream) if aliases[chosen] else None
            for alias in aliases[chosen]:
                if alias.form == form:
                    decisions.update(alias.decisions)
                    decisions[node.gene.path] = alias.candidate
                    return

        return settle

    def _subset(self, node: SubsetNode, stream: bool) -> Settle | None:
        inner = [self.of(candidate, stream) for candidate in node.candidates]
        vanish = stream and any(may_vanish(candidate) for candidate in node.candidates)
        if not vanish and not any(inner):
            return None

        def settle(decisions: dict[str, Decision]) -> None:
            for index in decisions[node.gene.path]:                                  # type: ignore[union-attr]
                part = inner[index]
                if part:
                    part(decisions)
            if vanish:
                _thin(node, decisions)

        return settle


def _together(parts: Sequence[Settle | None]) -> Settle | None:
    found = [part for part in parts if part is not None]
    if len(found) < 2:
        return found[0] if found else None

    def settle(decisions: dict[str, Decision]) -> None:
        for part in found:
            part(decisions)

    return settle


def may_vanish(node: Node) -> bool:
    """Whether an item of a stream may leave no trace; true where that is not known."""
    if isinstance(node, Fixed):
        return _is_nothing(node.value)
    if isinstance(node, ChoiceNode):
        return any(may_vanish(candidate) for candidate in node.candidates)
    if isinstance(node, SubsetNode):
        return () in node.gene.index or any(may_vanish(candidate) for candidate in node.candidates)
    if isinstance(node, SequenceNode):
        return all(may_vanish(part) for part in node.parts)
    if isinstance(node, RepeatNode):
        return 0 in node.counts() or all(may_vanish(item) for item in node.items[:1])
    if isinstance(node, RecordNode) and issubclass(node.cls, Block):
        parts = dict(zip(node.names, node.parts, strict=True))
        return _may_be_identity(parts["mixer"]) and _may_be_identity(parts["channel"])
    cls = getattr(node, "cls", None)
    return getattr(cls, "vanishes", False) or getattr(cls, "kind", "") == "identity"


def _may_be_identity(node: Node) -> bool:
    if isinstance(node, ChoiceNode):
        return any(_may_be_identity(candidate) for candidate in node.candidates)
    what = node.cls if isinstance(node, RecordNode) else getattr(node, "value", None)
    return getattr(what, "kind", "") == "identity"


def _is_nothing(value: Any) -> bool:
    return all(map(is_absent, value)) if isinstance(value, tuple) else is_absent(value)


def _form(node: Node, decisions: Mapping[str, Decision], stream: bool) -> Any:
    """What tells a resolved candidate from others: its value, and one form for all that leave no trace."""
    value, _ = node.resolve(lambda gene: decisions[gene.path])
    if stream and _is_nothing(value):
        return NOTHING
    return Once() if isinstance(value, Loop) and value.times == 1 and not value.lora_rank else value


def _aliases(node: ChoiceNode, stream: bool, tied: set[int]) -> list[list[Alias]]:
    """For every candidate the others that may mean the same and stand for it: fixed ones first, then earlier ones."""
    fixed = [Alias(i, {}, _form(c, {}, stream)) for i, c in enumerate(node.candidates) if not c.genes]
    empty = [Alias(i, *way) for i, c in enumerate(node.candidates) if c.genes for way in _ways_to_nothing(c, stream, tied)]
    made = []
    for index, candidate in enumerate(node.candidates):
        if not candidate.genes:
            form = next(alias.form for alias in fixed if alias.candidate == index)
            made.append([alias for alias in fixed if alias.candidate < index and alias.form == form][:1])
        else:
            kinds = _kinds_of(candidate, stream)
            others = [*fixed, *(alias for alias in empty if alias.candidate < index)]
            made.append([alias for alias in others if _kind(alias.form) in kinds])
    return made


def _ways_to_nothing(node: Node, stream: bool, tied: set[int]) -> Iterator[tuple[dict[str, Decision], Any]]:
    """The first decisions below a candidate that make it nothing: no trace, `Identity()`, None; none where tied."""
    if not (may_vanish(node) if stream else isinstance(node, ChoiceNode)) or met_twice([node]) & tied or id(node) in tied:
        return

    def visit(decide: Any) -> tuple[dict[str, Decision], Any]:
        made: dict[str, Decision] = {}

        def noted(gene: Any) -> Decision:
            made[gene.path] = decide(gene)
            return made[gene.path]

        node.resolve(noted)
        return made, _form(node, made, stream)

    ways = walks(visit, lambda gene: gene.options or (gene.low,))
    for made, form in (way for way, _ in zip(ways, range(MAX_FORMS), strict=False)):
        if form is None or form is NOTHING or getattr(form, "kind", "") == "identity":
            yield made, form
            return


def _kind(form: Any) -> Any:
    return form if form is NOTHING else type(form)


def _kinds_of(node: Node, stream: bool) -> set[Any]:
    """The kinds of form a candidate may take."""
    found: set[Any] = {NOTHING} if stream and may_vanish(node) else set()
    if isinstance(node, ChoiceNode):
        return found.union(*(_kinds_of(candidate, stream) for candidate in node.candidates))
    if isinstance(node, RecordNode):
        return found | {node.cls} | ({Once} if issubclass(node.cls, Loop) else set())
    if isinstance(node, Fixed):
        return found | {type(node.value)}
    return found | ({tuple} if isinstance(node, (SequenceNode, RepeatNode, SubsetNode)) else {int, float})


def _compact(node: RepeatNode, decisions: dict[str, Decision], may_shrink: bool) -> None:
    """Move layers that leave no trace behind the others, and lower the count where the space allows it."""
    count = count_of(node, decisions)
    full = [i for i in range(count) if _form(node.items[i], decisions, True) is not NOTHING]
    if len(full) == count:
        return
    empty = [i for i in range(count) if i not in full]
    kept = min(c for c in node.counts() if len(full) <= c <= count) if may_shrink else count
    _arrange(node, decisions, (full + empty)[:kept])


def _thin(node: SubsetNode, decisions: dict[str, Decision]) -> None:
    """Take candidates that leave no trace out of a subset as far as its sizes allow; the rest of them stand last."""
    chosen: tuple[int, ...] = decisions[node.gene.path]                              # type: ignore[assignment]
    full = [i for i in chosen if _form(node.candidates[i], decisions, True) is not NOTHING]
    empty = sorted(i for i in chosen if i not in full)
    for number in range(len(empty) + 1 if empty else 0):
        left = (*full, *empty[:number])
        left = left if node.gene.ordered else tuple(sorted(left))
        if left in node.gene.index:
            decisions[node.gene.path] = left
            return


def arranged(node: RepeatNode, decisions: Mapping[str, Decision], order: Sequence[int | None]) -> dict[str, Decision]:
    """Decisions where layer k is what layer `order[k]` was; None is a layer without decisions, to be made up.

    The repeat then has `len(order)` layers, which must be one of its counts.
    """
    made = dict(decisions)
    _arrange(node, made, order)
    return made


def _arrange(node: RepeatNode, decisions: dict[str, Decision], order: Sequence[int | None]) -> None:
    held: dict[int, dict[str, Decision]] = {}
    for path in list(decisions):
        if path.startswith(node.path + "["):
            index, rest = path[len(node.path) + 1:].split("]", 1)
            if index != "*":
                held.setdefault(int(index), {})[rest] = decisions.pop(path)
    for position, source in enumerate(order):
        for rest, decision in held.get(source, {}).items() if source is not None else ():
            decisions[f"{node.path}[{position}]{rest}"] = decision
    if isinstance(node.times, Leaf):
        decisions[node.times.gene.path] = len(order)
    elif isinstance(node.times, ChoiceNode):
        decisions[node.times.gene.path] = node.counts().index(len(order))
