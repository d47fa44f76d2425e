"""The space: a tree of frozen dataclasses with choices anywhere in it, and everything a search asks of it."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BodyplanError
from .choices import Choice, Repeat, Tied
from .counting import NotCountable, count
from .genome import Decision, Genome
from .layout import body_operators, field_operators, layers_of, module_addresses, walk
from .operator import Operator
from .plan import Block, Loop, Once, Plan
from .spec import ChoiceNode, Compiler, Fixed, Gene, Leaf, Node, RecordNode, RepeatNode, SequenceNode, variants

if TYPE_CHECKING:
    from .architecture import Architecture

__all__ = ["Space"]

MAX_VARIANTS = 4096
MAX_TRIES = 10_000
FIELDS = ("embed", "width", "body", "recursion", "head", "norm")


class Space:
    """Architectures as a tree of decisions.

    embed, head: operators of those kinds. width: a number or a choice of numbers. body: `repeat(block, times)`, a `Block`,
    a choice of blocks, or a tuple of those, run in order. recursion: `Once()`, `Loop(...)` or a choice. norm: the final
    norm. constraints: functions of a resolved `Plan` that return whether it is allowed.

    Everything is validated here: operators that cannot be built at some reachable size raise ValueError naming the place.

    Example:
        >>> import bodyplan as bp
        >>> space = bp.Space(embed=bp.TokenEmbedding(vocab=256), width=bp.choice(32, 64),
        ...                  body=bp.repeat(bp.Block(mixer=bp.Attention(heads=bp.choice(2, 4))), times=bp.integer(1, 2)),
        ...                  head=bp.LanguageHead(tied=True))
        >>> space.size()
        12
    """

    def __init__(self, *, embed: Any, width: Any, body: Any, head: Any, recursion: Any = None, norm: Any = None,
                 constraints: Sequence[Callable[[Plan], bool]] = ()):
        from .operators.rmsnorm import RMSNorm

        self.definition = {"embed": embed, "width": width, "body": body, "recursion": recursion or Once(),
                           "head": head, "norm": norm or RMSNorm()}
        self.constraints = tuple(constraints)
        self._compile()
        _Checker(self).check()

    def _compile(self) -> None:
        compiler = Compiler()                          # one for all fields, so that an object tied across them is seen
        self._nodes = {name: compiler.compile(part, name) for name, part in self.definition.items()}
        self.genes: tuple[Gene, ...] = tuple({g.path: g for node in self._nodes.values() for g in node.genes}.values())
        self._gene_by_path = {g.path: g for g in self.genes}
        self._repeats = [n for n in walk(self._nodes["body"]) if isinstance(n, RepeatNode)]
        self._aliases = _once_aliases(self._nodes["recursion"])

    def __repr__(self) -> str:
        return f"Space({len(self.genes)} genes, hash {self.hash[:8]})"

    def __getstate__(self) -> dict[str, Any]:
        return {"definition": self.definition, "constraints": self.constraints}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.definition, self.constraints = state["definition"], state["constraints"]
        self._compile()

    # -- genomes -------------------------------------------------------------------------------------------------

    def sample(self, seed_or_rng: int | random.Random = 0) -> Architecture:
        """A random architecture: every decision uniform over its options. An int seeds a fresh generator."""
        rng = seed_or_rng if isinstance(seed_or_rng, random.Random) else random.Random(seed_or_rng)
        return self.architecture(self.sample_genome(rng))

    def sample_genome(self, rng: random.Random) -> Genome:
        """A random canonical genome that satisfies the constraints. Raises BodyplanError when none is found."""
        return self._allowed(lambda: self._fill({}, rng))

    def _allowed(self, propose: Callable[[], Genome], tries: int = MAX_TRIES) -> Genome:
        for _ in range(tries if self.constraints else 1):
            genome = self.canonical(propose())
            if not self.violated(genome):
                return genome
        names = ", ".join(getattr(c, "__name__", repr(c)) for c in self.constraints)
        raise BodyplanError(f"no allowed architecture in {tries} draws: constraints {names} reject nearly all; loosen them")

    def violated(self, genome: Genome) -> list[str]:
        """Names of the constraints that `genome` breaks."""
        if not self.constraints:
            return []
        plan = self.architecture(genome).plan
        return [getattr(c, "__name__", repr(c)) for c in self.constraints if not c(plan)]

    def _fill(self, known: Mapping[str, Decision], rng: random.Random) -> Genome:
        """Walk the space with the decisions in `known`, drawing the rest."""
        made: dict[str, Decision] = {}

        def decide(gene: Gene) -> Decision:
            path = gene.path
            if path not in made:
                made[path] = known[path] if path in known else gene.sample(rng)
            return made[path]

        self._resolve(decide)
        return Genome(made)

    def _resolve(self, decide: Callable[[Gene], Decision]) -> dict[str, tuple[Any, Any]]:
        return {name: node.resolve(decide) for name, node in self._nodes.items()}

    def validate(self, genome: Genome) -> None:
        """Raise ValueError for a genome that is not of this space: missing, unknown or impossible decisions."""
        active = set()
        for gene, decision in self._trace(genome):
            if decision is None:
                raise ValueError(f"a genome decides every active gene: nothing stands at {gene.path!r}")
            active.add(gene.path)
        extra = [path for path in genome if path not in self._gene_by_path]
        if extra:
            raise ValueError(f"a genome holds only decisions of its space: unknown {extra[0]!r}; is it of another space?")
        if self.violated(genome):
            raise ValueError(f"constraints must hold: this genome breaks {', '.join(self.violated(genome))}")

    def _trace(self, genome: Genome) -> list[tuple[Gene, Decision | None]]:
        met: list[tuple[Gene, Decision | None]] = []

        def decide(gene: Gene) -> Decision:
            decision = genome.get(gene.path)
            met.append((gene, decision))
            if decision is None:
                raise ValueError(f"a genome decides every active gene: nothing stands at {gene.path!r}")
            if not gene.contains(decision):
                raise ValueError(f"a decision is one of its options at {gene.path}: got {decision!r}; "
                                 f"options are {gene.options or (gene.low, gene.high)}")
            return decision

        self._resolve(decide)
        return met

    def canonical(self, genome: Genome) -> Genome:
        """The one genome that stands for all that write the same decisions.

        Dead genes are dropped, layers without any sublayer are moved out (or to the end, where depth cannot shrink), and
        `Loop(times=1)` becomes `Once()` where the space holds it.
        """
        decisions = dict(genome)
        for path, first in self._aliases.items():
            if decisions.get(path) in first:
                decisions[path] = first[decisions[path]]        # type: ignore[index]
        for node in self._repeats:
            _compact(node, decisions)
        made: dict[str, Decision] = {}

        def decide(gene: Gene) -> Decision:
            made[gene.path] = decision = decisions[gene.path]
            return decision

        self._resolve(decide)
        return Genome(made)

    def architecture(self, genome: Genome) -> Architecture:
        """The architecture of `genome`. Raises ValueError when the genome is not of this space."""
        from .architecture import Architecture

        return Architecture(self, genome)

    def plan(self, genome: Genome) -> tuple[Plan, dict[str, str]]:
        """The resolved plan and the weight address of every module prefix."""
        try:
            parts = self._resolve(lambda gene: genome[gene.path])
        except (KeyError, IndexError, TypeError):
            self.validate(genome)
            raise
        layers, where = layers_of(parts["body"])
        values = {name: value for name, (value, _) in parts.items()}
        plan = Plan(values["embed"], values["width"], tuple(layers), values["recursion"], values["head"], values["norm"])
        return plan, module_addresses(parts, layers, where)

    # -- variation -----------------------------------------------------------------------------------------------

    def mutate(self, genome: Genome, rng: random.Random) -> Genome:
        """Another genome near `genome`: one gene redrawn, or a layer inserted, removed or swapped."""
        for _ in range(100):
            layered = [n for n in self._repeats if n.path + "[0]" and len(n.items) > 1]
            proposal = (_edit_layers(self, genome, rng.choice(layered), rng) if layered and rng.random() < 0.3
                        else self._redraw(genome, rng))
            proposal = self.canonical(proposal)
            if proposal != genome and not self.violated(proposal):
                return proposal
        return self.sample_genome(rng)

    def _redraw(self, genome: Genome, rng: random.Random) -> Genome:
        active = [self._gene_by_path[path] for path in genome]
        active = [g for g in active if g.options is None or len(g.options) > 1]
        if not active:
            return genome
        gene = rng.choice(active)
        known = dict(genome)
        while (decision := gene.sample(rng)) == known[gene.path]:
            pass
        known[gene.path] = decision
        return self._fill(known, rng)

    def crossover(self, a: Genome, b: Genome, rng: random.Random) -> Genome:
        """A child whose parts come whole from one parent or the other: a layer, or a top-level field, is a part."""
        def mixed() -> Genome:
            takes_a: dict[str, bool] = {}
            known: dict[str, Decision] = {}
            for path in {**a, **b}:
                part = path[:path.index("]") + 1] if "]" in path else path.split(".")[0]
                first, second = (a, b) if takes_a.setdefault(part, rng.random() < 0.5) else (b, a)
                known[path] = first[path] if path in first else second[path]
            return self._fill(known, rng)

        return self._allowed(mixed, 100) if self.constraints else self.canonical(mixed())

    def neighbours(self, genome: Genome) -> Iterator[Genome]:
        """Every canonical genome one decision away; newly active decisions stand at their first option."""
        seen = {genome}
        for path in genome:
            gene = self._gene_by_path[path]
            for option in gene.options or (gene.low, gene.high):
                near = self.canonical(self._first({**genome, path: option}))
                if near not in seen and not self.violated(near):
                    seen.add(near)
                    yield near

    def _first(self, known: Mapping[str, Decision]) -> Genome:
        made: dict[str, Decision] = {}

        def decide(gene: Gene) -> Decision:
            if gene.path not in made:
                made[gene.path] = known.get(gene.path, (gene.options or (gene.low,))[0])
            return made[gene.path]

        self._resolve(decide)
        return Genome(made)

    # -- counting and encoding -----------------------------------------------------------------------------------

    def size(self) -> int:
        """How many genomes there are, exactly. Raises NotCountable with constraints (when large) or continuous genes."""
        total = count(tuple(self._nodes.values()))
        if not self.constraints:
            return total
        if total > 200_000:
            raise NotCountable(f"constraints are counted by enumeration up to 200000 genomes: got {total} before them")
        return sum(1 for _ in self.enumerate())

    def enumerate(self) -> Iterator[Genome]:
        """Every genome that satisfies the constraints, in a fixed order (dead genes are never in a genome)."""
        choices: list[tuple[Gene, int]] = []
        while True:
            made: dict[str, Decision] = {}
            order: list[Gene] = []

            def decide(gene: Gene, made: dict[str, Decision] = made, order: list[Gene] = order) -> Decision:
                if gene.path not in made:
                    if gene.options is None:
                        raise NotCountable(f"a continuous gene cannot be enumerated: {gene.path}; give real(...) a step")
                    index = choices[len(order)][1] if len(order) < len(choices) else 0
                    order.append(gene)
                    made[gene.path] = gene.options[index]
                return made[gene.path]

            self._resolve(decide)
            genome = Genome(made)
            if not self.violated(genome):
                yield genome
            taken = [i for _, i in choices] + [0] * (len(order) - len(choices))
            while order and taken[-1] + 1 >= len(order[-1].options or ()):
                order.pop()
                taken.pop()
            if not order:
                return
            taken[-1] += 1
            choices[:] = list(zip(order, taken, strict=True))

    def complete(self, genome: Genome) -> dict[str, Decision]:
        """Every gene of the space: the genome's decisions, and the first option of inactive genes."""
        return {g.path: genome.get(g.path, (g.options or (g.low,))[0]) for g in self.genes}

    def from_complete(self, decisions: Mapping[str, Decision]) -> Genome:
        """The canonical genome of a complete assignment; inactive decisions are ignored."""
        return self.canonical(self._first(decisions))

    def encode(self, genome: Genome) -> np.ndarray:
        """Features of fixed length, float64: one-hot per choice (all zero when inactive), scaled number and activity."""
        return np.concatenate([_encode_gene(g, genome.get(g.path)) for g in self.genes]) if self.genes else np.zeros(0)

    def labels(self, genome: Genome) -> dict[str, str]:
        """The decisions in words, by path."""
        return {path: self._gene_by_path[path].label(decision) for path, decision in genome.items()}

    def smallest(self) -> Genome:
        """The genome whose architecture has the fewest parameters among single-gene descents from the first options."""
        return _climb(self, sign=1)

    def largest(self) -> Genome:
        """The genome with the most parameters by single-gene ascent."""
        return _climb(self, sign=-1)

    # -- identity ------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """The definition as JSON, for journals and export; classes by name, functions by qualified name."""
        return {"schema_version": 1, "definition": {k: _plain(v) for k, v in self.definition.items()},
                "constraints": [getattr(c, "__qualname__", repr(c)) for c in self.constraints]}

    @property
    def hash(self) -> str:
        """SHA-256 of the definition: a journal refuses to go on with another one."""
        if not hasattr(self, "_hash"):
            text = json.dumps(self.to_json(), sort_keys=True)
            self._hash = hashlib.sha256(text.encode()).hexdigest()
        return self._hash

    def operators(self) -> Iterator[tuple[str, list[Operator]]]:
        """(weight address, variants) of every operator that may be built; supernets lay weights out from it."""
        for name in ("embed", "head", "norm"):
            yield from field_operators(self._nodes[name])
        yield from body_operators(self._nodes["body"])

    def widths(self) -> list[int]:
        """Every residual width that may be decided."""
        return list(variants(self._nodes["width"], MAX_VARIANTS)) or [self.definition["width"]]

    def node(self, name: str) -> Node:
        """The compiled node of a top-level field."""
        return self._nodes[name]


def _once_aliases(node: Node) -> dict[str, dict[Decision, Decision]]:
    """Candidates of the recursion that mean the same: `Loop(times=1)` without LoRA is `Once()`."""
    if not isinstance(node, ChoiceNode):
        return {}
    plain = [i for i, c in enumerate(node.candidates)
             if isinstance(c, Fixed) and (isinstance(c.value, Once) or
                                          isinstance(c.value, Loop) and c.value.times == 1 and not c.value.lora_rank)]
    return {node.gene.path: {i: plain[0] for i in plain[1:]}} if len(plain) > 1 else {}


def _compact(node: RepeatNode, decisions: dict[str, Decision]) -> None:
    """Move layers without sublayers behind the others, and lower the count where the space allows it."""
    if node.times.genes and node.times.genes[0].path not in decisions:
        return                                                     # the repeat itself is inactive
    count = node.times.resolve(lambda gene: decisions[gene.path])[0]
    full = [i for i in range(count) if not _is_empty(node.items[i], decisions)]
    if len(full) == count:
        return
    empty = [i for i in range(count) if i not in full]
    allowed = [c for c in node.counts() if len(full) <= c <= count]
    kept = min(allowed)
    _reorder(node, decisions, (full + empty)[:kept], count)
    _set_count(node, decisions, kept)


def _is_empty(item: Node, decisions: Mapping[str, Decision]) -> bool:
    value, _ = item.resolve(lambda gene: decisions[gene.path])
    return isinstance(value, Block) and value.is_empty


def _reorder(node: RepeatNode, decisions: dict[str, Decision], order: Sequence[int], count: int) -> None:
    """Give position k the decisions that position `order[k]` holds now; drop the positions beyond."""
    held: dict[int, dict[str, Decision]] = {i: {} for i in range(count)}
    for path in list(decisions):
        if path.startswith(node.path + "["):
            index, rest = path[len(node.path) + 1:].split("]", 1)
            if index != "*":
                held[int(index)][rest] = decisions.pop(path)
    for position, source in enumerate(order):
        for rest, decision in held[source].items():
            decisions[f"{node.path}[{position}]{rest}"] = decision


def _set_count(node: RepeatNode, decisions: dict[str, Decision], count: int) -> None:
    if isinstance(node.times, Leaf):
        decisions[node.times.gene.path] = count
    elif isinstance(node.times, ChoiceNode):
        decisions[node.times.gene.path] = node.counts().index(count)


def _edit_layers(space: Space, genome: Genome, node: RepeatNode, rng: random.Random) -> Genome:
    """Insert, remove or swap a layer of a repeat, keeping the others as they are."""
    decisions = dict(genome)
    if node.times.genes and node.times.genes[0].path not in decisions:
        return genome
    now = node.times.resolve(lambda gene: decisions[gene.path])[0]
    order = list(range(now))
    moves = ["swap"] if now > 1 else []
    moves += ["insert"] * (now + 1 in node.counts()) + ["remove"] * (now - 1 in node.counts())
    if not moves:
        return genome
    move = rng.choice(moves)
    if move == "swap":
        i, j = rng.sample(order, 2)
        order[i], order[j] = order[j], order[i]
        _reorder(node, decisions, order, now)
    elif move == "remove":
        order.remove(rng.choice(order))
        _reorder(node, decisions, order, now)
        _set_count(node, decisions, now - 1)
    else:
        place = rng.randrange(now + 1)
        _reorder(node, decisions, order, now)
        for i in range(now, place, -1):
            _shift(node, decisions, i - 1, i)
        _set_count(node, decisions, now + 1)
    return space._fill(decisions, rng)


def _shift(node: RepeatNode, decisions: dict[str, Decision], source: int, target: int) -> None:
    prefix = f"{node.path}[{source}]"
    for path in [p for p in decisions if p.startswith(prefix)]:
        decisions[f"{node.path}[{target}]{path[len(prefix):]}"] = decisions.pop(path)


def _encode_gene(gene: Gene, decision: Decision | None) -> np.ndarray:
    if gene.kind in ("choice", "subset"):
        assert gene.options is not None
        return np.array([float(option == decision) for option in gene.options])
    span = (gene.high - gene.low) or 1.0
    return np.array([0.0, 0.0] if decision is None else [1.0, (decision - gene.low) / span])  # type: ignore[operator]


def _climb(space: Space, sign: int) -> Genome:
    """Coordinate descent on sign * parameters, a pass over the genes at a time until nothing changes.

    Ties (attention windows, say) keep the earlier option.
    """
    genome = space.canonical(space._first({}))
    if space.violated(genome):
        genome = space.sample_genome(random.Random(0))
    best = sign * space.architecture(genome).cost().parameters
    improved = True
    while improved:
        improved = False
        for path in list(genome):
            gene = space._gene_by_path[path]
            for option in (gene.options or (gene.low, gene.high)) if path in genome else ():
                near = space.canonical(space._first({**genome, path: option}))
                value = sign * space.architecture(near).cost().parameters
                if value < best and not space.violated(near):
                    genome, best, improved = near, value, True
    return genome


def _plain(item: Any) -> Any:
    """A JSON description of a definition."""
    from dataclasses import fields, is_dataclass

    if isinstance(item, (tuple, list)):
        return [_plain(i) for i in item]
    if is_dataclass(item) and not isinstance(item, type):
        return {type(item).__name__: {f.name: _plain(getattr(item, f.name)) for f in fields(item)}}
    if item is None or isinstance(item, (bool, int, float, str)):
        return item
    return getattr(item, "__qualname__", type(item).__qualname__)


class _Checker:
    """Everything that can be wrong with a space, found before any work starts."""

    def __init__(self, space: Space):
        self.space = space

    def check(self) -> None:
        self._widths()
        self._kinds("embed", "embedding")
        self._kinds("head", "head")
        self._kinds("norm", "norm")
        self._body(self.space.definition["body"], "body")
        self._recursion()
        for address, found in self.space.operators():
            for operator in found:
                for width in self.space.widths():
                    operator.check(width, address)

    def _widths(self) -> None:
        for width in self.space.widths():
            if not isinstance(width, int) or isinstance(width, bool) or width < 1:
                raise ValueError(f"width must be a positive int at width: got {width!r}; write choice(64, 96)")

    def _kinds(self, name: str, kind: str) -> None:
        for value in variants(self.space.node(name), MAX_VARIANTS):
            if not isinstance(value, Operator) or value.kind != kind:
                raise TypeError(f"{name} must be an operator of kind {kind!r}: got {_named(value)}")

    def _recursion(self) -> None:
        for value in variants(self.space.node("recursion"), MAX_VARIANTS):
            if not isinstance(value, (Once, Loop)):
                raise TypeError(f"recursion must be Once() or Loop(...): got {_named(value)}")
            if isinstance(value, Loop):
                value.check("recursion")

    def _body(self, item: Any, where: str) -> None:
        if isinstance(item, Tied):
            self._body(item.item, where)
        elif isinstance(item, Repeat):
            self._body(item.item, f"{where}[0]")
        elif isinstance(item, Choice):
            for i, candidate in enumerate(item.candidates):
                self._body(candidate, f"{where}.{i}")
        elif isinstance(item, (tuple, list)):
            if not item:
                raise ValueError(f"a body needs at least one layer at {where}: got an empty sequence")
            for i, part in enumerate(item):
                self._body(part, f"{where}.{i}")
        elif isinstance(item, Block):
            for name in ("mixer", "channel", "norm"):
                self._sublayer(getattr(item, name), name, f"{where}.{name}")
        else:
            raise TypeError(f"a body is made of Block, repeat and choice at {where}: got {_named(item)}; "
                            "write Block(mixer=..., channel=...)")

    def _sublayer(self, item: Any, role: str, where: str) -> None:
        if isinstance(item, Tied):
            return self._sublayer(item.item, role, where)
        if isinstance(item, Choice):
            for i, candidate in enumerate(item.candidates):
                self._sublayer(candidate, role, f"{where}.{i}")
            return None
        if isinstance(item, type) and issubclass(item, Operator):
            raise TypeError(f"{role} must be an operator at {where}: got the class {item.__name__}; "
                            f"write {item.__name__}()")
        allowed = ("norm",) if role == "norm" else ("mixer", "channel", "identity")
        if not isinstance(item, Operator) or item.kind not in allowed:
            raise TypeError(f"{role} must be an operator of kind {' or '.join(allowed)} at {where}: got {_named(item)}; "
                            "wrap your own nn.Module as Custom(MyModule)")
        return None


def _named(item: Any) -> str:
    return f"{type(item).__name__} {item!r}" if not isinstance(item, type) else f"the class {item.__name__}"
